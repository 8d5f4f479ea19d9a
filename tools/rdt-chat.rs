//! Chat with a recurrent-depth model in the terminal. `models/huginn-hops` is the built-in model as it was trained; `rdt-quantize`
//! made the file here from it, with the type q4_0.

use std::process::ExitCode;

/// Bytes at an address that suits every tensor of a GGUF file.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// The model for those who name none.
static BUILT_IN: &Aligned<[u8]> = &Aligned(*include_bytes!("../models/huginn-hops-q4_0.gguf"));

fn main() -> ExitCode {
    rdt::cli::chat::main(&BUILT_IN.0)
}
