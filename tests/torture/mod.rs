//! The long form of the fault tests: `make torture` asks for more of the same work and gathers
//! what was done.
#![allow(dead_code)] // each test file uses its part of it

use std::fs::OpenOptions;
use std::io::Write;

/// How often the work is done: shorter in the gate, longer in `make torture`.
pub fn times(short: u64, long: u64) -> u64 {
    match std::env::var_os("IRONBUS_TORTURE_REPORT") {
        Some(_) => long,
        None => short,
    }
}

/// Adds to the report what a test has done, when all of it held.
pub fn done(what: &str, count: u64) {
    let Some(path) = std::env::var_os("IRONBUS_TORTURE_REPORT") else {
        println!("{what}: {count}");
        return;
    };
    let mut report = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .expect("a report");
    writeln!(report, "{what}\t{count}").expect("written");
}

/// Adds to the report that a negative control has failed, as it should.
pub fn control() {
    done("negative controls that failed as they should", 1);
}
