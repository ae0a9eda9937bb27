//! The C functions: the kernels' (`cuda/include/sampling_config.h`) and those of the CUDA runtime that a sampler needs. No logic.

use std::ffi::{c_char, c_int, c_void};

use super::layout::{DeviceDescription, SamplingBatch, SamplingLogprob, SamplingOrder};

/// `cudaMemcpyHostToDevice`.
pub(super) const HOST_TO_DEVICE: c_int = 1;
/// `cudaMemcpyDeviceToHost`.
pub(super) const DEVICE_TO_HOST: c_int = 2;
/// `cudaMemcpyDeviceToDevice`.
pub(super) const DEVICE_TO_DEVICE: c_int = 3;
/// `cudaStreamNonBlocking`: does not wait for the legacy default stream.
pub(super) const STREAM_NON_BLOCKING: u32 = 1;
/// `cudaEventDisableTiming`: an event that is only waited for.
pub(super) const EVENT_DISABLE_TIMING: u32 = 2;
/// `cudaHostAllocDefault`.
pub(super) const HOST_ALLOC_DEFAULT: u32 = 0;

unsafe extern "C" {
    pub(super) fn sampling_workspace_size(rows: u32, max_edited: u32) -> usize;
    pub(super) fn launch_sorted_sample_batch(
        batch: *const SamplingBatch,
        order: *const SamplingOrder,
        workspace: *mut c_void,
        workspace_bytes: usize,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn launch_top_logprobs(
        batch: *const SamplingBatch,
        count: u32,
        top: *mut SamplingLogprob,
        stream: *mut c_void,
    ) -> c_int;

    pub(super) fn launch_top_processed(
        batch: *const SamplingBatch,
        count: u32,
        top: *mut SamplingLogprob,
        workspace: *mut c_void,
        workspace_bytes: usize,
        stream: *mut c_void,
    ) -> c_int;

    pub(super) fn sampling_describe_device(device: c_int, out: *mut DeviceDescription) -> c_int;

    pub(super) fn cudaDriverGetVersion(version: *mut c_int) -> c_int;
    pub(super) fn cudaRuntimeGetVersion(version: *mut c_int) -> c_int;
    pub(super) fn cudaMemGetInfo(free: *mut usize, total: *mut usize) -> c_int;
    pub(super) fn cudaGetDeviceCount(count: *mut c_int) -> c_int;
    pub(super) fn cudaSetDevice(device: c_int) -> c_int;
    pub(super) safe fn cudaGetLastError() -> c_int;
    pub(super) fn cudaGetErrorName(error: c_int) -> *const c_char;
    pub(super) fn cudaGetErrorString(error: c_int) -> *const c_char;
    pub(super) fn cudaMalloc(pointer: *mut *mut c_void, bytes: usize) -> c_int;
    pub(super) fn cudaFree(pointer: *mut c_void) -> c_int;
    pub(super) fn cudaMemcpyAsync(
        to: *mut c_void,
        from: *const c_void,
        bytes: usize,
        kind: c_int,
        stream: *mut c_void,
    ) -> c_int;
    pub(super) fn cudaHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: u32) -> c_int;
    pub(super) fn cudaFreeHost(pointer: *mut c_void) -> c_int;
    pub(super) fn cudaEventCreateWithFlags(event: *mut *mut c_void, flags: u32) -> c_int;
    pub(super) fn cudaEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int;
    pub(super) fn cudaEventSynchronize(event: *mut c_void) -> c_int;
    pub(super) fn cudaEventDestroy(event: *mut c_void) -> c_int;
    pub(super) fn cudaStreamCreateWithFlags(stream: *mut *mut c_void, flags: u32) -> c_int;
    pub(super) fn cudaStreamDestroy(stream: *mut c_void) -> c_int;
    pub(super) fn cudaStreamSynchronize(stream: *mut c_void) -> c_int;
}

#[cfg(test)]
unsafe extern "C" {
    /// Writes the 35 fields of a config as the C++ compiler sees them.
    pub(super) fn sampling_config_fields(config: *const crate::SamplingConfig, fields: *mut f64);
}
