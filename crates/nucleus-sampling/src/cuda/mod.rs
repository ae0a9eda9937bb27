//! The sampler on a CUDA device: the kernel of `cuda/kernels`, safe to call.
//!
//! The only module beside the host's vector instructions that may be unsafe. `sys` declares C functions, `layout` the data they
//! share, `device` owns memory and streams, `pinned` memory of the host that a device reaches, `pack` turns rows into that data, `upload` brings it over, and
//! `queue` holds what is not collected yet.
#![allow(unsafe_code)]

mod device;
mod error;
mod info;
mod layout;
mod logits;
mod pack;
mod pinned;
mod queue;
mod sampler;
mod slots;
mod sys;
mod upload;

pub use device::{SharedStream, device_count};
pub use error::CudaError;
pub use info::{
    CudaVersion, DeviceInfo, DeviceMemory, compiled_archs, device_info, device_memory,
    driver_version, runtime_version,
};
pub use layout::{MAX_STOPS, MAX_TOP};
pub use logits::{DeviceLogits, DeviceTokens, Dtype};
pub use queue::{MAX_QUEUED, PlacedRow};
pub use sampler::{CudaOptions, CudaSampler, MAX_ROWS};
pub use slots::{SlotEnd, SlotRow};
