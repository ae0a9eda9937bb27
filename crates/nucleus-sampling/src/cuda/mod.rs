//! The sampler on a CUDA device: the kernel of `cuda/kernels`, safe to call.
//!
//! The only module beside the host's vector instructions that may be unsafe. `sys` declares C functions, `layout` the data they
//! share, `device` owns memory and streams, `pack` turns rows into that data.
#![allow(unsafe_code)]

mod device;
mod error;
mod layout;
mod pack;
mod sampler;
mod slots;
mod sys;

pub use device::{SharedStream, device_count};
pub use error::CudaError;
pub use sampler::{CudaOptions, CudaSampler, DeviceLogits, DeviceTokens, Dtype, MAX_ROWS};
pub use slots::SlotRow;
