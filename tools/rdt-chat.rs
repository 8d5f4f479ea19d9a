//! Chat with a recurrent-depth model in the terminal. `models/README.md` says what the built-in model is.

use std::process::ExitCode;

/// Bytes at an address that suits every tensor of a GGUF file.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// The model for those who name none.
static BUILT_IN: &Aligned<[u8]> = &Aligned(*include_bytes!("../models/huginn-hops-q4_0.gguf"));

fn main() -> ExitCode {
    rdt::cli::chat::main(&BUILT_IN.0)
}
