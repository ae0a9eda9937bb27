//! Memory of the host that a device reads and writes by itself, and events that say when it has.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;

use super::device::Stream;
use super::error::{CudaError, check};
use super::layout::AnyBits;
use super::sys;

/// Growing page-locked memory for values of one type.
#[derive(Debug)]
pub(super) struct Pinned<T> {
    pointer: *mut c_void,
    capacity: usize,
    values: PhantomData<T>,
}

// SAFETY: the memory belongs to no thread.
unsafe impl<T> Send for Pinned<T> {}

impl<T: AnyBits> Pinned<T> {
    pub(super) const fn new() -> Self {
        Self {
            pointer: ptr::null_mut(),
            capacity: 0,
            values: PhantomData,
        }
    }

    /// Makes room for `count` values, which are all zero bits if there was less. No copy from or to the memory may be under way.
    pub(super) fn reserve(&mut self, count: usize) -> Result<(), CudaError> {
        if count <= self.capacity {
            return Ok(());
        }
        self.free();
        let capacity = count.next_power_of_two();
        let bytes = capacity * size_of::<T>();
        // SAFETY: the pointer is to a live field.
        let code =
            unsafe { sys::cudaHostAlloc(&raw mut self.pointer, bytes, sys::HOST_ALLOC_DEFAULT) };
        check("cudaHostAlloc", code)?;
        // SAFETY: so many bytes were just allocated.
        unsafe { ptr::write_bytes(self.pointer.cast::<u8>(), 0, bytes) };
        self.capacity = capacity;
        Ok(())
    }

    pub(super) fn address(&self) -> *mut c_void {
        self.pointer
    }

    /// The first `count` values. No copy to the memory may be under way.
    pub(super) fn values(&self, count: usize) -> &[T] {
        assert!(
            count <= self.capacity,
            "the memory was reserved for fewer values"
        );
        if count == 0 {
            return &[];
        }
        // SAFETY: there are so many values, aligned as the allocator aligns everything, and every pattern of bytes is one.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), count) }
    }

    /// The first `count` values. No copy from or to the memory may be under way.
    pub(super) fn values_mut(&mut self, count: usize) -> &mut [T] {
        assert!(
            count <= self.capacity,
            "the memory was reserved for fewer values"
        );
        if count == 0 {
            return &mut [];
        }
        // SAFETY: as in `values`, and the borrow is this value's only one.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), count) }
    }
}

impl<T> Pinned<T> {
    fn free(&mut self) {
        if !self.pointer.is_null() {
            // SAFETY: allocated by `reserve` and freed once; the runtime waits for copies that use it.
            unsafe { sys::cudaFreeHost(self.pointer) };
        }
        self.pointer = ptr::null_mut();
        self.capacity = 0;
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        self.free();
    }
}

/// A place in a stream that can be waited for.
#[derive(Debug)]
pub(super) struct Event {
    raw: *mut c_void,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// An event that has come: waiting for it takes no time. Belongs to the device that is current.
    pub(super) fn new() -> Result<Self, CudaError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a live variable.
        let code =
            unsafe { sys::cudaEventCreateWithFlags(&raw mut raw, sys::EVENT_DISABLE_TIMING) };
        check("cudaEventCreateWithFlags", code)?;
        Ok(Self { raw })
    }

    /// Moves the event behind everything that is queued.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both are alive, and of one device.
        let code = unsafe { sys::cudaEventRecord(self.raw, stream.raw()) };
        check("cudaEventRecord", code)
    }

    /// Waits until what was queued before the event is done.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event is alive.
        let code = unsafe { sys::cudaEventSynchronize(self.raw) };
        check("cudaEventSynchronize", code)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        unsafe { sys::cudaEventDestroy(self.raw) };
    }
}
