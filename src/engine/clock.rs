//! Time, as the engine sees it: nanoseconds on a monotonic clock that is handed in
//! with every call. The engine never looks at a clock by itself.

/// Nanoseconds since a moment of the caller's choice.
pub type Nanos = u64;

/// One second.
pub const SECOND: Nanos = 1_000_000_000;
