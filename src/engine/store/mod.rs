//! What every SQLite file of ironbus shares: how it is made, recognised, opened and
//! refused, how its errors read, and the checksum of a row. It knows no table: those
//! belong to the modules that keep them.

mod anchor;
mod checksum;
mod error;
mod make;
mod open;
mod schema;

pub(crate) use anchor::Anchor;
pub use checksum::Checksum;
pub use error::{Problem, StoreError};
pub(crate) use make::{beside, make_file};
pub use open::{Options, check, kind, open, open_reader};
pub use schema::{DEAD_LETTERS, JOURNAL, Schema};

/// Seconds since 1970, UTC, handed in by the caller; the engine reads no wall clock.
pub type WallSeconds = f64;

/// How far a write has gone when it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// In this process: lost with it.
    Memory,
    /// With the operating system: survives a kill of the process.
    Os,
    /// On the medium, by the strongest flush that there is: survives a loss of power.
    #[default]
    Fsync,
}

impl Durability {
    /// The level's name, as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Os => "os",
            Self::Fsync => "fsync",
        }
    }
}
