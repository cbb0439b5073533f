//! Summing up: medians over rounds, for people and as JSON.

use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde_json::{Value, json};

use crate::measure::{Case, Round};

/// Where the targets apply.
const TARGET_CASE: &str = "30 KB";
/// Microseconds in Envoy, and how many times as long tokenising must take there.
const TARGET_US: f64 = 25.0;
const TARGET_RATIO: f64 = 30.0;

/// One round, here and there: what slows the machine slows both.
pub struct Both {
    pub native: Round,
    pub wasm: Round,
}

/// One case.
pub struct Row {
    name: &'static str,
    /// Means of the chats that were timed.
    body_bytes: usize,
    prompt_bytes: usize,
    tokens: usize,
    rounds: Vec<Both>,
}

/// Over rounds.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Row {
    pub fn new(name: &'static str, case: &Case, rounds: Vec<Both>) -> Self {
        let chats = case.timed.len();
        let mean = |of: fn(&crate::measure::Chat) -> usize| case.timed.iter().map(of).sum::<usize>() / chats;
        let tokens = rounds[0].native.tokens / chats;
        Self { name, body_bytes: mean(|c| c.body.len()), prompt_bytes: mean(|c| c.prompt.len()), tokens, rounds }
    }

    fn spread(&self, of: impl Fn(&Both) -> f64) -> Spread {
        let mut values: Vec<f64> = self.rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let (middle, last) = (values.len() / 2, values.len() - 1);
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Spread { median, min: values[0], max: values[last] }
    }

    fn us(&self, of: impl Fn(&Both) -> f64) -> Spread {
        self.spread(|both| of(both) / 1e3)
    }

    fn ratio(&self, of: impl Fn(&Both) -> &Round) -> Spread {
        self.spread(|both| of(both).tokenising_ns / of(both).warmpath_ns)
    }
}

impl Spread {
    fn text(&self) -> String {
        let digits = |value: f64| if value < 100.0 { 1 } else { 0 };
        let number = |value: f64| format!("{value:.*}", digits(value));
        format!("{} ({}-{})", number(self.median), number(self.min), number(self.max))
    }

    fn json(&self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

/// Prints a table, and whether the targets were met.
pub fn print(rows: &[Row]) {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "body: us, median (min-max)",
        "native",
        "Envoy",
        "tokenising: native",
        "Envoy",
        "times: native",
        "Envoy",
    ]);
    for row in rows {
        let columns = [
            row.us(|b| b.native.warmpath_ns),
            row.us(|b| b.wasm.warmpath_ns),
            row.us(|b| b.native.tokenising_ns),
            row.us(|b| b.wasm.tokenising_ns),
            row.ratio(|b| &b.native),
            row.ratio(|b| &b.wasm),
        ];
        table.add_row([row.name.to_owned()].into_iter().chain(columns.iter().map(Spread::text)));
    }
    println!("{table}");
    if let Some(row) = rows.iter().find(|row| row.name == TARGET_CASE) {
        let (us, ratio) = (row.us(|b| b.wasm.warmpath_ns).median, row.ratio(|b| &b.wasm).median);
        let verdict = |met: bool| if met { "met" } else { "NOT met" };
        println!("Targets at {TARGET_CASE} in Envoy:");
        println!("  less than {TARGET_US} us: {us:.1}, {}", verdict(us < TARGET_US));
        println!("  {TARGET_RATIO} times less than tokenising: {ratio:.1}, {}", verdict(ratio >= TARGET_RATIO));
    }
}

/// The same. Times in microseconds per chat; ratios: tokenising to Warmpath.
pub fn json(rows: &[Row]) -> Value {
    let side = |row: &Row, of: fn(&Both) -> &Round| {
        json!({
            "us": row.us(|b| of(b).warmpath_ns).json(),
            "fingerprints_us": row.us(|b| of(b).fingerprints_ns).json(),
            "tokenising_us": row.us(|b| of(b).tokenising_ns).json(),
            "ratio": row.ratio(of).json(),
        })
    };
    let row = |row: &Row| {
        json!({
            "case": row.name,
            "body_bytes": row.body_bytes,
            "prompt_bytes": row.prompt_bytes,
            "tokens": row.tokens,
            "rounds": row.rounds.len(),
            "native": side(row, |b| &b.native),
            "wasm": side(row, |b| &b.wasm),
        })
    };
    json!({
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "targets": {"case": TARGET_CASE, "wasm_us": TARGET_US, "wasm_ratio": TARGET_RATIO},
    })
}
