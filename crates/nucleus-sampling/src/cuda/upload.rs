//! What a launch reads, brought to the device in one copy that nobody waits for.

use std::ffi::c_void;

use super::device::{Buffer, Stream};
use super::error::{CudaError, check};
use super::pinned::{Event, Pinned};
use super::sys;

/// Parts begin at multiples of this; the widest loads of the kernels are of 16 bytes.
const ALIGNMENT: usize = 16;

/// Memory on the host and on the device for the parts of a launch.
#[derive(Debug)]
pub(super) struct Upload {
    stages: [Stage; 2],
    /// The stage that is used next.
    next: usize,
    device: Buffer<u8>,
}

/// Host memory of one copy.
#[derive(Debug)]
struct Stage {
    bytes: Pinned<u8>,
    /// When the copy from it is done; none before the first.
    copied: Option<Event>,
}

impl Upload {
    pub(super) const fn new() -> Self {
        const EMPTY: Stage = Stage {
            bytes: Pinned::new(),
            copied: None,
        };
        Self {
            stages: [EMPTY; 2],
            next: 0,
            device: Buffer::new(),
        }
    }

    /// Makes room for parts of so many bytes together.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), CudaError> {
        self.device.reserve(bytes)
    }

    /// Queues the parts' copy and says where they will be. They stay there until the next copy.
    pub(super) fn send<const N: usize>(
        &mut self,
        parts: [&[u8]; N],
        stream: &Stream,
    ) -> Result<[*const c_void; N], CudaError> {
        let (offsets, len) = places(parts.map(<[u8]>::len));
        self.device.reserve(len)?;
        let at = self.next;
        self.next = (at + 1) % self.stages.len();
        let stage = &mut self.stages[at];
        if let Some(copied) = &stage.copied {
            copied.wait()?;
        }
        stage.bytes.reserve(len)?;
        let bytes = stage.bytes.values_mut(len);
        for (part, offset) in parts.iter().zip(offsets) {
            bytes[offset..][..part.len()].copy_from_slice(part);
        }
        // SAFETY: both ranges hold `len` bytes; the host's are not touched before the event recorded below has come.
        let code = unsafe {
            sys::cudaMemcpyAsync(
                self.device.address().cast(),
                stage.bytes.address(),
                len,
                sys::HOST_TO_DEVICE,
                stream.raw(),
            )
        };
        check("cudaMemcpyAsync", code)?;
        let copied = match stage.copied.take() {
            Some(event) => event,
            None => Event::new()?,
        };
        copied.record(stream)?;
        stage.copied = Some(copied);
        let base: *const c_void = self.device.address().cast();
        Ok(offsets.map(|offset| base.wrapping_byte_add(offset)))
    }
}

/// Where parts of these lengths begin, and where the last one ends.
fn places<const N: usize>(lens: [usize; N]) -> ([usize; N], usize) {
    let mut end = 0;
    let offsets = lens.map(|len| {
        let offset = end;
        end = (offset + len).next_multiple_of(ALIGNMENT);
        offset
    });
    (offsets, end)
}

#[cfg(test)]
mod tests {
    use super::places;

    #[test]
    fn parts_are_aligned_and_apart() {
        assert_eq!(places([144, 0, 20, 1]), ([0, 144, 144, 176], 192));
    }
}
