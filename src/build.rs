//! Has the linker lay out the library by `layout.ld`, where it can.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-changed=src/layout.ld");
    let layout = PathBuf::from(given("CARGO_MANIFEST_DIR")).join("src/layout.ld");
    if given("CARGO_CFG_TARGET_OS") == "linux" && follows(&layout) {
        println!("cargo::rustc-link-arg-cdylib=-T");
        println!("cargo::rustc-link-arg-cdylib={}", layout.display());
    }
}

/// Whether the linker that will be used knows such a layout: those of GNU and LLVM do, some do not. It
/// links a program of nothing to find out, and the library is as good without, only slower.
fn follows(layout: &Path) -> bool {
    let program = Path::new(&given("OUT_DIR")).join("nothing");
    let source = program.with_extension("rs");
    std::fs::write(&source, "fn main() {}\n").expect("the build's own folder can be written");
    let mut rustc = Command::new(given("RUSTC"));
    rustc.arg(&source).arg("-o").arg(&program);
    rustc.args(["--target", &given("TARGET")]);
    rustc.arg("-Clink-arg=-T");
    rustc.arg(format!("-Clink-arg={}", layout.display()));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    rustc.args(flags.split('\x1f').filter(|flag| !flag.is_empty()));
    let status = rustc.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What cargo says to every build script.
fn given(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
