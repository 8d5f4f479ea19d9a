//! The environment variable `RDT_ISA`, which forces an instruction set.

/// The instruction set that the user forces, by name; `None` where the choice is left to us.
pub(crate) fn forced() -> Option<String> {
    std::env::var("RDT_ISA").ok().filter(|name| !name.is_empty())
}
