//! The sampler on a device.

use std::ffi::c_void;

use crate::config::{MAX_VOCAB, Program, SamplingConfig};
use crate::row::{LogitsRow, Row, SampledToken, Status};

use super::device::{Buffer, Stream};
use super::error::CudaError;
use super::layout::{
    BATCH_EXACT, DeviceToken, STATUS_UNSUPPORTED, STATUS_WORKSPACE, SamplingBatch, SamplingRow,
    bytes_of,
};
use super::pack::Packed;
use super::sys;

/// The most rows of one launch.
pub const MAX_ROWS: usize = 1024;

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

    fn of(row: &LogitsRow<'_>) -> Self {
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

/// How a [`CudaSampler`] works. Nothing of it changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CudaOptions {
    /// The device's number.
    pub device: u32,
    /// Blocks that work on one row: 1, 2, 4 or 8; 0: as many as suit the number of rows.
    pub cluster: u32,
    /// Send every row down the path without bounded candidates.
    pub exact_path: bool,
}

/// The sampler on a CUDA device: one launch for all rows of a batch, the same tokens as on the host, bit for bit.
///
/// It owns a stream and the memory that a launch needs, which grows with the largest batch it has seen.
///
/// It tells neither [`Row::logprobs`]' likeliest tokens nor traces; a [`CpuSampler`](crate::CpuSampler) does, of the same row.
#[derive(Debug)]
pub struct CudaSampler {
    options: CudaOptions,
    packed: Packed,
    tokens: Vec<DeviceToken>,
    rows: Buffer<SamplingRow>,
    configs: Buffer<SamplingConfig>,
    programs: Buffer<Program>,
    arena: Buffer<u32>,
    masks: Buffer<u32>,
    out: Buffer<DeviceToken>,
    workspace: Buffer<u8>,
    logits: Buffer<u8>,
    // Last: the memory is freed before its stream ends.
    stream: Stream,
}

impl CudaSampler {
    /// A sampler on a device.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] without a driver or a device, [`CudaError::Device`] if the device does not exist, [`CudaError::Batch`] if the
    /// number of blocks is none of those allowed.
    pub fn new(options: CudaOptions) -> Result<Self, CudaError> {
        if !matches!(options.cluster, 0 | 1 | 2 | 4 | 8) {
            return Err(CudaError::Batch {
                field: "cluster",
                value: u64::from(options.cluster),
                range: "0, 1, 2, 4 or 8".to_owned(),
            });
        }
        Ok(Self {
            options,
            packed: Packed::default(),
            tokens: Vec::new(),
            rows: Buffer::new(),
            configs: Buffer::new(),
            programs: Buffer::new(),
            arena: Buffer::new(),
            masks: Buffer::new(),
            out: Buffer::new(),
            workspace: Buffer::new(),
            logits: Buffer::new(),
            stream: Stream::new(options.device)?,
        })
    }

    /// The stream on which everything runs (a `cudaStream_t`): work that writes logits has to precede on it, or be done.
    pub fn stream(&self) -> *mut c_void {
        self.stream.raw()
    }

