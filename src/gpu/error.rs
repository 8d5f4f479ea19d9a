//! What can go wrong before a session runs on a GPU.

/// An error of the GPU room. Nothing of it concerns a running session: what fails there is a
/// [`DeviceError`](crate::model::DeviceError), and the session goes on without its device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No driver shows any device.
    #[error("there is no GPU here that its driver shows (Vulkan, Metal or Direct3D 12); use --device cpu or auto")]
    NoDriver,
    /// The only devices are programs.
    #[error(
        "there is no GPU here, only software that acts as one ({0}); name it (--device gpu:NAME) to use it all the same"
    )]
    OnlySoftware(String),
    /// No device has this name.
    #[error("no GPU here is called '{name}'; there is {known}")]
    NoSuchDevice {
        /// As asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The driver would not open it.
    #[error("cannot open {name}: {why}")]
    Open {
        /// The device.
        name: String,
        /// What the driver said.
        why: String,
    },
    /// The model cannot be put there.
    #[error("cannot put the model on {name}: {why}")]
    Load {
        /// The device.
        name: String,
        /// What is missing.
        why: String,
    },
}
