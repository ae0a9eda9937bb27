//! The sampler on a device.

use std::collections::HashSet;
use std::ffi::c_void;

use half::{bf16, f16};

use crate::config::{MAX_VOCAB, Program, SamplingConfig};
use crate::row::{LogitsRow, Row, SampledToken, Status, TokenLogprob};
use crate::state::SamplerState;

use super::device::{Buffer, SharedStream, Stream, read_from};
use super::error::CudaError;
use super::info::device_info;
use super::layout::{
    BATCH_EXACT, BATCH_PORTABLE, BATCH_REQUEST_EACH, BATCH_UNLISTED, DeviceToken, MAX_TOP,
    STATUS_ENDED, STATUS_FULL, STATUS_STOPPED, STATUS_WORKSPACE, SamplingBatch, SamplingLogprob,
    SamplingOrder, SamplingRow, bytes_of, row_flags,
};
use super::logits::{DeviceLogits, DeviceTokens, Dtype};
use super::pack::{Packed, Work};
use super::queue::{Arrived, Launch, MAX_QUEUED, PlacedRow, Queue, QueuedRow, launches};
use super::slots::{SlotEnd, SlotRow, Slots};
use super::sys;
use super::upload::Upload;

/// What describes a row, and as much again for its lists.
const DESCRIPTION_BYTES: usize =
    2 * (size_of::<SamplingRow>() + size_of::<SamplingConfig>() + size_of::<Program>());

/// The most rows of one launch.
pub const MAX_ROWS: usize = 1024;

/// How a [`CudaSampler`] works. Nothing of it changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CudaOptions {
    /// The device's number.
    pub device: u32,
    /// Blocks that work on one row: 1, 2, 4 or 8; 0: as many as suit the number of rows.
    pub cluster: u32,
    /// Send every row down the path without bounded candidates or lists.
    pub exact_path: bool,
    /// Work as on devices without clusters, or with less than 227 KiB of shared memory a block.
    pub portable: bool,
}

impl CudaOptions {
    /// The launch's bits.
    const fn flags(self) -> u32 {
        let exact = if self.exact_path {
            BATCH_EXACT | BATCH_UNLISTED
        } else {
            0
        };
        exact | if self.portable { BATCH_PORTABLE } else { 0 }
    }
}

/// The sampler on a CUDA device: one launch for all rows of a batch, the same tokens as on the host, bit for bit.
///
/// It owns a stream and the memory that a launch needs, which grows with the largest batch it has seen.
///
/// Of slots' rows it tells the likeliest tokens ([`SlotRow::top`]). It tells neither those of other rows nor traces; a
/// [`CpuSampler`](crate::CpuSampler) does, of the same row.
#[derive(Debug)]
pub struct CudaSampler {
    options: CudaOptions,
    packed: Packed,
    tokens: Vec<DeviceToken>,
    upload: Upload,
    out: Buffer<DeviceToken>,
    likeliest: Buffer<SamplingLogprob>,
    queue: Queue,
    workspace: Buffer<u8>,
    logits: Buffer<u8>,
    slots: Slots,
    // Last: the memory is freed before its stream ends.
    stream: Stream,
}

impl CudaSampler {
    /// A sampler on a device.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`] without a driver or a device, [`CudaError::Device`] if the device does not exist, [`CudaError::Unfit`] if the
    /// kernels do not run on it, [`CudaError::Batch`] if the number of blocks is none of those allowed.
    pub fn new(options: CudaOptions) -> Result<Self, CudaError> {
        Self::with_stream(options, || Stream::new(options.device))
    }

    /// A sampler that works on the stream that writes the logits, and on its device: what is sampled need not be waited for.
    ///
    /// # Errors
    /// As [`CudaSampler::new`].
    pub fn on_stream(options: CudaOptions, stream: SharedStream) -> Result<Self, CudaError> {
        let device = stream.device();
        Self::with_stream(CudaOptions { device, ..options }, || Stream::shared(stream))
    }

