//! Governor.
mod budget;
mod controller;
mod decision;
mod duty;
mod estimate;
mod ladder;
mod readings;
pub mod simulate;
pub use budget::{Budget, Error, MAX_LOSS, Mode};
pub use controller::{Controller, LEAST_DUTY, Observation, READING_RATE};
pub use decision::{Cause, Decision, Log, Summary};
pub use ladder::{Ladder, Rung, can_exit, whole_loop};
pub use readings::Readings;
