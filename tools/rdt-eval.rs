//! Asks a model questions and counts right answers, by depth and exit rule: what depth buys, in one table.

use std::process::ExitCode;

fn main() -> ExitCode {
    rdt::cli::eval::main()
}
