//! Memory of a device, and of the host where the device reads it.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use nucleus_sampling::cuda::CudaError;

use super::device::{Event, Stream, check};
use super::sys;

/// Of everything in an arena, in bytes: what the kernels ask for, and whole sectors.
const ALIGNMENT: usize = 256;

/// Memory of a device.
#[derive(Debug)]
pub(crate) struct Memory {
    address: *mut c_void,
    bytes: usize,
    stream: Arc<Stream>,
}

// SAFETY: device memory belongs to no thread.
unsafe impl Send for Memory {}
// SAFETY: as above; the value itself never changes.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Arc<Self>, CudaError> {
        stream.make_current()?;
        let mut address = ptr::null_mut();
        if bytes > 0 {
            // SAFETY: the pointer is to a live variable.
            let code = unsafe { sys::cudaMalloc(&raw mut address, bytes) };
            check("cudaMalloc", code)?;
        }
        Ok(Arc::new(Self {
            address,
            bytes,
            stream: Arc::clone(stream),
        }))
    }

    /// Memory that work on the stream finds full of zeros.
    pub(crate) fn zeroed(stream: &Arc<Stream>, bytes: usize) -> Result<Arc<Self>, CudaError> {
        let memory = Self::new(stream, bytes)?;
        // SAFETY: so many bytes are there; null has none.
        let code = unsafe { sys::cudaMemsetAsync(memory.address, 0, bytes, stream.raw()) };
        check("cudaMemsetAsync", code)?;
        Ok(memory)
    }

    /// All of it.
    pub(crate) fn whole(self: &Arc<Self>) -> Slice<u8> {
        Slice {
            memory: Arc::clone(self),
            offset: 0,
            len: self.bytes,
            values: PhantomData,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.address.is_null() {
            // SAFETY: allocated by `new` and freed once; the runtime waits for work that uses it.
            unsafe { sys::cudaFree(self.address) };
        }
    }
}

/// Values of one type in a device's memory, which lives as long as they do.
#[derive(Debug)]
pub(crate) struct Slice<T> {
    memory: Arc<Memory>,
    /// In bytes.
    offset: usize,
    len: usize,
    values: PhantomData<fn() -> T>,
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        Self {
            memory: Arc::clone(&self.memory),
            ..*self
        }
    }
}

impl<T> Slice<T> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Their address on the device.
    pub(super) fn address(&self) -> *mut T {
        self.memory.address.wrapping_byte_add(self.offset).cast()
    }

    /// Some of them.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn part(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "{start} + {len} of {}", self.len);
        Self {
            memory: Arc::clone(&self.memory),
            offset: self.offset + start * size_of::<T>(),
            len,
            values: PhantomData,
        }
    }

    /// The same memory as bytes.
    pub(crate) fn bytes(&self) -> Slice<u8> {
        Slice {
            memory: Arc::clone(&self.memory),
            offset: self.offset,
            len: self.len * size_of::<T>(),
            values: PhantomData,
        }
    }
}

impl Slice<u32> {
    /// The numbers two by two.
    pub(crate) fn pairs(&self) -> Slice<[u32; 2]> {
        Slice {
            memory: Arc::clone(&self.memory),
            offset: self.offset,
            len: self.len / 2,
            values: PhantomData,
        }
    }
}

impl Slice<u8> {
    /// Queues copies of `height` runs of `width` bytes, from `from` on to `to` on, each `pitch` bytes behind the one before.
    ///
    /// # Panics
    /// If they do not lie in the memory.
    pub(crate) fn copy_within(
        &self,
        [from, to]: [usize; 2],
        [width, height, pitch]: [usize; 3],
    ) -> Result<(), CudaError> {
        let end = from.max(to) + pitch * height.saturating_sub(1) + width;
        assert!(end <= self.len, "copies end at {end} in {} bytes", self.len);
        let base = self.address();
        // SAFETY: both places lie in the memory, as checked; two blocks do not overlap.
        let code = unsafe {
            sys::cudaMemcpy2DAsync(
                base.wrapping_add(to).cast(),
                pitch,
                base.wrapping_add(from).cast(),
                pitch,
                width,
                height,
                sys::DEVICE_TO_DEVICE,
                self.memory.stream.raw(),
            )
        };
        check("cudaMemcpy2DAsync", code)
    }
}

/// A piece of memory that is handed out from its beginning on.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Arc<Memory>,
    used: usize,
}

impl Arena {
    pub(crate) fn new(stream: &Arc<Stream>, bytes: u64) -> Result<Self, CudaError> {
        Ok(Self {
            memory: Memory::new(stream, bytes as usize)?,
            used: 0,
        })
    }

    /// Bytes that so many values take.
    pub(crate) fn bytes_of<T>(len: usize) -> u64 {
        (len * size_of::<T>()).next_multiple_of(ALIGNMENT) as u64
    }

