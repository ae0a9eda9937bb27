//! The plain data of `cuda/include/sampling_config.h`, field by field. [`SamplingConfig`], [`Program`](crate::Program) and
//! [`SampledToken`] are shared with the host's samplers.

use std::ffi::c_void;
use std::mem::{offset_of, size_of};

use crate::config::{Program, SamplingConfig};
use crate::row::SampledToken;

/// Data that can be copied to a device as bytes.
///
/// # Safety
/// The type is primitive or `repr(C)` without padding, so that every byte of a value is initialised.
pub(super) unsafe trait Plain: Copy {}

/// Data that can be filled with bytes from a device.
///
/// # Safety
/// Every pattern of bytes is a value of the type.
pub(super) unsafe trait AnyBits: Plain {}

// SAFETY: primitive.
unsafe impl Plain for u8 {}
// SAFETY: primitive.
unsafe impl Plain for u32 {}
// SAFETY: `repr(C)`; 2 u64 and 8-byte aligned groups of u32 fill its 144 bytes (asserted below).
unsafe impl Plain for SamplingRow {}
// SAFETY: `repr(C)`; 8 + 34 * 4 bytes fill its 144 (asserted where it is defined).
unsafe impl Plain for SamplingConfig {}
// SAFETY: `repr(C)`; 16 operations of 4 + 4 + 8 bytes and two u32 fill its 264 bytes (asserted below).
unsafe impl Plain for Program {}
// SAFETY: `repr(C)`; five 4-byte fields fill its 20 bytes.
unsafe impl Plain for DeviceToken {}
// SAFETY: five integers and floats: every pattern is a value.
unsafe impl AnyBits for DeviceToken {}

const _: () = assert!(size_of::<Program>() == 264);

/// Index of a list's first word in the arena, and its length in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct SamplingList {
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) reserved: u32,
}

const _: () = assert!(size_of::<SamplingList>() == 16);

/// Bits of [`SamplingRow::flags`].
pub(super) mod row_flags {
    /// Draw with `uniform`.
    pub(crate) const UNIFORM: u32 = 1;
    /// Logprob of the final distribution, not of the raw logits.
    pub(crate) const PROCESSED: u32 = 1 << 1;
    /// Only the ids of `allowed` may be drawn.
    pub(crate) const ALLOWED: u32 = 1 << 2;
    /// History, position and running values are those of a slot.
    pub(crate) const SLOT: u32 = 1 << 4;
    /// The choice is appended to the slot.
    pub(crate) const COMMIT: u32 = 1 << 5;
    /// The likeliest tokens of the row as it came are not wanted.
    pub(crate) const NO_TOP: u32 = 1 << 6;
    /// Few ids are allowed, which are gathered.
    pub(crate) const FEW: u32 = 1 << 7;
    /// The likeliest tokens of the distribution that is drawn from are wanted.
    pub(crate) const TOP: u32 = 1 << 8;
}

/// One row of work beside its logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct SamplingRow {
    pub(super) uniform: u64,
    pub(super) history: SamplingList,
    pub(super) bias: SamplingList,
    pub(super) allowed: SamplingList,
    pub(super) bad_words: SamplingList,
    pub(super) breakers: SamplingList,
    pub(super) eos: SamplingList,
    pub(super) prompt_len: u32,
    pub(super) request: u32,
    pub(super) position: u32,
    pub(super) choice: u32,
    pub(super) attempt: u32,
    pub(super) mirostat_mu: i32,
    pub(super) adaptive_target: i32,
    pub(super) mask: i32,
    pub(super) flags: u32,
    pub(super) slot: u32,
}

const _: () = assert!(size_of::<SamplingRow>() == 144);
const _: () = assert!(offset_of!(SamplingRow, prompt_len) == 104);

