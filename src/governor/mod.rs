//! A budget of time, energy and heat, turned into depth, threads and pace.
//!
//! A looped model can think less about a token, so a device that is slow, hot or nearly empty has a better way out than to stall. The
//! governor looks at every token and at what the sensors say, and decides before the next one:
//! 1. **depth** first: another [`Rung`] of the [`Ladder`], which holds the settings that a calibration found worth having and that
//!    lose no more than the quality floor ([`Budget::max_loss`]) allows. It never goes below, with one exception: where no
//!    calibrated setting meets the floor, the one that loses least is run, and it is said;
//! 2. then **threads**: fewer of them draw less power than they are slower by;
//! 3. then **pace**: pauses between tokens, which make up the rest.
//!
//! | [`Mode`] | without bounds | a rate or a time per token | temperature or energy | threads | pauses |
//! |---|---|---|---|---|---|
//! | `off` | nothing is governed | - | - | all | none |
//! | `quality` | the best rung | the deepest rung that is fast enough; faster is welcome | depth, threads, pauses | all, unless too hot | only when too hot |
//! | `balanced` | the cheapest rung that loses at most half of the floor | the deepest rung that is fast enough, paced to the rate | the same | all, unless too hot | to a target rate; when too hot |
//! | `saver` | the cheapest rung, paced to [`READING_RATE`] tokens per second | the cheapest rung, paced to the rate | the same | the most efficient number that holds the rate | as said |
//! | `auto` | `quality` on mains; `balanced` on battery; `saver` on a battery below 20 % (until it has 23 %) | | | | |
//!
//! A time per token ([`Budget::max_ms_per_token`]) is a bound and no pace: it causes no pauses, and `saver` keeps to its reading
//! pace unless the bound needs more. A model without a profile, or of a
//! family whose tokens never leave the loop early ([`can_exit`]), has a ladder of one rung, and threads and pace are what is left.
//!
//! A prompt is not paced, whatever it costs. Pressure on the processor ([`Readings::cpu_pressure`]) is shown and not acted on: slow
//! tokens say more. With a governor the same question can get another depth, since clocks and sensors decide; what it decided is kept
//! with a saved conversation, which replays to the bit.
//!
//! **How it decides.** A token is predicted to take (base + step × steps) of the profile, times what the latest 16 tokens took over
//! what they were predicted to take, the steps times what the latest text needed over what the calibration's did. One slow token
//! changes little, three in a row are believed. When the setting in force takes a tenth longer than allowed, the deepest rung that
//! does not is taken at once; when it takes 3 % longer for 12 tokens, likewise. Deeper again it goes when the prediction leaves 8 %
//! of room, 2 seconds after the last change at the earliest; each time that this was wrong trebles the wait. For heat, a controller
//! of the predicted temperature gives the share of full power that is allowed, and the rate is kept at that share as long as depth
//! can pay for it.
//!
//! [`Controller`] has no clock, does no I/O and allocates nothing per token, so that it runs in virtual time, as [`simulate`] has it.
//! Every [`Decision`] says why; [`Log`] writes them down, [`Summary`] shows the latest.

mod budget;
mod controller;
mod decision;
mod duty;
mod estimate;
mod ladder;
mod readings;
pub mod simulate;

pub use crate::exit::can_exit;
pub use budget::{Budget, Error, LEAST_RATE, MAX_LOSS, Mode, is_loss};
pub use controller::{Controller, LEAST_DUTY, LONGEST_PAUSE, Observation, READING_RATE};
pub use decision::{Cause, Decision, Log, Summary};
pub use ladder::{Ladder, Rung, whole_loop};
pub use readings::Readings;