    fn with_stream(
        options: CudaOptions,
        stream: impl FnOnce() -> Result<Stream, CudaError>,
    ) -> Result<Self, CudaError> {
        if !matches!(options.cluster, 0 | 1 | 2 | 4 | 8) {
            return Err(CudaError::Batch {
                field: "cluster",
                value: u64::from(options.cluster),
                range: "0, 1, 2, 4 or 8".to_owned(),
            });
        }
        device_info(options.device)?.check_sampler()?;
        Ok(Self {
            options,
            packed: Packed::default(),
            tokens: Vec::new(),
            upload: Upload::new(),
            out: Buffer::new(),
            likeliest: Buffer::new(),
            queue: Queue::default(),
            workspace: Buffer::new(),
            logits: Buffer::new(),
            slots: Slots::new(),
            stream: stream()?,
        })
    }

    /// The tokens of the latest launch, row by row; those of rows without one are [`NO_TOKEN`](crate::NO_TOKEN). Work that reads them is
    /// queued on the sampler's stream before its next launch.
    pub fn tokens_on_device(&self) -> DeviceTokens {
        DeviceTokens::of(self.out.address())
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
        self.stream.make_current()?;
        self.packed.fill(rows.iter().map(Work::of_row));
        self.run(logits, out)
    }

    /// Makes room on the device for `count` sequences of up to `capacity` tokens each, prompt and output together, and for draws of one row each, so
    /// that what these allocate later is for long lists, many edits and the likeliest tokens. All slots are free afterwards.
    ///
    /// # Errors
    /// [`CudaError::Runtime`] if the device has not the memory: 4 bytes a token, 120 a slot.
    pub fn reserve_slots(&mut self, count: u32, capacity: u32) -> Result<(), CudaError> {
        self.stream.make_current()?;
        self.slots.reserve(count, capacity)?;
        let rows = (count as usize).min(MAX_ROWS);
        self.out.reserve(rows)?;
        // SAFETY: takes numbers.
        let workspace_bytes = unsafe { sys::sampling_workspace_size(rows as u32, 0) };
        self.workspace.reserve(workspace_bytes)?;
        self.upload.reserve(rows * DESCRIPTION_BYTES)
    }

    /// Gives a slot a sequence: a new one, or one that was evicted. The host's state stays what it is; the caller commits to it what
    /// the device chose, so that it can be restored at any time.
    ///
    /// # Errors
    /// [`CudaError::Batch`] if there is no such slot, if the sequence is longer than slots are or it may become, or for too many ids that end it.
    pub fn restore_slot(
        &mut self,
        slot: u32,
        state: &SamplerState,
        end: SlotEnd<'_>,
    ) -> Result<(), CudaError> {
        self.stream.make_current()?;
        self.slots.restore(slot, state, end, &self.stream)
    }

    /// Takes back tokens: the slot goes on from `state`, which is what it held, rewound. A sequence that had ended has not any more.
    ///
    /// # Errors
    /// [`CudaError::Batch`] if the slot is free or holds fewer tokens than the state.
    pub fn rewind_slot(&mut self, slot: u32, state: &SamplerState) -> Result<(), CudaError> {
        let len = self.slots.len(slot)?;
        within(
            "slot length",
            state.tokens().len() as u64,
            0,
            u64::from(len),
        )?;
        self.stream.make_current()?;
        self.slots.rewind(slot, state, &self.stream)
    }

    /// Gives the slot `to` the tokens of the slot `from`, which go on as `state`: a fork of what `from` holds.
    ///
    /// # Errors
    /// [`CudaError::Batch`] if `from` is free, if there is no slot `to`, or if the state has another length than `from`; and as
    /// [`CudaSampler::restore_slot`].
    pub fn fork_slot(
        &mut self,
        from: u32,
        to: u32,
        state: &SamplerState,
        end: SlotEnd<'_>,
    ) -> Result<(), CudaError> {
        let len = u64::from(self.slots.len(from)?);
        within("slot length", state.tokens().len() as u64, len, len)?;
        self.stream.make_current()?;
        if from != to {
            self.slots.copy(from, to, &self.stream)?;
        }
        self.slots.go_on(to, state, end, &self.stream)
    }

