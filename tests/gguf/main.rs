//! The GGUF container from outside: hostile files, and files that must come back as they were.

mod hostile;
mod memory;
mod round_trip;
