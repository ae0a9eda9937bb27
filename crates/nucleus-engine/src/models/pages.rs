//! Memory of large pages, for what is read from end to end in every step.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// Values that begin as zeros, in memory of their own.
///
/// Where the system has large pages (2 MiB on x86-64), it is asked for them: the processor finds them faster than small ones, and
/// foresees what is read next up to the end of a page. Only memory that nothing was written to yet can be made of them, hence no
/// `Vec`, whose memory may have been used before.
pub(super) struct Pages<T> {
    memory: MmapMut,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// So many zeros. They take memory once they are written to.
    ///
    /// # Panics
    /// If there is no address space for them.
    pub(super) fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.expect("what is in memory has a size");
        let memory = MmapMut::map_anon(bytes).expect("there are addresses for the model");
        #[cfg(target_os = "linux")]
        if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no large pages");
        }
        Self {
            memory,
            len,
            of: PhantomData,
        }
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.memory[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.memory[..self.len * size_of::<T>()])
    }
}

impl<T> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_as_zeros_and_can_be_written() {
        for len in [0, 1, 3, 100_000] {
            let mut pages = Pages::<[u16; 16]>::zeroed(len);
            assert_eq!(pages.len(), len);
            assert!(pages.iter().all(|values| *values == [0; 16]));
            for (index, values) in pages.iter_mut().enumerate() {
                *values = [index as u16; 16];
            }
            assert!(
                pages
                    .last()
                    .is_none_or(|values| *values == [len as u16 - 1; 16])
            );
        }
    }
}
