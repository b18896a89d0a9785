//! Named steps at which a test may end the process, hold the writer, or let the step fail.
//! Without the feature `faults` there is nothing of it.

use crate::engine::store::Problem;

/// What a test does at a step.
#[cfg(feature = "faults")]
pub type Hook = std::sync::Arc<dyn Fn(&'static str) -> Result<(), Problem> + Send + Sync>;

/// See the module.
#[derive(Clone, Default)]
pub struct Faults {
    #[cfg(feature = "faults")]
    hook: Option<Hook>,
}

impl Faults {
    /// Calls this at each step.
    #[cfg(feature = "faults")]
    pub fn new(hook: Hook) -> Self {
        Self { hook: Some(hook) }
    }

    /// The writer has come to this step.
    #[inline]
    pub(super) fn at(&self, step: &'static str) -> Result<(), Problem> {
        #[cfg(feature = "faults")]
        if let Some(hook) = &self.hook {
            return hook(step);
        }
        let _ = step;
        Ok(())
    }
}
