//! ironbus is to events what SQLite is to tables: a library, no server.
//!
//! The crate has two doors. [`engine`] is pure Rust and does the work for every
//! event; it knows nothing of Python, so it is tested without an interpreter.
//! `py` (behind the feature `python`) is the only place that speaks PyO3.

#[cfg(feature = "libmimalloc-sys")]
pub mod allocator;
pub mod engine;

#[cfg(feature = "python")]
mod py;
