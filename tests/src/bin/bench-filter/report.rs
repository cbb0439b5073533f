//! Summing up: medians over rounds, for people and as JSON.

use std::time::Instant;

use anyhow::Result;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde_json::{Value, json};
use warmpath_tests::harness::{Envoy, EnvoyConfig, EnvoyOptions};

/// Where the target applies: a long chat.
const TARGET_SIZE: &str = "30kb";
/// CPU per request, in multiples of plain Envoy's: what is wanted, and what would be good.
const TARGET: f64 = 2.0;
const STRETCH: f64 = 1.6;

/// From starting Envoy until it serves, in seconds: the shortest of some starts, by turns.
pub struct Startup {
    pub plain: f64,
    pub warm: f64,
}

impl Startup {
    /// How often each is started.
    const STARTS: usize = 3;
    /// What the module may add, mostly Envoy compiling it.
    const MAY_ADD: f64 = 1.0;

    pub async fn measure() -> Result<Self> {
        let options = |file| anyhow::Ok(EnvoyOptions::new(EnvoyConfig::shipped(file)?));
        let (plain, warm) = (options("round-robin.yaml")?, options("warmpath.yaml")?);
        let mut least = Self { plain: f64::MAX, warm: f64::MAX };
        for _ in 0..Self::STARTS {
            for (options, seconds) in [(&plain, &mut least.plain), (&warm, &mut least.warm)] {
                let start = Instant::now();
                let _envoy = Envoy::start(options.clone()).await?;
                *seconds = seconds.min(start.elapsed().as_secs_f64());
            }
        }
        Ok(least)
    }
}

/// One proxy in one round.
pub struct Sample {
    /// CPU time of the whole Envoy process per request.
    pub cpu_us: f64,
    /// Median latency as the client sees it.
    pub p50_us: f64,
    /// 99th percentile of it.
    pub p99_us: f64,
    pub requests_per_second: f64,
}

/// Both proxies, one right after the other.
pub struct Round {
    pub plain: Sample,
    pub warm: Sample,
}

/// All rounds with bodies of one size.
pub struct Size {
    pub name: String,
    pub rounds: Vec<Round>,
    /// Share of requests that went to the deepest holder because it is that.
    pub holder_share: f64,
}

impl Size {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        let values = self.sorted(of);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
    }

    fn sorted(&self, of: impl Fn(&Round) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// Pairs are compared round by round: what slows the machine slows both.
    fn ratio(&self) -> (f64, f64, f64) {
        let of = |round: &Round| round.warm.cpu_us / round.plain.cpu_us;
        let values = self.sorted(of);
        (self.median(of), values[0], values[values.len() - 1])
    }
}

/// Prints a table, and whether the target was met.
pub fn print(sizes: &[Size], startup: &Startup) {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "body",
        "proxy",
        "CPU us/request",
        "p50 us",
        "p99 us",
        "requests/s",
        "CPU ratio (min-max)",
        "to holder",
    ]);
    for size in sizes {
        let (ratio, least, most) = size.ratio();
        let row = |proxy: &str, of: fn(&Round) -> &Sample, ratio: String, share: String| {
            let median = |field: fn(&Sample) -> f64| size.median(|round| field(of(round)));
            [
                size.name.clone(),
                proxy.to_owned(),
                format!("{:.1}", median(|s| s.cpu_us)),
                format!("{:.0}", median(|s| s.p50_us)),
                format!("{:.0}", median(|s| s.p99_us)),
                format!("{:.0}", median(|s| s.requests_per_second)),
                ratio,
                share,
            ]
        };
        table.add_row(row("round robin", |r| &r.plain, String::new(), String::new()));
        let share = format!("{:.1} %", size.holder_share * 100.0);
        table.add_row(row("Warmpath", |r| &r.warm, format!("{ratio:.2} ({least:.2}-{most:.2})"), share));
    }
    println!("{table}");
    println!(
        "One Envoy worker on a core of its own. CPU: all threads of the Envoy process, user and kernel, by /proc/PID/task/*/schedstat."
    );
    let added = startup.warm - startup.plain;
    println!(
        "Start-up: {:.2} s, with Warmpath {:.2} s. Target: at most {} s more: {}.",
        startup.plain,
        startup.warm,
        Startup::MAY_ADD,
        if added <= Startup::MAY_ADD { "met" } else { "NOT met" }
    );
    if let Some(size) = sizes.iter().find(|size| size.name == TARGET_SIZE) {
        let (ratio, ..) = size.ratio();
        let verdict = |met: bool| if met { "met" } else { "NOT met" };
        println!(
            "Target: at most {TARGET} times plain Envoy's CPU at {TARGET_SIZE}: {ratio:.2}, {}. Stretch {STRETCH}: {}.",
            verdict(ratio <= TARGET),
            verdict(ratio <= STRETCH)
        );
    }
}

/// The same, by size.
pub fn json(sizes: &[Size], startup: &Startup) -> Value {
    let proxy = |size: &Size, of: fn(&Round) -> &Sample| {
        let median = |field: fn(&Sample) -> f64| size.median(|round| field(of(round)));
        json!({
            "cpu_us": median(|s| s.cpu_us),
            "p50_us": median(|s| s.p50_us),
            "p99_us": median(|s| s.p99_us),
            "requests_per_second": median(|s| s.requests_per_second),
        })
    };
    let one = |size: &Size| {
        let (ratio, least, most) = size.ratio();
        json!({
            "envoy": proxy(size, |r| &r.plain),
            "warmpath": proxy(size, |r| &r.warm),
            "ratio": ratio,
            "ratio_min": least,
            "ratio_max": most,
            "holder_share": size.holder_share,
            "rounds": size.rounds.len(),
        })
    };
    let startup = json!({"envoy_s": startup.plain, "warmpath_s": startup.warm});
    let sizes = sizes.iter().map(|size| (size.name.clone(), one(size)));
    Value::Object(sizes.chain([("startup".to_owned(), startup)]).collect())
}
