//! Work that is queued once and run many times.

use std::ffi::c_void;
use std::ptr;

use nucleus_sampling::cuda::CudaError;

use super::device::{Stream, check};
use super::sys;

/// A CUDA graph that can be launched.
#[derive(Debug)]
pub(crate) struct Graph(*mut c_void);

// SAFETY: a graph that can be launched belongs to no thread.
unsafe impl Send for Graph {}

impl Graph {
    /// What `queue` queues on the stream, which does not run now.
    pub(crate) fn capture<E: From<CudaError>>(
        stream: &Stream,
        queue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        // SAFETY: the stream is alive.
        let code = unsafe { sys::cudaStreamBeginCapture(stream.raw(), sys::CAPTURE_THREAD_LOCAL) };
        check("cudaStreamBeginCapture", code)?;
        let queued = queue();
        let mut captured = ptr::null_mut();
        // SAFETY: the stream is alive and captures; the pointer is to a live variable.
        let code = unsafe { sys::cudaStreamEndCapture(stream.raw(), &raw mut captured) };
        let captured = check("cudaStreamEndCapture", code).map(|()| Captured(captured));
        queued?;
        let captured = captured?;
        let mut executable = ptr::null_mut();
        // SAFETY: the graph is alive, and the pointer is to a live variable.
        let code = unsafe { sys::cudaGraphInstantiate(&raw mut executable, captured.0, 0) };
        check("cudaGraphInstantiate", code)?;
        Ok(Self(executable))
    }

    /// Queues all of it.
    pub(crate) fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: graph and stream are alive. What the graph's kernels read and write is device memory (see the module).
        let code = unsafe { sys::cudaGraphLaunch(self.0, stream.raw()) };
        check("cudaGraphLaunch", code)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated by `capture`, destroyed once; a launch that runs is completed by the runtime.
        unsafe { sys::cudaGraphExecDestroy(self.0) };
    }
}

/// A graph from which one that can be launched is made.
struct Captured(*mut c_void);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: captured, destroyed once.
            unsafe { sys::cudaGraphDestroy(self.0) };
        }
    }
}