    /// Frees a slot: its sequence is evicted or over.
    pub fn free_slot(&mut self, slot: u32) {
        self.slots.free(slot);
    }

    /// As [`CudaSampler::sample_on_device`], for sequences whose history is on the device. A row that commits appends its token there.
    ///
    /// # Errors
    /// As [`CudaSampler::sample_on_device`], and [`CudaError::Batch`] if a slot is free, is full, or commits twice in one batch, or if
    /// draws are queued that have not been collected.
    pub fn sample_slots(
        &mut self,
        logits: &DeviceLogits,
        rows: &[SlotRow<'_>],
        out: &mut Vec<SampledToken>,
    ) -> Result<(), CudaError> {
        out.clear();
        if rows.is_empty() {
            return Ok(());
        }
        within("queued draws", self.queue.len() as u64, 0, 0)?;
        let placed: Vec<PlacedRow<'_>> = (0..)
            .zip(rows)
            .map(|(logits_row, &row)| PlacedRow { logits_row, row })
            .collect();
        self.queue_slots(logits, &placed)?;
        let mut drawn = Vec::with_capacity(rows.len());
        self.collect(&mut drawn)?;
        for token in drawn {
            out.push(token?);
        }
        Ok(())
    }

    /// Queues the choice of a token for each row and does not wait for it: [`CudaSampler::collect`] does. Rows may read the same row of
    /// logits, or leave some out; those that read neighbouring ones are one launch.
    ///
    /// # Errors
    /// As [`CudaSampler::sample_slots`], and [`CudaError::Batch`] without rows, or if [`MAX_QUEUED`] draws have not been collected; nothing
    /// is queued then, and after a lack of memory neither. After other errors of the runtime nothing is known of the slots.
    pub fn queue_slots(
        &mut self,
        logits: &DeviceLogits,
        rows: &[PlacedRow<'_>],
    ) -> Result<(), CudaError> {
        within(
            "queued draws",
            self.queue.len() as u64,
            0,
            MAX_QUEUED as u64 - 1,
        )?;
        self.check_size(logits, rows.len())?;
        let mut works = Vec::with_capacity(rows.len());
        let mut commits = HashSet::with_capacity(rows.len());
        for PlacedRow { row, .. } in rows {
            within("top", row.top.into(), 0, MAX_TOP.into())?;
            if row.commit {
                self.slots.check_room(row.slot)?;
                let twice = !commits.insert(row.slot);
                within("commits to one slot", 1 + u64::from(twice), 0, 1)?;
            }
            works.push(Work::of_slot(row, self.slots.len(row.slot)?));
        }
        self.stream.make_current()?;
        self.packed.fill(works.into_iter());
        let launches = launches(rows.iter().map(|row| row.logits_row));
        let top = self.packed.most_top() as usize;
        let pinned = self.queue.reserve(rows.len(), top)?;
        self.launch(logits, &launches)?;
        self.queue
            .read(pinned, &self.out, &self.likeliest, &self.stream)?;
        let queued = |PlacedRow { row, .. }: &PlacedRow<'_>| QueuedRow {
            grown: row.commit.then(|| self.slots.grew(row.slot)),
            top: row.top,
        };
        let queued = rows.iter().map(queued).collect();
        self.queue.push(pinned, queued);
        Ok(())
    }

    /// Waits for the oldest draw that is queued, and tells its tokens row by row; `out` is cleared first, and stays empty if none is. A row
    /// that the kernel cannot serve is [`CudaError::Unsupported`], and its slot is as it was; the others are not concerned.
    ///
    /// # Errors
    /// [`CudaError::Runtime`] if the device fails.
    pub fn collect(
        &mut self,
        out: &mut Vec<Result<SampledToken, CudaError>>,
    ) -> Result<(), CudaError> {
        self.collect_with_top(out, &mut Vec::new())
    }

    /// As [`CudaSampler::collect`], and for each row what [`Sampler::top_logprobs`](crate::Sampler::top_logprobs) tells: the likeliest tokens, as
    /// many as [`SlotRow::top`] says, then the one that was chosen if it is not among them; nothing for rows that do not want them or have no
    /// token.
    ///
    /// # Errors
    /// As [`CudaSampler::collect`].
    pub fn collect_with_top(
        &mut self,
        out: &mut Vec<Result<SampledToken, CudaError>>,
        top: &mut Vec<Vec<TokenLogprob>>,
    ) -> Result<(), CudaError> {
        out.clear();
        top.clear();
        self.stream.make_current()?;
        let Some(arrived) = self.queue.wait()? else {
            return Ok(());
        };
        for (row, &token) in arrived.tokens.iter().enumerate() {
            let token = sampled(row, token);
            let chosen = token.as_ref().ok().filter(|it| it.status == Status::Ok);
            if let (Some(grown), None) = (arrived.rows[row].grown, chosen) {
                self.slots.did_not_grow(grown);
            }
            top.push(chosen.map_or_else(Vec::new, |chosen| likeliest(&arrived, row, chosen)));
            out.push(token);
        }
        Ok(())
    }

    /// Copies one row of logits to the host, widened to `f32`, after everything that is queued.
    ///
    /// # Errors
    /// [`CudaError::Runtime`] if the device fails.
    pub fn read_row(
        &mut self,
        logits: &DeviceLogits,
        row: u32,
        out: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        self.stream.make_current()?;
        let (row, len) = (logits.starting_at(row, true), logits.row_len() as usize);
        out.clear();
        match logits.dtype() {
            // SAFETY: the caller of `DeviceLogits::new` vouches for the row and its type.
            Dtype::F32 => unsafe { read_from(row.address(), len, out, &self.stream) },
            Dtype::F16 => {
                let mut values: Vec<f16> = Vec::new();
                // SAFETY: as above.
                unsafe { read_from(row.address(), len, &mut values, &self.stream) }?;
                out.extend(values.into_iter().map(f16::to_f32));
                Ok(())
            }
            Dtype::Bf16 => {
                let mut values: Vec<bf16> = Vec::new();
                // SAFETY: as above.
                unsafe { read_from(row.address(), len, &mut values, &self.stream) }?;
                out.extend(values.into_iter().map(bf16::to_f32));
                Ok(())
            }
        }
    }

    fn check_size(&self, logits: &DeviceLogits, rows: usize) -> Result<(), CudaError> {
        within("rows", rows as u64, 1, MAX_ROWS as u64)?;
        within("row_len", logits.row_len().into(), 1, MAX_VOCAB.into())
    }

    /// Samples the packed rows, and waits.
    fn run(&mut self, logits: &DeviceLogits, out: &mut Vec<SampledToken>) -> Result<(), CudaError> {
        let rows = self.packed.rows.len();
        if rows == 0 {
            return Ok(());
        }
        self.check_size(logits, rows)?;
        self.launch(logits, &[Launch::all(rows as u32)])?;
        self.out.read(rows, &mut self.tokens, &self.stream)?;
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
        let all: Vec<LogitsRow<'_>> = rows.iter().map(|row| row.logits).collect();
        let Some(logits) = self.place_rows(&all)? else {
            return Ok(());
        };
        self.sample_on_device(&logits, rows, out)
    }

    /// As [`CudaSampler::sample_slots`], from logits on the host: `logits[i]` for `rows[i]`.
    ///
    /// # Errors
    /// As [`CudaSampler::sample_slots`] and [`CudaSampler::sample_batch`], and [`CudaError::Batch`] if there are not as many logits as rows.
    pub fn sample_slots_from_host(
        &mut self,
        logits: &[LogitsRow<'_>],
        rows: &[SlotRow<'_>],
        out: &mut Vec<SampledToken>,
    ) -> Result<(), CudaError> {
        out.clear();
        let count = rows.len() as u64;
        within("logits", logits.len() as u64, count, count)?;
        let Some(logits) = self.place_rows(logits)? else {
            return Ok(());
        };
        self.sample_slots(&logits, rows, out)
    }

    /// Copies rows of logits, of one type and one length, to this sampler's memory, where they stay until the next such copy; `None`
    /// without rows. For logits that are computed on the host.
    ///
    /// # Errors
    /// [`CudaError::Batch`] for rows of several types or lengths, or too long; [`CudaError::Runtime`] if the device fails.
    pub fn place_rows(
        &mut self,
        rows: &[LogitsRow<'_>],
    ) -> Result<Option<DeviceLogits>, CudaError> {
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let (dtype, row_len) = (Dtype::of(first), first.len());
        within("row_len", row_len as u64, 1, u64::from(MAX_VOCAB))?;
        // Rows that are one slice are copied once. Else every row begins at a multiple of 16 bytes, as the kernel's widest loads need it.
        let shared = rows.len() > 1 && rows.iter().all(|row| same_memory(row, first));
        let stride = if shared {
            0
        } else {
            row_len.next_multiple_of(16 / dtype.size())
        };
        let bytes = ((rows.len() - 1) * stride + row_len) * dtype.size();
        let copied = if shared { 1 } else { rows.len() };
        self.stream.make_current()?;
        for (index, row) in rows[..copied].iter().enumerate() {
            if (Dtype::of(row), row.len()) != (dtype, row_len) {
                return Err(CudaError::Batch {
                    field: "row_len",
                    value: row.len() as u64,
                    range: format!("{row_len} logits of type {dtype:?}, as in the first row"),
                });
            }
            self.write_logits(index * stride * dtype.size(), bytes, *row)?;
        }
        // SAFETY: the rows were just queued on this sampler's stream, into memory that it owns and does not touch before the launch that this
        // value is for is done.
        let logits = unsafe {
            DeviceLogits::new(
                self.logits.address().cast(),
                dtype,
                row_len as u32,
                stride as u64,
            )
        };
        Ok(Some(logits))
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

    fn write_logits(
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

    /// Copies the packed rows to the device and queues their launches.
    fn launch(&mut self, logits: &DeviceLogits, launches: &[Launch]) -> Result<(), CudaError> {
        let sorted: Vec<_> = launches
            .iter()
            .map(|launch| self.packed.sort(launch.first, launch.rows, logits.dtype()))
            .collect();
        let packed = &self.packed;
        let count = packed.rows.len() as u32;
        self.out.reserve(count as usize)?;
        // SAFETY: takes numbers.
        let workspace_bytes = unsafe { sys::sampling_workspace_size(count, packed.max_edited) };
        self.workspace.reserve(workspace_bytes)?;
        self.likeliest
            .reserve((count * packed.most_top()) as usize)?;
        let [rows, configs, programs, arena, masks] = self.upload.send(
            [
                bytes_of(&packed.rows),
                bytes_of(&packed.configs),
                bytes_of(&packed.programs),
                bytes_of(&packed.arena),
                bytes_of(&packed.masks),
            ],
            &self.stream,
        )?;
        for (launch, kinds) in launches.iter().zip(sorted) {
            let from = logits.starting_at(launch.logits_row, launch.repeated);
            let first = launch.first as usize;
            let batch = SamplingBatch {
                struct_size: size_of::<SamplingBatch>() as u32,
                dtype: logits.dtype() as u32,
                rows: launch.rows,
                row_len: logits.row_len(),
                row_stride: from.row_stride(),
                logits: from.address(),
                row: rows.cast::<SamplingRow>().wrapping_add(first),
                configs: configs.cast(),
                programs: programs.cast(),
                arena: arena.cast(),
                masks: if packed.masks.is_empty() {
                    std::ptr::null()
                } else {
                    masks.cast()
                },
                mask_stride: packed.mask_words as u64,
                mask_words: packed.mask_words as u32,
                cluster: self.options.cluster,
                out: self.out.address().wrapping_add(first).cast(),
                max_edited: packed.max_edited,
                flags: self.options.flags()
                    | match self.options.exact_path {
                        true => 0,
                        false if first == 0 => {
                            BATCH_REQUEST_EACH | packed.known_flags(kinds.is_some(), logits.dtype())
                        }
                        false => packed.known_flags(kinds.is_some(), logits.dtype()),
                    },
                slots: self.slots.states.address(),
                slot_tokens: self.slots.tokens.address(),
            };
            // Before the draw, which changes what a slot holds.
            self.launch_top(&batch, first, workspace_bytes)?;
            let order = kinds.map_or(SamplingOrder::NONE, |kinds| kinds.order(arena.cast()));
            self.launch_one(&batch, &order, workspace_bytes)?;
        }
        Ok(())
    }

    /// Queues the likeliest tokens of the launch's rows that want them; the first is row `first` of the draw.
    fn launch_top(
        &self,
        batch: &SamplingBatch,
        first: usize,
        workspace_bytes: usize,
    ) -> Result<(), CudaError> {
        let top = self.packed.most_top();
        let to = self.likeliest.address().wrapping_add(first * top as usize);
        let rows = &self.packed.rows[first..][..batch.rows as usize];
        let [is_raw, is_processed] = wanted_tops(rows);
        if is_raw {
            // SAFETY: as in `launch_one`; there is room for `top` entries of every row of the draw.
            let code = unsafe { sys::launch_top_logprobs(batch, top, to, self.stream.raw()) };
            launched("launch_top_logprobs", code)?;
        }
        if is_processed {
            // SAFETY: as above.
            let code = unsafe {
                sys::launch_top_processed(
                    batch,
                    top,
                    to,
                    self.workspace.address().cast(),
                    workspace_bytes,
                    self.stream.raw(),
                )
            };
            launched("launch_top_processed", code)?;
        }
        Ok(())
    }

    fn launch_one(
        &self,
        batch: &SamplingBatch,
        order: &SamplingOrder,
        workspace_bytes: usize,
    ) -> Result<(), CudaError> {
        // SAFETY: every address is of memory that this sampler owns and has filled for the rows of the launch, or is the caller's word for
        // `logits` (`DeviceLogits::new`); lists and rows' numbers lie within the arena (`Packed`); the workspace has the size that was asked for; work on the
        // stream is in order, so nothing is overwritten before it is read.
        let code = unsafe {
            sys::launch_sorted_sample_batch(
                batch,
                order,
                self.workspace.address().cast(),
                workspace_bytes,
                self.stream.raw(),
            )
        };
        launched("launch_sorted_sample_batch", code)
    }
}

/// A launch's result is this plus the code of the runtime's error.
const LAUNCH_CUDA: i32 = 1000;

/// `Ok` if a launch was queued.
fn launched(call: &'static str, code: i32) -> Result<(), CudaError> {
    match code {
        0 => Ok(()),
        code if code > LAUNCH_CUDA => Err(CudaError::runtime(call, code - LAUNCH_CUDA)),
        code => Err(CudaError::Batch {
            field: "launch",
            value: code as u64,
            range: "0: the sizes were checked".to_owned(),
        }),
    }
}

/// Whether any row wants the likeliest tokens of its logits as they came, and any those of the distribution that it is drawn from.
fn wanted_tops(rows: &[SamplingRow]) -> [bool; 2] {
    let any = |is: fn(u32) -> bool| rows.iter().any(|row| is(row.flags));
    [
        any(|flags| flags & row_flags::NO_TOP == 0),
        any(|flags| flags & row_flags::TOP != 0),
    ]
}

/// The likeliest tokens of a row and the one that was chosen, if the row wants them.
fn likeliest(arrived: &Arrived<'_>, row: usize, chosen: &SampledToken) -> Vec<TokenLogprob> {
    if arrived.rows[row].top == 0 {
        return Vec::new();
    }
    let mut list: Vec<TokenLogprob> = arrived.likeliest(row).collect();
    if list.iter().all(|entry| entry.token_id != chosen.token_id) {
        list.push(TokenLogprob {
            token_id: chosen.token_id,
            logprob: chosen.logprob,
        });
    }
    list
}

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
        0 | STATUS_STOPPED => Status::Ok,
        1 => Status::Nan,
        2 => Status::Overflow,
        3 => Status::Empty,
        STATUS_ENDED => Status::Ended,
        STATUS_WORKSPACE => {
            return Err(CudaError::Unsupported {
                row,
                reason: "it edits more ids than were counted",
            });
        }
        STATUS_FULL => {
            return Err(CudaError::Unsupported {
                row,
                reason: "its slot is full",
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
