//! Memory and streams of a device, owned.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;

use super::error::{CudaError, check};
use super::layout::{AnyBits, Plain};
use super::sys;

/// Number of CUDA devices.
///
/// # Errors
/// [`CudaError::NoDevice`] without a driver or a device.
pub fn device_count() -> Result<u32, CudaError> {
    let mut count: c_int = 0;
    // SAFETY: the pointer is to a live integer.
    let code = unsafe { sys::cudaGetDeviceCount(&raw mut count) };
    check("cudaGetDeviceCount", code)?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// Directs this thread's calls to a device.
pub(super) fn make_current(device: u32) -> Result<(), CudaError> {
    check_device(device)?;
    // SAFETY: takes a number.
    let code = unsafe { sys::cudaSetDevice(device as c_int) };
    check("cudaSetDevice", code)
}

/// Refuses a device that does not exist.
pub(super) fn check_device(device: u32) -> Result<(), CudaError> {
    let count = device_count()?;
    if device < count {
        Ok(())
    } else {
        Err(CudaError::Device { device, count })
    }
}

/// A stream that somebody else owns, such as that of a model whose logits are sampled.
#[derive(Clone, Copy, Debug)]
pub struct SharedStream {
    device: u32,
    raw: *mut c_void,
}

// SAFETY: a CUDA stream may be used from any thread.
unsafe impl Send for SharedStream {}
// SAFETY: as above; the value itself never changes.
unsafe impl Sync for SharedStream {}

impl SharedStream {
    /// The stream `raw` (a `cudaStream_t`, which a `CUstream` of the device's primary context is too) of a device.
    ///
    /// # Safety
    /// The stream belongs to that device, and lives until everything that was made with this value is dropped.
    #[must_use]
    pub const unsafe fn new(device: u32, raw: *mut c_void) -> Self {
        Self { device, raw }
    }

    /// The device's number.
    #[must_use]
    pub const fn device(&self) -> u32 {
        self.device
    }

    /// The stream (a `cudaStream_t`).
    #[must_use]
    pub const fn raw(&self) -> *mut c_void {
        self.raw
    }
}

/// A device and a stream; everything queued on it runs in order.
#[derive(Debug)]
pub(super) struct Stream {
    device: c_int,
    raw: *mut c_void,
    owned: bool,
}

// SAFETY: a CUDA stream may be used from any thread; every method makes its device current first.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(device: u32) -> Result<Self, CudaError> {
        check_device(device)?;
        make_current(device)?;
        // Only a stream that was created is destroyed: what a failed call leaves here is none.
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a live variable.
        let code =
            unsafe { sys::cudaStreamCreateWithFlags(&raw mut raw, sys::STREAM_NON_BLOCKING) };
        check("cudaStreamCreateWithFlags", code)?;
        Ok(Self {
            device: device as c_int,
            raw,
            owned: true,
        })
    }

    /// Somebody else's stream.
    pub(super) fn shared(stream: SharedStream) -> Result<Self, CudaError> {
        check_device(stream.device)?;
        Ok(Self {
            device: stream.device as c_int,
            raw: stream.raw,
            owned: false,
        })
    }

    pub(super) fn raw(&self) -> *mut c_void {
        self.raw
    }

    /// Directs this thread's calls to the device.
    pub(super) fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: takes a number.
        let code = unsafe { sys::cudaSetDevice(self.device) };
        check("cudaSetDevice", code)
    }

    /// Waits until everything queued is done.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is alive.
        let code = unsafe { sys::cudaStreamSynchronize(self.raw) };
        check("cudaStreamSynchronize", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned && !self.raw.is_null() {
            // SAFETY: created by `new`, destroyed once; work still queued is completed by the runtime.
            unsafe { sys::cudaStreamDestroy(self.raw) };
        }
    }
}

/// Growing device memory for values of one type.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    pointer: *mut c_void,
    capacity: usize,
    values: PhantomData<T>,
}

