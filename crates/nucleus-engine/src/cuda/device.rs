//! A device, a stream of it, and events.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;

use nucleus_sampling::cuda::{CudaError, DeviceLogits, Dtype, SharedStream, device_count};

use super::sys;

/// `Ok` if a call of the runtime, or of a kernel's launcher, succeeded.
pub(crate) fn check(call: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        0 => Ok(()),
        code => Err(CudaError::runtime(call, code)),
    }
}

/// Directs this thread's calls to a device that exists.
fn select(device: u32) -> Result<(), CudaError> {
    let count = device_count()?;
    if device >= count {
        return Err(CudaError::Device { device, count });
    }
    check("cudaSetDevice", sys::cudaSetDevice(device as c_int))
}

/// A stream of a device; everything queued on it runs in order.
#[derive(Debug)]
pub(crate) struct Stream {
    device: u32,
    raw: *mut c_void,
}

// SAFETY: a CUDA stream may be used from any thread; whoever queues work makes the device current first.
unsafe impl Send for Stream {}
// SAFETY: as above; the value itself never changes.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(device: u32) -> Result<Arc<Self>, CudaError> {
        select(device)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a live variable.
        let code =
            unsafe { sys::cudaStreamCreateWithFlags(&raw mut raw, sys::STREAM_NON_BLOCKING) };
        check("cudaStreamCreateWithFlags", code)?;
        Ok(Arc::new(Self { device, raw }))
    }

    pub(super) fn raw(&self) -> *mut c_void {
        self.raw
    }

    /// The stream for others, who use it no longer than it lives.
    pub(crate) fn shared(&self) -> SharedStream {
        // SAFETY: the stream is of this device; that it outlives what is made with it is what `Compute::Cuda` asks of its users.
        unsafe { SharedStream::new(self.device, self.raw) }
    }

    /// Directs this thread's calls to the device.
    pub(crate) fn make_current(&self) -> Result<(), CudaError> {
        check("cudaSetDevice", sys::cudaSetDevice(self.device as c_int))
    }

    /// Waits until everything queued is done.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is alive.
        let code = unsafe { sys::cudaStreamSynchronize(self.raw) };
        check("cudaStreamSynchronize", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once; work still queued is completed by the runtime.
        unsafe { sys::cudaStreamDestroy(self.raw) };
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(crate) struct Event(*mut c_void);

// SAFETY: a CUDA event may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// An event that can be waited for.
    pub(crate) fn new() -> Result<Self, CudaError> {
        Self::with_flags(sys::EVENT_DISABLE_TIMING)
    }

    /// An event that also tells when it was.
    pub(crate) fn timed() -> Result<Self, CudaError> {
        Self::with_flags(0)
    }

    fn with_flags(flags: u32) -> Result<Self, CudaError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a live variable.
        let code = unsafe { sys::cudaEventCreateWithFlags(&raw mut raw, flags) };
        check("cudaEventCreateWithFlags", code)?;
        Ok(Self(raw))
    }

    /// Makes it the point that the stream's work has come to now.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: event and stream are alive.
        let code = unsafe { sys::cudaEventRecord(self.0, stream.raw()) };
        check("cudaEventRecord", code)
    }

    /// Waits until the point is reached; an event that was never recorded is.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the event is alive.
        let code = unsafe { sys::cudaEventSynchronize(self.0) };
        check("cudaEventSynchronize", code)
    }

    /// Milliseconds from another point, which was reached, as was this.
    pub(crate) fn milliseconds_since(&self, start: &Self) -> Result<f32, CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: the pointer is to a live number, and both events are alive.
        let code = unsafe { sys::cudaEventElapsedTime(&raw mut milliseconds, start.0, self.0) };
        check("cudaEventElapsedTime", code)?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `with_flags`, destroyed once.
        unsafe { sys::cudaEventDestroy(self.0) };
    }
}

/// Waits for rows of logits of a step and copies them to the host: `[rows, vocab]`.
///
/// # Errors
/// [`CudaError::Runtime`] if the device fails; [`CudaError::Batch`] if the logits are not f32.
pub fn rows_to_host(
    stream: SharedStream,
    logits: &DeviceLogits,
    rows: usize,
) -> Result<Vec<f32>, CudaError> {
    if logits.dtype() != Dtype::F32 {
        return Err(CudaError::Batch {
            field: "dtype",
            value: logits.dtype() as u64,
            range: "f32".to_owned(),
        });
    }
    select(stream.device())?;
    let width = logits.row_len() as usize * size_of::<f32>();
    let mut host = vec![0.0_f32; logits.row_len() as usize * rows];
    // SAFETY: the device's rows lie within the memory that whoever made `logits` vouched for, the host's fill the vector exactly; every pattern
    // of bits is an f32, and the stream is waited for before the vector is used.
    let code = unsafe {
        sys::cudaMemcpy2DAsync(
            host.as_mut_ptr().cast(),
            width,
            logits.address(),
            logits.row_stride() as usize * size_of::<f32>(),
            width,
            rows,
            sys::DEVICE_TO_HOST,
            stream.raw(),
        )
    };
    check("cudaMemcpy2DAsync", code)?;
    // SAFETY: the stream is alive, as `SharedStream` asks.
    let code = unsafe { sys::cudaStreamSynchronize(stream.raw()) };
    check("cudaStreamSynchronize", code)?;
    Ok(host)
}
