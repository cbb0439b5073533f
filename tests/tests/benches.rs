//! Benches and checks that take minutes, for seconds: that they go on to work.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::process::{Command, Stdio};

fn ends_well(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{out}\n{error}", output.status);
}

#[test]
fn soak() {
    ends_well(env!("CARGO_BIN_EXE_soak"), &["--minutes", "0.1", "--engines", "8", "--blocks", "1024"]);
}

#[test]
fn bench_table_lag() {
    let args = ["--only", "lag", "--rate", "400", "--seconds", "5", "--blocks", "8192"];
    ends_well(env!("CARGO_BIN_EXE_bench-table"), &args);
}