/// What a sequence remembers between tokens, on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct SamplingSlot {
    /// Index of its first token among the slots' tokens: prompt, then output.
    pub(super) tokens: u64,
    pub(super) adaptive_sum: i64,
    pub(super) adaptive_weight: i64,
    /// Tokens there is room for; the device makes it 0 when the sequence has ended.
    pub(super) capacity: u32,
    pub(super) len: u32,
    pub(super) prompt_len: u32,
    /// position = len - prompt_len + ahead
    pub(super) ahead: u32,
    pub(super) choice: u32,
    pub(super) attempt: u32,
    pub(super) mirostat_mu: i32,
    /// The bits of each id that ends the sequence ([`stop_bits`]).
    pub(super) stops: u32,
}

/// The most ids that end the sequence of a slot. They lie before its tokens.
pub const MAX_STOPS: usize = 16;

/// The bits of [`SamplingSlot::stops`] that an id which ends the sequence sets (`stop_bits` of `slot.cuh`).
pub(super) const fn stop_bits(id: u32) -> u32 {
    let mixed = id.wrapping_mul(0x9E37_79B1);
    1 << (mixed >> 27) | 1 << (mixed >> 22 & 31)
}

const _: () = assert!(size_of::<SamplingSlot>() == 56);
const _: () = assert!(offset_of!(SamplingSlot, capacity) == 24);

// SAFETY: `repr(C)`; three 8-byte fields, then eight 4-byte fields, fill its 56 bytes.
unsafe impl Plain for SamplingSlot {}

/// A launch.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct SamplingBatch {
    pub(super) struct_size: u32,
    pub(super) dtype: u32,
    pub(super) rows: u32,
    pub(super) row_len: u32,
    pub(super) row_stride: u64,
    pub(super) logits: *const c_void,
    pub(super) row: *const SamplingRow,
    pub(super) configs: *const SamplingConfig,
    pub(super) programs: *const Program,
    pub(super) arena: *const u32,
    pub(super) masks: *const u32,
    pub(super) mask_stride: u64,
    pub(super) mask_words: u32,
    pub(super) cluster: u32,
    pub(super) out: *mut SampledToken,
    pub(super) max_edited: u32,
    pub(super) flags: u32,
    pub(super) slots: *mut SamplingSlot,
    pub(super) slot_tokens: *mut u32,
}

const _: () = assert!(size_of::<SamplingBatch>() == 120);
const _: () = assert!(offset_of!(SamplingBatch, logits) == 24);
const _: () = assert!(offset_of!(SamplingBatch, out) == 88);

/// The kinds of a launch's rows, where these are of several.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct SamplingOrder {
    /// The rows' numbers, one kind behind the other; null: they are not sorted.
    pub(super) order: *const u32,
    /// Rows that few tokens decide.
    pub(super) bounded: u32,
    /// Rows without edits that are drawn from as a whole.
    pub(super) drawn: u32,
    /// And those that draw from what `top_p` keeps of it.
    pub(super) cut: u32,
    /// The rest, but for rows of which few ids are allowed.
    pub(super) others: u32,
}

impl SamplingOrder {
    /// The rows are not sorted.
    pub(super) const NONE: Self = Self {
        order: std::ptr::null(),
        bounded: 0,
        drawn: 0,
        cut: 0,
        others: 0,
    };
}

const _: () = assert!(size_of::<SamplingOrder>() == 24);
const _: () = assert!(offset_of!(SamplingOrder, bounded) == 8);