    /// Chooses a token for each row from logits on the device: row `i` of `logits` by `rows[i]`, whose own logits are not looked at. `out` is
    /// cleared first. Waits for the result.
    ///
    /// # Errors
    /// [`CudaError::Batch`] for more than [`MAX_ROWS`] rows or a row longer than [`MAX_VOCAB`]; [`CudaError::Unsupported`] for a combination
    /// of parameters that the kernel does not have; [`CudaError::Runtime`] if the device fails.
    pub fn sample_on_device(
        &mut self,
        logits: &DeviceLogits,
        rows: &[Row<'_>],
        out: &mut Vec<SampledToken>,
    ) -> Result<(), CudaError> {
        out.clear();
        if rows.is_empty() {
            return Ok(());
        }
        within("rows", rows.len() as u64, 1, MAX_ROWS as u64)?;
        within(
            "row_len",
            u64::from(logits.row_len),
            1,
            u64::from(MAX_VOCAB),
        )?;
        self.stream.make_current()?;
        self.packed.fill(rows);
        self.upload()?;
        self.launch(logits)?;
        self.out.read(rows.len(), &mut self.tokens, &self.stream)?;
        for (row, token) in self.tokens.iter().enumerate() {
            out.push(sampled(row, *token)?);
        }
        Ok(())
    }

    /// Copies the rows' logits to the device and chooses a token for each. They must be of one type and one length. `out` is cleared first.
    ///
    /// # Errors
    /// As [`CudaSampler::sample_on_device`], and [`CudaError::Batch`] for rows of several types or lengths.
    pub fn sample_batch(
        &mut self,
        rows: &[Row<'_>],
        out: &mut Vec<SampledToken>,
    ) -> Result<(), CudaError> {
        out.clear();
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let (dtype, row_len) = (Dtype::of(&first.logits), first.logits.len());
        within("row_len", row_len as u64, 1, u64::from(MAX_VOCAB))?;
        // Rows that are one slice are copied once. Else every row begins at a multiple of 16 bytes, as the kernel's widest loads need it.
        let shared = rows.len() > 1
            && rows
                .iter()
                .all(|row| same_memory(&row.logits, &first.logits));
        let stride = if shared {
            0
        } else {
            row_len.next_multiple_of(16 / dtype.size())
        };
        let bytes = ((rows.len() - 1) * stride + row_len) * dtype.size();
        let copied = if shared { 1 } else { rows.len() };
        self.stream.make_current()?;
        for (index, row) in rows[..copied].iter().enumerate() {
            if (Dtype::of(&row.logits), row.logits.len()) != (dtype, row_len) {
                return Err(CudaError::Batch {
                    field: "row_len",
                    value: row.logits.len() as u64,
                    range: format!("{row_len} logits of type {dtype:?}, as in the first row"),
                });
            }
            let at = index * stride * dtype.size();
            self.upload_logits(at, bytes, row.logits)?;
        }
        // SAFETY: the rows were just queued on this sampler's stream, into memory that it owns and does not touch before the launch is done.
        let logits = unsafe {
            DeviceLogits::new(
                self.logits.address().cast(),
                dtype,
                row_len as u32,
                stride as u64,
            )
        };
        self.sample_on_device(&logits, rows, out)
    }

    /// Chooses one token.
    ///
    /// # Errors
    /// As [`CudaSampler::sample_batch`].
    pub fn sample(&mut self, row: &Row<'_>) -> Result<SampledToken, CudaError> {
        let mut out = Vec::with_capacity(1);
        self.sample_batch(std::slice::from_ref(row), &mut out)?;
        Ok(out[0])
    }

    fn upload_logits(
        &mut self,
        at: usize,
        bytes: usize,
        row: LogitsRow<'_>,
    ) -> Result<(), CudaError> {
        match row {
            LogitsRow::F32(row) => self.logits.write_at(at, bytes_of(row), bytes, &self.stream),
            LogitsRow::F16(row) => self.logits.write_at(at, bytes_of(row), bytes, &self.stream),
            LogitsRow::Bf16(row) => self.logits.write_at(at, bytes_of(row), bytes, &self.stream),
        }
    }

    fn upload(&mut self) -> Result<(), CudaError> {
        let (packed, stream) = (&self.packed, &self.stream);
        self.rows.write(&packed.rows, stream)?;
        self.configs.write(&packed.configs, stream)?;
        self.programs.write(&packed.programs, stream)?;
        self.arena.write(&packed.arena, stream)?;
        self.masks.write(&packed.masks, stream)
    }

    fn launch(&mut self, logits: &DeviceLogits) -> Result<(), CudaError> {
        let rows = self.packed.rows.len() as u32;
        self.out.reserve(rows as usize)?;
        // SAFETY: takes numbers.
        let workspace_bytes = unsafe { sys::sampling_workspace_size(rows, self.packed.max_edited) };
        self.workspace.reserve(workspace_bytes)?;
        let batch = SamplingBatch {
            struct_size: size_of::<SamplingBatch>() as u32,
            dtype: logits.dtype as u32,
            rows,
            row_len: logits.row_len,
            row_stride: logits.row_stride,
            logits: logits.address,
            row: self.rows.address(),
            configs: self.configs.address(),
            programs: self.programs.address(),
            arena: self.arena.address(),
            masks: self.masks.address(),
            mask_stride: self.packed.mask_words as u64,
            mask_words: self.packed.mask_words as u32,
            cluster: self.options.cluster,
            out: self.out.address().cast(),
            max_edited: self.packed.max_edited,
            flags: if self.options.exact_path {
                BATCH_EXACT
            } else {
                0
            },
        };
        // SAFETY: every address is of memory that this sampler owns and has filled for `rows` rows, or is the caller's word for `logits`
        // (`DeviceLogits::new`); lists lie within the arena (`Packed`); the workspace has the size that was asked for; work on the stream is
        // in order, so nothing is overwritten before it is read.
        let code = unsafe {
            sys::launch_advanced_sample_batch(
                &raw const batch,
                self.workspace.address().cast(),
                workspace_bytes,
                self.stream.raw(),
            )
        };
        match code {
            0 => Ok(()),
            code if code > LAUNCH_CUDA => Err(CudaError::runtime(
                "launch_advanced_sample_batch",
                code - LAUNCH_CUDA,
            )),
            code => Err(CudaError::Batch {
                field: "launch",
                value: code as u64,
                range: "0: the sizes were checked".to_owned(),
            }),
        }
    }
}

/// A launch's result is this plus the code of the runtime's error.
const LAUNCH_CUDA: i32 = 1000;

/// Whether two rows are the same memory.
fn same_memory(a: &LogitsRow<'_>, b: &LogitsRow<'_>) -> bool {
    match (a, b) {
        (LogitsRow::F32(a), LogitsRow::F32(b)) => std::ptr::eq(*a, *b),
        (LogitsRow::F16(a), LogitsRow::F16(b)) => std::ptr::eq(*a, *b),
        (LogitsRow::Bf16(a), LogitsRow::Bf16(b)) => std::ptr::eq(*a, *b),
        _ => false,
    }
}

fn within(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), CudaError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(CudaError::Batch {
        field,
        value,
        range: format!("{least} to {most}"),
    })
}

/// The device's answer, its status looked at.
fn sampled(row: usize, token: DeviceToken) -> Result<SampledToken, CudaError> {
    let status = match token.status {
        0 => Status::Ok,
        1 => Status::Nan,
        2 => Status::Overflow,
        3 => Status::Empty,
        STATUS_WORKSPACE => {
            return Err(CudaError::Unsupported {
                row,
                reason: "it edits more ids than were counted",
            });
        }
        STATUS_UNSUPPORTED => {
            return Err(CudaError::Unsupported {
                row,
                reason: "tail-free sampling of more than 4,096 tokens, which ties at top_k left",
            });
        }
        _ => {
            return Err(CudaError::Unsupported {
                row,
                reason: "the device returned an unknown status",
            });
        }
    };
    Ok(SampledToken {
        token_id: token.token_id,
        logprob: token.logprob,
        kept_count: token.kept_count,
        status,
        feedback: token.feedback,
    })
}
