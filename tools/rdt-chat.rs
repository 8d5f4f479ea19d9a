//! Chat with a recurrent-depth model in the terminal.

use std::process::ExitCode;

fn main() -> ExitCode {
    rdt::cli::chat::main()
}
