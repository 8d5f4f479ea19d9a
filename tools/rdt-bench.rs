//! How fast a looped model reads and generates, at any depth, and what that costs.

use std::process::ExitCode;

fn main() -> ExitCode {
    rdt::cli::bench::main()
}
