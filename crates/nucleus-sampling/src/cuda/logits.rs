//! Rows of logits, and the tokens chosen from them, in a device's memory.

use std::ffi::c_void;
use std::mem::offset_of;

use crate::row::LogitsRow;

use super::layout::{DeviceToken, STATUS_STOPPED};

const _: () = assert!(offset_of!(DeviceToken, token_id) == 0);

/// The type of logits on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Dtype {
    /// 32-bit floating point.
    F32 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// bfloat16.
    Bf16 = 2,
}

impl Dtype {
    /// Bytes of one logit.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    pub(super) fn of(row: &LogitsRow<'_>) -> Self {
        match row {
            LogitsRow::F32(_) => Self::F32,
            LogitsRow::F16(_) => Self::F16,
            LogitsRow::Bf16(_) => Self::Bf16,
        }
    }
}

/// Rows of logits in a device's memory: row `i` is the `row_len` logits from element `i * row_stride` on.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLogits {
    address: *const c_void,
    dtype: Dtype,
    row_len: u32,
    row_stride: u64,
}

impl DeviceLogits {
    /// Logits at an address of the device's memory, such as a tensor library gives it.
    ///
    /// # Safety
    /// As long as this value is used, the memory holds every row that is sampled from, on the device of the sampler, written by work that
    /// is done or that precedes on the sampler's stream.
    #[must_use]
    pub const unsafe fn new(
        address: *const c_void,
        dtype: Dtype,
        row_len: u32,
        row_stride: u64,
    ) -> Self {
        Self {
            address,
            dtype,
            row_len,
            row_stride,
        }
    }
}

// SAFETY: the address is of memory that belongs to no thread.
unsafe impl Send for DeviceLogits {}
// SAFETY: as above; the value itself never changes.
unsafe impl Sync for DeviceLogits {}

impl DeviceLogits {
    /// Where the first row begins.
    #[must_use]
    pub const fn address(&self) -> *const c_void {
        self.address
    }

    /// The type of a logit.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Logits of a row.
    #[must_use]
    pub const fn row_len(&self) -> u32 {
        self.row_len
    }

    /// The same memory seen from its row `row` on: `repeated` rows are all that one.
    pub(super) fn starting_at(self, row: u32, repeated: bool) -> Self {
        let bytes = u64::from(row) * self.row_stride * self.dtype.size() as u64;
        Self {
            address: self.address.wrapping_byte_add(bytes as usize),
            row_stride: if repeated { 0 } else { self.row_stride },
            ..self
        }
    }

    /// Logits from the beginning of a row to that of the next.
    #[must_use]
    pub const fn row_stride(&self) -> u64 {
        self.row_stride
    }
}

/// Token ids in a device's memory, one in so many 32-bit words: what a launch has chosen, before the host knows it.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTokens {
    address: *const u32,
    stride: u32,
}

// SAFETY: the address is of memory that belongs to no thread.
unsafe impl Send for DeviceTokens {}
// SAFETY: as above; the value itself never changes.
unsafe impl Sync for DeviceTokens {}

impl DeviceTokens {
    /// The ids that a launch writes to `out`.
    pub(super) const fn of(out: *const DeviceToken) -> Self {
        Self {
            address: out.cast(),
            stride: (size_of::<DeviceToken>() / size_of::<u32>()) as u32,
        }
    }

    /// Where the first id is.
    #[must_use]
    pub const fn address(&self) -> *const u32 {
        self.address
    }

    /// Where the number is that says how the first row ended, in 32-bit words behind its id.
    #[must_use]
    pub const fn status_offset(&self) -> u32 {
        (offset_of!(DeviceToken, status) / size_of::<u32>()) as u32
    }

    /// That number, of a row whose token ends its slot's sequence ([`SlotEnd`](super::SlotEnd)).
    #[must_use]
    pub const fn stopped(&self) -> u32 {
        STATUS_STOPPED
    }

    /// 32-bit words from an id to the next.
    #[must_use]
    pub const fn stride(&self) -> u32 {
        self.stride
    }
}