/// The launch's bit that sends every row down the exact path.
pub(super) const BATCH_EXACT: u32 = 1;
/// The launch's bit that says that every row is bounded, which spares it work.
pub(super) const BATCH_ALL_BOUNDED: u32 = 4;
/// The launch's bit that says that no row is bounded.
pub(super) const BATCH_NONE_BOUNDED: u32 = 8;
/// The launch's bit that says that there is a request for each row, most often of its own number.
pub(super) const BATCH_REQUEST_EACH: u32 = 16;
/// The launch's bit that says that every row is bounded by a count, so that only ties leave work to its end.
pub(super) const BATCH_ALL_COUNTED: u32 = 32;
/// The launch's bit that says that there may be rows of which few ids are allowed; the other bits are about the rest.
pub(super) const BATCH_SOME_FEW: u32 = 64;
/// The launch's bit that says that few ids are allowed of every row.
pub(super) const BATCH_ALL_FEW: u32 = 128;
/// The launch's bit that says that no row edits logits by id.
pub(super) const BATCH_NO_EDITS: u32 = 256;
/// The launch's bit that says that every row draws from the whole of its row, which spares it two parts of its work.
pub(super) const BATCH_ALL_DRAWN: u32 = 512;
/// The launch's bit that keeps rows on the exact path from going on as lists.
pub(super) const BATCH_UNLISTED: u32 = 1024;
/// The launch's bit that says that nothing but the draw follows `min_p` in any row that it bounds.
pub(super) const BATCH_DRAW_AFTER_MIN_P: u32 = 2048;
/// The launch's bit that says that no row is one of those that are weighed whole, which spares it the launches that do.
pub(super) const BATCH_NONE_WHOLE: u32 = 4096;
/// The launch's bit that says that the cuts of no row that is neither bounded nor weighed whole follow from sums alone, which spares it the launch for those.
pub(super) const BATCH_NONE_SUMMED: u32 = 16384;
/// The launch's bit that says that of those no row has a first cut that is made before the last launch, which spares it the launch for those.
pub(super) const BATCH_NONE_CUT: u32 = 32768;
/// The launch's bit that says that every row draws from the whole of its row, or from what `top_p` keeps of it, as it came but for temperatures and a mask.
pub(super) const BATCH_DRAWN_AFTER_TOP_P: u32 = 65536;
/// The launch's bit that says that of these some draw from what epsilon or `top_a` keeps, or by mirostat 2; beside the last two below, that some
/// are cut at all.
pub(super) const BATCH_CUT_BY_WEIGHT: u32 = 131_072;
/// The launch's bit that says that some draw from what eta or `typical_p` keeps, or that temperatures follow their cut.
pub(super) const BATCH_CUT_BY_SURPRISE: u32 = 262_144;
/// The launch's bit that says that some have dynamic temperature.
pub(super) const BATCH_WARMED: u32 = 524_288;
/// The launch's bit that says that some are smoothed, and drawn from as a whole.
pub(super) const BATCH_SMOOTHED: u32 = 1_048_576;
/// The launch's bit that says that rows that are drawn from, as a whole or behind `top_p`, may have edits by id.
pub(super) const BATCH_DRAWN_EDITED: u32 = 2_097_152;
/// The launch's bit that says that bounded rows go on with the commonest operations alone.
pub(super) const BATCH_COMMON_CHAINS: u32 = 4_194_304;
/// The launch's bit that samples as on devices without clusters.
pub(super) const BATCH_PORTABLE: u32 = 8192;
/// A device's status beyond [`Status`](crate::Status): more ids are edited than the workspace has room for.
pub(super) const STATUS_WORKSPACE: u32 = 4;
/// A device's status beyond [`Status`](crate::Status): the choice could not be appended to a full slot.
pub(super) const STATUS_FULL: u32 = 6;
/// A device's status beyond [`Status`](crate::Status): a token was chosen, and ends its slot's sequence.
pub(super) const STATUS_STOPPED: u32 = 7;
/// A device's status beyond [`Status`](crate::Status): the slot's sequence had ended, so that nothing was chosen.
pub(super) const STATUS_ENDED: u32 = 8;

/// What the runtime knows of a device (`cuda/kernels/device.cu`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct DeviceDescription {
    pub(super) total_bytes: u64,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) multiprocessors: u32,
    pub(super) shared_bytes: u32,
    pub(super) reserved: u32,
    pub(super) name_bytes: u32,
    pub(super) name: [u8; 256],
}

const _: () = assert!(size_of::<DeviceDescription>() == 288);

/// [`SampledToken`] as the device writes it: the status is a number that has to be looked at first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(super) struct DeviceToken {
    pub(super) token_id: u32,
    pub(super) logprob: f32,
    pub(super) kept_count: u32,
    pub(super) status: u32,
    pub(super) feedback: i32,
}

const _: () = assert!(size_of::<DeviceToken>() == size_of::<SampledToken>());
const _: () = assert!(offset_of!(DeviceToken, status) == offset_of!(SampledToken, status));

