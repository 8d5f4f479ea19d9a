//! The programs themselves, run as a user runs them.

mod bench;
mod devices;
mod inspect;
mod interrupted;
mod malformed;
mod malformed_checkpoint;
mod measured;
mod models;
mod programs;
mod quantize;
mod tokenizers;
mod usage;