// SAFETY: device memory belongs to no thread.
unsafe impl<T> Send for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    pub(super) const fn new() -> Self {
        Self {
            pointer: ptr::null_mut(),
            capacity: 0,
            values: PhantomData,
        }
    }

    /// The memory's address on the device; null while nothing was reserved.
    pub(super) fn address(&self) -> *mut T {
        self.pointer.cast()
    }

    /// Makes room for `count` values, whose contents are undefined afterwards if there was less.
    pub(super) fn reserve(&mut self, count: usize) -> Result<(), CudaError> {
        if count <= self.capacity {
            return Ok(());
        }
        self.free();
        let capacity = count.next_power_of_two();
        // SAFETY: the pointer is to a live field.
        let code = unsafe { sys::cudaMalloc(&raw mut self.pointer, capacity * size_of::<T>()) };
        check("cudaMalloc", code)?;
        self.capacity = capacity;
        Ok(())
    }

    /// Queues a copy of `values` to the place of value `at`, in memory for `capacity` values.
    pub(super) fn write_at(
        &mut self,
        at: usize,
        values: &[T],
        capacity: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.reserve(capacity)?;
        if values.is_empty() {
            return Ok(());
        }
        assert!(
            at + values.len() <= self.capacity,
            "the memory was reserved for fewer values"
        );
        // SAFETY: the sum stays within the reserved memory, checked above.
        let to = unsafe { self.address().add(at) };
        // SAFETY: both ranges hold `values.len()` values of T, whose bytes are all initialised (`Plain`). The runtime has read pageable host
        // memory when the call returns, so the borrow may end.
        let code = unsafe {
            sys::cudaMemcpyAsync(
                to.cast(),
                values.as_ptr().cast(),
                size_of_val(values),
                sys::HOST_TO_DEVICE,
                stream.raw(),
            )
        };
        check("cudaMemcpyAsync", code)
    }

    /// Queues a copy of `count` values from one place to another that it does not overlap.
    pub(super) fn copy_within(
        &mut self,
        from: usize,
        to: usize,
        count: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        assert!(
            from.max(to) + count <= self.capacity && from.abs_diff(to) >= count,
            "the places lie within the memory and apart"
        );
        // SAFETY: both places and `count` values from them lie within the memory, checked above.
        let from = unsafe { self.address().add(from) };
        // SAFETY: as above.
        let to = unsafe { self.address().add(to) };
        // SAFETY: as above, and the ranges do not overlap.
        let code = unsafe {
            sys::cudaMemcpyAsync(
                to.cast(),
                from.cast(),
                count * size_of::<T>(),
                sys::DEVICE_TO_DEVICE,
                stream.raw(),
            )
        };
        check("cudaMemcpyAsync", code)
    }

    fn free(&mut self) {
        if !self.pointer.is_null() {
            // SAFETY: allocated by `reserve` and freed once; the runtime waits for work that uses it.
            unsafe { sys::cudaFree(self.pointer) };
        }
        self.pointer = ptr::null_mut();
        self.capacity = 0;
    }
}

/// Waits for everything queued and copies `count` values at an address of the device to `values`.
///
/// # Safety
/// There are that many values of the type at the address, on the stream's device.
pub(super) unsafe fn read_from<T: AnyBits + Default>(
    address: *const c_void,
    count: usize,
    values: &mut Vec<T>,
    stream: &Stream,
) -> Result<(), CudaError> {
    values.clear();
    values.resize(count, T::default());
    // SAFETY: both ranges hold `count` values, and every pattern of bytes is one (`AnyBits`); the stream is waited for before the borrow ends.
    let code = unsafe {
        sys::cudaMemcpyAsync(
            values.as_mut_ptr().cast(),
            address,
            count * size_of::<T>(),
            sys::DEVICE_TO_HOST,
            stream.raw(),
        )
    };
    check("cudaMemcpyAsync", code)?;
    stream.synchronize()
}

impl<T: AnyBits + Default> Buffer<T> {
    /// Waits for everything queued and copies the first `count` values to `values`.
    pub(super) fn read(
        &self,
        count: usize,
        values: &mut Vec<T>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        assert!(
            count <= self.capacity,
            "the memory was reserved for fewer values"
        );
        // SAFETY: the memory holds at least `count` values, checked above.
        unsafe { read_from(self.pointer, count, values, stream) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if !self.pointer.is_null() {
            // SAFETY: allocated by `reserve` and freed once.
            unsafe { sys::cudaFree(self.pointer) };
        }
    }
}
