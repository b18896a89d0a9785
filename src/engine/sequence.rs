//! provisional
use super::sync::atomic::{AtomicU64, Ordering};
#[allow(missing_docs)]
#[derive(Default)]
pub struct Sequencer(AtomicU64);
#[allow(missing_docs)]
impl Sequencer {
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}
