//! Every family against its public reference implementation.

#[path = "../common/mod.rs"]
mod common;

mod hrm_text;
mod looped_gpt2;
mod malformed;
#[cfg(feature = "cli")]
mod trace;