/// The most of the likeliest tokens that a launch tells of a row.
pub const MAX_TOP: u32 = 128;

/// A token and its log-probability, as the device writes them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(super) struct SamplingLogprob {
    /// [`NO_TOKEN`](crate::NO_TOKEN) where there are no more.
    pub(super) token_id: u32,
    pub(super) logprob: f32,
}

const _: () = assert!(size_of::<SamplingLogprob>() == 8);

// SAFETY: `repr(C)`; two 4-byte fields.
unsafe impl Plain for SamplingLogprob {}
// SAFETY: an integer and a float: every pattern is a value.
unsafe impl AnyBits for SamplingLogprob {}

// SAFETY: 16 bits, no padding.
unsafe impl Plain for half::f16 {}
// SAFETY: 16 bits, no padding.
unsafe impl Plain for half::bf16 {}
// SAFETY: primitive.
unsafe impl Plain for f32 {}
// SAFETY: every byte is one.
unsafe impl AnyBits for u8 {}
// SAFETY: every pattern of bits is a number or a NaN.
unsafe impl AnyBits for f32 {}
// SAFETY: as above.
unsafe impl AnyBits for half::f16 {}
// SAFETY: as above.
unsafe impl AnyBits for half::bf16 {}

/// The values' bytes.
pub(super) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: every byte of a `Plain` value is initialised, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::super::sys;
    use super::*;
    use crate::SamplingConfig;

    /// The header's number of that name.
    fn defined(name: &str) -> u32 {
        let header = include_str!("../../cuda/include/sampling_config.h");
        let mut lines = header.lines().map(str::split_whitespace);
        let value = lines.find_map(|mut words| {
            let is_it = words.next() == Some("#define") && words.next() == Some(name);
            is_it.then(|| words.next()).flatten()
        });
        let value = value.expect(name).trim_end_matches('u');
        value.parse().expect(name)
    }

    #[test]
    fn both_languages_have_the_same_numbers_of_slots() {
        assert_eq!(defined("NUCLEUS_MAX_STOPS"), MAX_STOPS as u32);
        assert_eq!(defined("NUCLEUS_WORKSPACE"), STATUS_WORKSPACE);
        assert_eq!(defined("NUCLEUS_FULL"), STATUS_FULL);
        assert_eq!(defined("NUCLEUS_STOPPED"), STATUS_STOPPED);
        assert_eq!(defined("NUCLEUS_ENDED"), STATUS_ENDED);
    }

    /// R1.8: every field, set to a number of its own, comes out of the C++ struct as itself.
    #[test]
    fn both_languages_see_the_same_config() {
        let config = SamplingConfig {
            seed: 1,
            temperature: 2.0,
            dynatemp_range: 3.0,
            dynatemp_exponent: 4.0,
            smoothing_factor: 5.0,
            smoothing_curve: 6.0,
            top_p: 7.0,
            min_p: 8.0,
            typical_p: 9.0,
            top_n_sigma: 10.0,
            epsilon_cutoff: 11.0,
            eta_cutoff: 12.0,
            top_a: 13.0,
            tfs_z: 14.0,
            xtc_probability: 15.0,
            xtc_threshold: 16.0,
            repetition_penalty: 17.0,
            frequency_penalty: 18.0,
            presence_penalty: 19.0,
            dry_multiplier: 20.0,
            dry_base: 21.0,
            mirostat_tau: 22.0,
            mirostat_eta: 23.0,
            adaptive_target: 24.0,
            adaptive_decay: 25.0,
            top_k: 26,
            min_keep: 27,
            repeat_last_n: 28,
            dry_allowed_length: 29,
            dry_penalty_last_n: 30,
            no_repeat_ngram_size: 31,
            min_tokens: 32,
            mirostat: 33,
            vocab_size: 34,
            flags: 35,
        };
        let mut fields = [0.0; 35];
        // SAFETY: the function reads one config and writes 35 numbers.
        unsafe { sys::sampling_config_fields(&raw const config, fields.as_mut_ptr()) };
        assert_eq!(fields, std::array::from_fn(|index| (index + 1) as f64));
    }
}
