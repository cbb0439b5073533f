//! A simulated vLLM engine as a program; see `warmpath_tests::sim`.

use clap::Parser;
use warmpath_tests::sim::{self, Config};

fn main() -> anyhow::Result<()> {
    sim::run(Config::parse())
}
