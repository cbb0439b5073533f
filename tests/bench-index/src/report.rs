//! Summing up, for people and as JSON.

use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde_json::{Map, Value, json};
use warmpath_tests::index_bench::{Figures, Parts, Rate};

/// The targets for ours: CPU per block from raw frames, a lookup, memory per block.
const CPU_US: f64 = 0.4;
const LOOKUP_US: f64 = 1.0;
const BYTES: f64 = 64.0;

/// All indexes under one load.
pub struct Row {
    pub load: String,
    pub resident: usize,
    pub changes: usize,
    /// By name, ours first.
    pub figures: Vec<(&'static str, Figures)>,
    pub parts: Parts,
}

/// Prints a table per load, with what the others need in multiples of ours.
pub fn print(rows: &[Row]) {
    for row in rows {
        println!("\n{}: {} blocks resident, {} stored or removed", row.load, row.resident, row.changes);
        let mut table = Table::new();
        table.load_preset(UTF8_HORIZONTAL_ONLY).set_header([
            "index",
            "raw frames\nM blocks/s",
            "CPU us\nper block",
            "decoded\nM blocks/s",
            "CPU us\nper block",
            "with hashes\nM blocks/s",
            "CPU us\nper block",
            "lookup us\np50 / p99",
            "parting\np50 / p99",
            "hash prompt\nus p50",
            "bytes\nper block",
        ]);
        let Some((_, ours)) = row.figures.first() else { continue };
        for (name, f) in &row.figures {
            let times =
                |other: f64, own: f64| if *name == "ours" { String::new() } else { format!(" ({:.2}x)", other / own) };
            let speed =
                |rate: Option<Rate>| rate.map_or("-".to_owned(), |r| format!("{:.2}", r.blocks_per_second / 1e6));
            let cpu = |rate: Option<Rate>, own: Option<Rate>| match (rate, own) {
                (Some(rate), Some(own)) => format!("{:.3}{}", rate.cpu_us, times(rate.cpu_us, own.cpu_us)),
                (Some(rate), None) => format!("{:.3}", rate.cpu_us),
                (None, _) => "-".to_owned(),
            };
            let parting = f.parting.map_or("-".to_owned(), |p| format!("{:.2} / {:.2}", p.p50_us, p.p99_us));
            table.add_row([
                (*name).to_owned(),
                speed(f.raw),
                cpu(f.raw, ours.raw),
                speed(Some(f.decoded)),
                cpu(Some(f.decoded), Some(ours.decoded)),
                speed(f.hashed),
                cpu(f.hashed, ours.hashed),
                format!(
                    "{:.2} / {:.2}{}",
                    f.lookup.p50_us,
                    f.lookup.p99_us,
                    times(f.lookup.p50_us, ours.lookup.p50_us)
                ),
                parting,
                format!("{:.2}{}", f.hashing.p50_us, times(f.hashing.p50_us, ours.hashing.p50_us)),
                format!("{:.1}{}", f.bytes_per_block, times(f.bytes_per_block, ours.bytes_per_block)),
            ]);
        }
        println!("{table}");
        let Parts { read, apply, pages } = row.parts;
        println!(
            "ours, CPU us per block: reading {read:.3}, bytes, fingerprints and index {apply:.3}, pages {pages:.3}"
        );
        let verdict = |what: &str, is: f64, most: f64| {
            println!("target: {what} at most {most}: {is:.2}, {}", if is <= most { "met" } else { "NOT met" });
        };
        if let Some(raw) = ours.raw {
            verdict("CPU us per block from raw frames", raw.cpu_us, CPU_US);
        }
        verdict("us a lookup (p50)", ours.lookup.p50_us, LOOKUP_US);
        verdict("bytes per block", ours.bytes_per_block, BYTES);
    }
    println!(
        "\n(x): in multiples of ours. With hashes: tokens hashed beforehand. Lookups: of prompts hashed beforehand; \
         theirs need the prompt's tokens, ours its bytes. smg's crate reads no frames."
    );
}

/// Figures by index, then by load.
pub fn json(rows: &[Row]) -> Value {
    let mut systems = Map::new();
    for row in rows {
        for (name, figures) in &row.figures {
            let mut figures = figures.json();
            if *name == "ours" {
                let Parts { read, apply, pages } = row.parts;
                figures["parts_cpu_us_per_block"] = json!({"read": read, "apply": apply, "pages": pages});
            }
            let system = systems.entry(*name).or_insert_with(|| Value::Object(Map::new()));
            system[row.load.as_str()] = figures;
        }
    }
    let loads = rows.iter().map(|row| (row.load.clone(), json!({"resident": row.resident, "changes": row.changes})));
    systems.insert("loads".to_owned(), Value::Object(loads.collect()));
    Value::Object(systems)
}
