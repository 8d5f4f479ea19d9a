//! `rdt-calibrate`; everything is in the library.

fn main() -> std::process::ExitCode {
    rdt::cli::calibrate::main()
}
