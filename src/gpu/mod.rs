//! The looped forward pass on a GPU: Metal on Apple's systems, Vulkan or Direct3D 12 elsewhere, through `wgpu`.
//!
//! [`devices`] lists what there is, [`Gpu::open`] opens one, [`load`] puts a model's weights there. The model is then told
//! ([`Model::place_on`](crate::model::Model::place_on)), and its sessions run on the device.

mod adapter;
mod buffers;
mod builder;
mod error;
mod layout;
mod program;
mod session;
mod shader;
mod weights;

pub use adapter::{Abilities, DeviceInfo, Gpu, Kind, Within, devices};
pub use error::Error;

use crate::model::{Device, Model};
use std::sync::Arc;

/// Puts a model's weights on a GPU. `progress` is told of bytes done and bytes in all.
///
/// # Errors
/// [`Error::Load`]: there is not enough memory, or the device's limits are too narrow for the model.
pub fn load(gpu: &Arc<Gpu>, model: &Model, progress: &mut dyn FnMut(u64, u64)) -> Result<Arc<dyn Device>, Error> {
    Ok(Arc::new(weights::Weights::load(gpu, model, progress)?))
}