    /// Memory for so many values.
    ///
    /// # Panics
    /// If there is none left: whoever made the arena counted what would be taken.
    pub(crate) fn take<T>(&mut self, len: usize) -> Slice<T> {
        let slice = Slice {
            memory: Arc::clone(&self.memory),
            offset: self.used,
            len,
            values: PhantomData,
        };
        self.used += Self::bytes_of::<T>(len) as usize;
        assert!(
            self.used <= self.memory.bytes,
            "{} bytes are taken of {}",
            self.used,
            self.memory.bytes
        );
        slice
    }
}

/// Copies to a device through pinned memory: while one piece is copied, the next is written.
#[derive(Debug)]
pub(crate) struct Uploader {
    stream: Arc<Stream>,
    pieces: Vec<Pinned>,
    next: usize,
}

/// Host memory that the device reads.
#[derive(Debug)]
struct Pinned {
    address: *mut u8,
    bytes: usize,
    /// When the device has read it.
    read: Event,
}

// SAFETY: the memory is the value's own.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(bytes: usize) -> Result<Self, CudaError> {
        let mut address = ptr::null_mut();
        // SAFETY: the pointer is to a live variable.
        let code = unsafe { sys::cudaMallocHost(&raw mut address, bytes) };
        check("cudaMallocHost", code)?;
        let address: *mut u8 = address.cast();
        // SAFETY: the runtime has just allocated so many bytes there.
        unsafe { address.write_bytes(0, bytes) };
        let read = Event::new().inspect_err(|_| {
            // SAFETY: allocated above and not used.
            unsafe { sys::cudaFreeHost(address.cast()) };
        })?;
        Ok(Self {
            address,
            bytes,
            read,
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // After an error there is nothing that still reads.
        let _ = self.read.synchronize();
        // SAFETY: allocated by `new` and freed once; the device has read it.
        unsafe { sys::cudaFreeHost(self.address.cast()) };
    }
}

impl Uploader {
    /// With so many pieces of so many bytes.
    pub(crate) fn new(
        stream: &Arc<Stream>,
        pieces: usize,
        bytes: usize,
    ) -> Result<Self, CudaError> {
        stream.make_current()?;
        Ok(Self {
            stream: Arc::clone(stream),
            pieces: (0..pieces)
                .map(|_| Pinned::new(bytes))
                .collect::<Result<_, _>>()?,
            next: 0,
        })
    }

    /// The largest piece.
    pub(crate) fn piece_bytes(&self) -> usize {
        self.pieces[0].bytes
    }

    /// Lets `write` write one piece, and queues its copy to all of `to`.
    ///
    /// # Panics
    /// If `to` is larger than a piece.
    pub(crate) fn send<E: From<CudaError>>(
        &mut self,
        to: &Slice<u8>,
        write: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if to.len() == 0 {
            return Ok(());
        }
        let piece = &mut self.pieces[self.next];
        assert!(to.len() <= piece.bytes, "a piece has {} bytes", piece.bytes);
        piece.read.synchronize()?;
        // SAFETY: the memory has so many bytes, all of them initialised; the device has read them, and the value's exclusive borrow keeps everybody
        // else away.
        let bytes = unsafe { std::slice::from_raw_parts_mut(piece.address, to.len()) };
        write(bytes)?;
        // SAFETY: both places have so many bytes; the host's are not written before the event that is recorded behind the copy.
        let code = unsafe {
            sys::cudaMemcpyAsync(
                to.address().cast(),
                piece.address.cast(),
                to.len(),
                sys::HOST_TO_DEVICE,
                self.stream.raw(),
            )
        };
        check("cudaMemcpyAsync", code)?;
        piece.read.record(&self.stream)?;
        self.next = (self.next + 1) % self.pieces.len();
        Ok(())
    }

    /// Queues copies of values to all of `to`, as many pieces as it takes.
    pub(crate) fn send_values<T: Plain>(
        &mut self,
        to: &Slice<T>,
        values: &[T],
    ) -> Result<(), CudaError> {
        assert_eq!(to.len(), values.len(), "there is a place for each value");
        let (to, bytes) = (to.bytes(), bytes_of(values));
        for (index, bytes) in bytes.chunks(self.piece_bytes()).enumerate() {
            let to = to.part(index * self.piece_bytes(), bytes.len());
            self.send(&to, |piece| {
                piece.copy_from_slice(bytes);
                Ok::<_, CudaError>(())
            })?;
        }
        Ok(())
    }
}

/// Numbers that can be copied to a device as bytes.
///
/// # Safety
/// Every byte of a value is initialised.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: primitive.
unsafe impl Plain for u32 {}
// SAFETY: primitive.
unsafe impl Plain for f32 {}
// SAFETY: primitive.
unsafe impl Plain for f64 {}

/// The values' bytes.
fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: every byte of a `Plain` value is initialised, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
