//! A CUDA device as the engine uses it: memory, one stream, graphs, and the decoder's kernels, safe to call.
//!
//! One of the modules that may be unsafe; what is built on it, `models/cuda`, may not. `sys` declares C functions. The runtime is the one that
//! nucleus-sampling links, statically: it finds the driver when it is first called.
//!
//! What is queued reads and writes device memory only, and a device's memory is no memory of this process: a wrong address would be an error of the
//! device, or wrong numbers, but no undefined behaviour here. The kernels' wrappers check sizes all the same. Host memory that the device
//! reads is pinned, belongs to an `Uploader`, and is written again only when it was read.
#![allow(unsafe_code)]

mod at_work;
mod device;
mod graph;
mod kernels;
mod memory;
mod sys;

pub(crate) use at_work::AtWork;
pub use device::rows_to_host;
pub(crate) use device::{Event, Stream};
pub(crate) use graph::Graph;
pub(crate) use kernels::{
    Activations, Attend, CacheSlice, Kind, Matrix, NO_DRAWN_ROW, Place, RotateStore, TakeTokens,
    add_norm, attend, attention_workspace, cache_block_bytes, embed, gated, gather_rows, linear,
    linear_workspace, matrix_bytes, pack, rms_norm, rotate_store, rotations, soft_cap, take_tokens,
    tile_rows,
};
pub(crate) use memory::{Arena, Memory, Slice, Uploader};
