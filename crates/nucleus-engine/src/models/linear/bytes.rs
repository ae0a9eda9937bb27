//! Q4_0, Q4_K and Q6_K: weights of four or six bits, activations of eight.
//!
//! Every weight is `scale·q - min` with a small whole number `q`, so that a dot product is `scale·Σ q·a - min·Σ a` times the
//! activations' scale, and both sums are of whole numbers: `a` is rounded to a byte, as llama.cpp does it. Activations of Q4_0 have a
//! scale for 32 values, those of the K types for 256, as have their weights' outer scales; within these 256, the inner scales
//! are whole numbers too.

use half::f16;
use rayon::prelude::*;

use super::lanes::{self, Lanes, LanesKernel, QUADS};
use super::tiles::{Columns, Tile, TileProducts, passes};
use super::{PANEL, take};
use crate::models::pages::Pages;
use crate::models::simd::half;

/// Inputs whose weights lie together.
const GROUP: usize = 32;
/// Groups under one outer scale of a K type.
const K_GROUPS: usize = 8;

/// How the weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `d·(q - 8)`, d for 32 weights.
    Q4_0,
    /// `d·s·q - dmin·m`; d and dmin for 256 weights, s and m (6 bits) for 32.
    Q4K,
    /// `d·s·(q - 32)`; d for 256 weights, s (8 bits) for 16.
    Q6K,
}

impl Format {
    /// Groups under an outer scale.
    fn groups(self) -> usize {
        match self {
            Self::Q4_0 => 1,
            Self::Q4K | Self::Q6K => K_GROUPS,
        }
    }

    /// Bytes of a block in a file.
    fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Values of activations under one scale.
    pub(super) fn activation_block(self) -> usize {
        self.groups() * GROUP
    }

    /// Bytes that the weights of a block take as they are held.
    pub(super) fn held_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 16 + 2,
            Self::Q4K => 128 + 8 + 8 + 2 + 2,
            Self::Q6K => 192 + 16 + 2,
        }
    }
}

/// The lower four bits of a group's weights: byte `4·output + i` of part `j` has those of input `4·j + i` and, above, of
/// input `16 + 4·j + i`.
type Low = [[u8; QUADS]; 4];
/// The bits 4 and 5: byte `4·output + i` of part `half` has, at place `j`, those of input `16·half + 4·j + i`.
type High = [[u8; QUADS]; 2];

/// A matrix in panels of 16 outputs; outputs beyond the last are zero.
pub(super) struct BytePanels {
    format: Format,
    /// Groups in a row.
    groups: usize,
    /// `[panels, groups]`
    low: Pages<Low>,
    /// `[panels, groups]` for Q6_K, else empty.
    high: Pages<High>,
    /// d, as halves: `[panels, blocks]`.
    scales: Pages<[u16; PANEL]>,
    /// dmin, as halves: `[panels, blocks]` for Q4_K, else empty.
    min_scales: Pages<[u16; PANEL]>,
    /// s: `[panels, groups, 1 or 2]` for the K types, else empty.
    inner_scales: Pages<[i8; PANEL]>,
    /// m: `[panels, groups]` for Q4_K, else empty.
    mins: Pages<[u8; PANEL]>,
}

/// A block of one output, read from a file.
struct Block {
    d: u16,
    dmin: u16,
    /// q of each weight.
    q: [u8; K_GROUPS * GROUP],
    /// s of each 16 weights.
    inner_scales: [i8; 2 * K_GROUPS],
    /// m of each 32.
    mins: [u8; K_GROUPS],
}

impl Block {
    fn read(format: Format, bytes: &[u8]) -> Self {
        let mut block = Self {
            d: 0,
            dmin: 0,
            q: [0; K_GROUPS * GROUP],
            inner_scales: [0; 2 * K_GROUPS],
            mins: [0; K_GROUPS],
        };
        match format {
            Format::Q4_0 => block.read_q4_0(bytes),
            Format::Q4K => block.read_q4_k(bytes),
            Format::Q6K => block.read_q6_k(bytes),
        }
        block
    }

    fn read_q4_0(&mut self, bytes: &[u8]) {
        self.d = u16::from_le_bytes([bytes[0], bytes[1]]);
        for (i, byte) in bytes[2..18].iter().enumerate() {
            (self.q[i], self.q[i + 16]) = (byte & 0xf, byte >> 4);
        }
    }

    fn read_q4_k(&mut self, bytes: &[u8]) {
        self.d = u16::from_le_bytes([bytes[0], bytes[1]]);
        self.dmin = u16::from_le_bytes([bytes[2], bytes[3]]);
        let packed = &bytes[4..16];
        for group in 0..K_GROUPS {
            let (scale, min) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                let upper = |byte: u8| byte >> 6 << 4;
                (
                    packed[group + 4] & 0xf | upper(packed[group - 4]),
                    packed[group + 4] >> 4 | upper(packed[group]),
                )
            };
            self.mins[group] = min;
            self.inner_scales[2 * group..2 * group + 2].fill(scale.cast_signed());
        }
        for (pair, bytes) in bytes[16..].chunks_exact(GROUP).enumerate() {
            for (i, byte) in bytes.iter().enumerate() {
                let at = 2 * pair * GROUP + i;
                (self.q[at], self.q[at + GROUP]) = (byte & 0xf, byte >> 4);
            }
        }
    }

    fn read_q6_k(&mut self, bytes: &[u8]) {
        let (low, rest) = bytes.split_at(128);
        let (high, rest) = rest.split_at(64);
        for half in 0..2 {
            for i in 0..GROUP {
                let (low, high) = (&low[64 * half..], high[32 * half + i]);
                let nibbles = [
                    low[i] & 0xf,
                    low[i + 32] & 0xf,
                    low[i] >> 4,
                    low[i + 32] >> 4,
                ];
                for (part, nibble) in nibbles.into_iter().enumerate() {
                    let at = 128 * half + GROUP * part + i;
                    self.q[at] = nibble | (high >> (2 * part) & 3) << 4;
                }
            }
        }
        for (scale, &byte) in self.inner_scales.iter_mut().zip(rest) {
            *scale = byte.cast_signed();
        }
        self.d = u16::from_le_bytes([rest[16], rest[17]]);
    }
}

/// A panel as it is being filled.
struct PanelMut<'a> {
    low: &'a mut [Low],
    high: &'a mut [High],
    scales: &'a mut [[u16; PANEL]],
    min_scales: &'a mut [[u16; PANEL]],
    inner_scales: &'a mut [[i8; PANEL]],
    mins: &'a mut [[u8; PANEL]],
}

impl PanelMut<'_> {
    /// Copies a block into its lane.
    fn put(&mut self, format: Format, lane: usize, index: usize, block: &Block) {
        self.scales[index][lane] = block.d;
        for group in 0..format.groups() {
            let at = index * format.groups() + group;
            let q = &block.q[group * GROUP..(group + 1) * GROUP];
            for (input, &q) in q.iter().enumerate() {
                let (half, quad, i) = (input / 16, input % 16 / 4, 4 * lane + input % 4);
                self.low[at][quad][i] |= (q & 0xf) << (4 * half);
                if format == Format::Q6K {
                    self.high[at][half][i] |= (q >> 4) << (2 * quad);
                }
            }
            match format {
                Format::Q4_0 => {}
                Format::Q4K => {
                    self.inner_scales[at][lane] = block.inner_scales[2 * group];
                    self.mins[at][lane] = block.mins[group];
                }
                Format::Q6K => {
                    self.inner_scales[2 * at][lane] = block.inner_scales[2 * group];
                    self.inner_scales[2 * at + 1][lane] = block.inner_scales[2 * group + 1];
                }
            }
        }
        if format == Format::Q4K {
            self.min_scales[index][lane] = block.dmin;
        }
    }
}

impl BytePanels {
    /// Rearranges a tensor `[outputs, inputs]`.
    pub(super) fn new(format: Format, data: &[u8], inputs: usize) -> Self {
        let groups = inputs / GROUP;
        let blocks = groups / format.groups();
        let row_bytes = blocks * format.block_bytes();
        let panels = data.len().div_ceil(row_bytes * PANEL);
        let only = |formats: &[Format], len: usize| {
            if formats.contains(&format) { len } else { 0 }
        };
        let inner = match format {
            Format::Q4_0 => 0,
            Format::Q4K => groups,
            Format::Q6K => 2 * groups,
        };
        let (high, min_blocks, min_groups) = (
            only(&[Format::Q6K], groups),
            only(&[Format::Q4K], blocks),
            only(&[Format::Q4K], groups),
        );
        let mut this = Self {
            format,
            groups,
            low: Pages::zeroed(panels * groups),
            high: Pages::zeroed(panels * high),
            scales: Pages::zeroed(panels * blocks),
            min_scales: Pages::zeroed(panels * min_blocks),
            inner_scales: Pages::zeroed(panels * inner),
            mins: Pages::zeroed(panels * min_groups),
        };
        // Chunks of length 0 are none; an empty part gives each panel an empty slice.
        let mut rest = PanelMut {
            low: &mut this.low,
            high: &mut this.high,
            scales: &mut this.scales,
            min_scales: &mut this.min_scales,
            inner_scales: &mut this.inner_scales,
            mins: &mut this.mins,
        };
        let mut targets = Vec::with_capacity(panels);
        for _ in 0..panels {
            targets.push(PanelMut {
                low: take(&mut rest.low, groups),
                high: take(&mut rest.high, high),
                scales: take(&mut rest.scales, blocks),
                min_scales: take(&mut rest.min_scales, min_blocks),
                inner_scales: take(&mut rest.inner_scales, inner),
                mins: take(&mut rest.mins, min_groups),
            });
        }
        data.par_chunks(row_bytes * PANEL)
            .zip(targets)
            .for_each(|(rows, mut panel)| {
                for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                    for (index, bytes) in row.chunks_exact(format.block_bytes()).enumerate() {
                        panel.put(format, lane, index, &Block::read(format, bytes));
                    }
                }
            });
        this
    }

    /// Values of activations under one scale.
    pub(super) fn activation_block(&self) -> usize {
        self.format.activation_block()
    }

    /// One row of weights, dequantised.
    pub(super) fn weights_of(&self, output: usize, row: &mut [f32]) {
        let (panel, lane) = (output / PANEL, output % PANEL);
        for (group, row) in row.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let at = panel * self.groups + group;
            let block = at / self.format.groups();
            let d = half(self.scales[block][lane]);
            for (input, value) in row.iter_mut().enumerate() {
                let (part, quad, i) = (input / 16, input % 16 / 4, 4 * lane + input % 4);
                let low = self.low[at][quad][i] >> (4 * part) & 0xf;
                *value = match self.format {
                    Format::Q4_0 => (f32::from(low) - 8.0) * d,
                    Format::Q4K => {
                        let scale = d * f32::from(self.inner_scales[at][lane]);
                        let min =
                            half(self.min_scales[block][lane]) * f32::from(self.mins[at][lane]);
                        scale * f32::from(low) - min
                    }
                    Format::Q6K => {
                        let q = low | (self.high[at][part][i] >> (2 * quad) & 3) << 4;
                        let scale = f32::from(self.inner_scales[2 * at + part][lane]);
                        d * scale * (f32::from(q) - 32.0)
                    }
                };
            }
        }
    }

    /// Multiplies all rows of activations with the panels from `first_panel` on, as many as `output` has columns for.
    pub(super) fn multiply(
        &self,
        first_panel: usize,
        activations: &ByteActivations,
        output: &mut [&mut [f32]],
    ) {
        lanes::run(Multiply {
            panels: self,
            activations,
            columns: Columns {
                first_panel,
                output,
            },
        });
    }
}

/// Rows of activations, rounded to bytes.
pub(super) struct ByteActivations {
    /// Groups under one scale.
    scale_groups: usize,
    /// Four neighbouring values, the first in the lowest byte: `[passes, groups, rows]`.
    quads: Vec<[i32; GROUP / 4]>,
    /// Sums of sixteen values: `[passes, groups, rows]`.
    sums: Vec<[i32; 2]>,
    /// `[passes, groups / scale_groups, rows]`
    scales: Vec<f32>,
}

/// Groups that a thread rounds at a time.
const GROUPS_PER_TASK: usize = 512;

impl ByteActivations {
    /// Quantises rows of `inputs` values: `scale = max|x| / 127` over `block` of them, `q = round(x / scale)`.
    pub(super) fn new(input: &[f32], inputs: usize, block: usize) -> Self {
        let (count, scale_groups) = (input.len() / GROUP, block / GROUP);
        let mut activations = Self {
            scale_groups,
            quads: vec![[0; GROUP / 4]; count],
            sums: vec![[0; 2]; count],
            scales: vec![0.0; count / scale_groups],
        };
        let mut quads = activations.quads.as_mut_slice();
        let mut sums = activations.sums.as_mut_slice();
        let mut scales = activations.scales.as_mut_slice();
        for pass in passes(input.len() / inputs) {
            let rows = pass.len();
            let input = &input[pass.start * inputs..pass.end * inputs];
            let groups = rows * inputs / GROUP;
            let quads = take(&mut quads, groups).par_chunks_mut(rows * scale_groups);
            let sums = take(&mut sums, groups).par_chunks_mut(rows * scale_groups);
            let scales = take(&mut scales, groups / scale_groups).par_chunks_mut(rows);
            quads
                .zip(sums)
                .zip(scales)
                .with_min_len(GROUPS_PER_TASK.div_ceil(rows * scale_groups))
                .enumerate()
                .for_each(|(index, ((quads, sums), scales))| {
                    lanes::run(Quantize {
                        input: &input[index * block..],
                        inputs,
                        quads,
                        sums,
                        scales,
                    });
                });
        }
        activations
    }

    /// The values under one scale.
    pub(super) fn block(&self) -> usize {
        self.scale_groups * GROUP
    }
}

/// The values under one scale of each row of a pass.
struct Quantize<'a> {
    /// From the first row's on.
    input: &'a [f32],
    inputs: usize,
    /// `[groups, rows]`
    quads: &'a mut [[i32; GROUP / 4]],
    /// `[groups, rows]`
    sums: &'a mut [[i32; 2]],
    scales: &'a mut [f32],
}

impl LanesKernel for Quantize<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let rows = self.scales.len();
        let block = self.quads.len() / rows * GROUP;
        for (row, scale) in self.scales.iter_mut().enumerate() {
            let values = &self.input[row * self.inputs..][..block];
            // Without the sign bit, the bits of a float are in the order of its values, with NaN above infinity.
            let magnitude = |max: u32, value: &f32| max.max(value.abs().to_bits());
            let max = f32::from_bits(values.iter().fold(0, magnitude));
            let exact = max / 127.0;
            let inverse = if max > 0.0 { 1.0 / exact } else { 0.0 };
            // Q4_0's activations are blocks of Q8_0, whose scale is a half.
            *scale = if block == GROUP {
                f16::from_f32(exact).to_f32()
            } else {
                exact
            };
            for (group, values) in values.as_chunks::<GROUP>().0.iter().enumerate() {
                let at = group * rows + row;
                let rounded = values.map(|value| round(value * inverse));
                for (quad, values) in self.quads[at].iter_mut().zip(rounded.as_chunks::<4>().0) {
                    *quad = i32::from_le_bytes(values.map(|value| value as u8));
                }
                let halves = rounded.as_chunks::<16>().0;
                for (sum, values) in self.sums[at].iter_mut().zip(halves) {
                    *sum = values.iter().sum();
                }
            }
        }
    }
}

/// The nearest whole number, of two the one away from zero; NaN gives 0, and its scale is NaN.
#[inline(always)]
fn round(value: f32) -> i32 {
    (value + 0.5_f32.copysign(value)) as i32
}

/// `sums[output] += scales[output]·products[output]`. The numbers are far from overflow, and are not checked for it, so that builds
/// with checks are as fast as others.
#[inline(always)]
fn add_scaled<T: Copy + Into<i32>>(
    sums: &mut [i32; PANEL],
    scales: &[T; PANEL],
    products: &[i32; PANEL],
) {
    for lane in 0..PANEL {
        let scale: i32 = scales[lane].into();
        sums[lane] = sums[lane].wrapping_add(scale.wrapping_mul(products[lane]));
    }
}

struct Multiply<'a, 'b> {
    panels: &'a BytePanels,
    activations: &'a ByteActivations,
    columns: Columns<'a, 'b>,
}

impl LanesKernel for Multiply<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let operands = (self.panels, self.activations);
        self.columns.fill(lanes, &operands);
    }
}

impl TileProducts for (&BytePanels, &ByteActivations) {
    #[inline(always)]
    fn tile<L: Lanes, const ROWS: usize>(
        &self,
        lanes: L,
        panel: usize,
        tile: Tile,
    ) -> [[f32; PANEL]; ROWS] {
        let (panels, activations) = *self;
        let blocks = panels.groups / activations.scale_groups;
        let product = Product {
            lanes,
            panels,
            panel,
            tile,
            quads: tile.pass(&activations.quads, panels.groups),
            sums: tile.pass(&activations.sums, panels.groups),
            scales: tile.pass(&activations.scales, blocks),
        };
        match panels.format {
            Format::Q4_0 => product.q4_0(),
            Format::Q4K => product.q4_k(),
            Format::Q6K => product.q6_k(),
        }
    }
}

/// A panel and a tile of rows, with what their pass has.
struct Product<'a, L, const ROWS: usize> {
    lanes: L,
    panels: &'a BytePanels,
    panel: usize,
    tile: Tile,
    quads: &'a [[i32; GROUP / 4]],
    sums: &'a [[i32; 2]],
    scales: &'a [f32],
}

impl<L: Lanes, const ROWS: usize> Product<'_, L, ROWS> {
    /// A panel's part of something of which each has `count`.
    #[inline(always)]
    fn part<'b, T>(&self, all: &'b [T], count: usize) -> &'b [T] {
        &all[self.panel * count..(self.panel + 1) * count]
    }

    /// `totals += d·scale·sums`, with the scale of a row's block.
    #[inline(always)]
    fn scale(&self, totals: &mut [f32; PANEL], sums: &[i32; PANEL], d: &[f32; PANEL], scale: f32) {
        for lane in 0..PANEL {
            totals[lane] =
                self.lanes
                    .multiply_add(sums[lane] as f32, d[lane] * scale, totals[lane]);
        }
    }

    /// Adds the products of a group's lower halves, and of its upper halves, of weights of four bits.
    #[inline(always)]
    fn add_nibbles(&self, sums: &mut [L::Sums; ROWS], low: &Low, group: usize) {
        let quads: &[_; ROWS] = self.tile.at(self.quads, group);
        for (j, bytes) in low.iter().enumerate() {
            let bytes = self.lanes.load(bytes);
            let (first, second) = (self.lanes.low(bytes), self.lanes.high(bytes));
            for (sums, quads) in sums.iter_mut().zip(quads) {
                *sums = self.lanes.add(*sums, first, quads[j]);
                *sums = self.lanes.add(*sums, second, quads[j + 4]);
            }
        }
    }

    /// The lower four bits of each byte, or the upper.
    #[inline(always)]
    fn half(&self, bytes: &[u8; QUADS], half: usize) -> L::Bytes {
        let bytes = self.lanes.load(bytes);
        match half {
            0 => self.lanes.low(bytes),
            _ => self.lanes.high(bytes),
        }
    }

    #[inline(always)]
    fn q4_0(&self) -> [[f32; PANEL]; ROWS] {
        let groups = self.panels.groups;
        let low = self.part(&self.panels.low, groups);
        let scales = self.part(&self.panels.scales, groups);
        let mut totals = [[0.0; PANEL]; ROWS];
        for (group, (low, d)) in low.iter().zip(scales).enumerate() {
            let mut sums = [self.lanes.splat(0); ROWS];
            let all: &[_; ROWS] = self.tile.at(self.sums, group);
            for (sums, [a, b]) in sums.iter_mut().zip(all) {
                *sums = self.lanes.splat(-8 * (a + b));
            }
            self.add_nibbles(&mut sums, low, group);
            let d = self.lanes.halves(d);
            let scales: &[_; ROWS] = self.tile.at(self.scales, group);
            for row in 0..ROWS {
                let sums = self.lanes.numbers(sums[row]);
                self.scale(&mut totals[row], &sums, &d, scales[row]);
            }
        }
        totals
    }

    #[inline(always)]
    fn q4_k(&self) -> [[f32; PANEL]; ROWS] {
        let panels = self.panels;
        let groups = panels.groups;
        let low = self.part(&panels.low, groups);
        let inner = self.part(&panels.inner_scales, groups);
        let mins = self.part(&panels.mins, groups);
        let scales = self.part(&panels.scales, groups / K_GROUPS);
        let min_scales = self.part(&panels.min_scales, groups / K_GROUPS);
        let mut totals = [[0.0; PANEL]; ROWS];
        for (block, (d, dmin)) in scales.iter().zip(min_scales).enumerate() {
            let mut scaled = [[0; PANEL]; ROWS];
            let first = block * K_GROUPS;
            for group in first..first + K_GROUPS {
                let mut sums = [self.lanes.splat(0); ROWS];
                self.add_nibbles(&mut sums, &low[group], group);
                let inner = &inner[group];
                for row in 0..ROWS {
                    let sums = self.lanes.numbers(sums[row]);
                    add_scaled(&mut scaled[row], inner, &sums);
                }
            }
            let (d, dmin) = (self.lanes.halves(d), self.lanes.halves(dmin));
            let scales: &[_; ROWS] = self.tile.at(self.scales, block);
            for row in 0..ROWS {
                self.scale(&mut totals[row], &scaled[row], &d, scales[row]);
                let mut below = [0; PANEL];
                for (group, mins) in (first..).zip(&mins[first..first + K_GROUPS]) {
                    let sums: &[_; ROWS] = self.tile.at(self.sums, group);
                    let [a, b] = sums[row];
                    add_scaled(&mut below, mins, &[-(a + b); PANEL]);
                }
                self.scale(&mut totals[row], &below, &dmin, scales[row]);
            }
        }
        totals
    }

    #[inline(always)]
    fn q6_k(&self) -> [[f32; PANEL]; ROWS] {
        let panels = self.panels;
        let groups = panels.groups;
        let low = self.part(&panels.low, groups);
        let high = self.part(&panels.high, groups);
        let inner = self.part(&panels.inner_scales, 2 * groups);
        let scales = self.part(&panels.scales, groups / K_GROUPS);
        let mut totals = [[0.0; PANEL]; ROWS];
        for (block, d) in scales.iter().enumerate() {
            let mut scaled = [[0; PANEL]; ROWS];
            for group in block * K_GROUPS..(block + 1) * K_GROUPS {
                for half in 0..2 {
                    let bits = self.lanes.load(&high[group][half]);
                    let low = &low[group];
                    let weights = [
                        self.lanes.join::<0>(self.half(&low[0], half), bits),
                        self.lanes.join::<1>(self.half(&low[1], half), bits),
                        self.lanes.join::<2>(self.half(&low[2], half), bits),
                        self.lanes.join::<3>(self.half(&low[3], half), bits),
                    ];
                    let inner = &inner[2 * group + half];
                    let quads: &[_; ROWS] = self.tile.at(self.quads, group);
                    let sums: &[_; ROWS] = self.tile.at(self.sums, group);
                    for row in 0..ROWS {
                        let mut products = self.lanes.splat(-32 * sums[row][half]);
                        for (j, &weights) in weights.iter().enumerate() {
                            let quad = quads[row][4 * half + j];
                            products = self.lanes.add(products, weights, quad);
                        }
                        let scaled = &mut scaled[row];
                        let products = self.lanes.numbers(products);
                        add_scaled(scaled, inner, &products);
                    }
                }
            }
            let d = self.lanes.halves(d);
            let scales: &[_; ROWS] = self.tile.at(self.scales, block);
            for row in 0..ROWS {
                self.scale(&mut totals[row], &scaled[row], &d, scales[row]);
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multiply(panels: &BytePanels, input: &[f32], outputs: usize) -> Vec<f32> {
        let mut output = vec![f32::NAN; outputs];
        let activations = ByteActivations::new(input, input.len(), panels.activation_block());
        panels.multiply(0, &activations, &mut [&mut output]);
        output
    }

    #[test]
    fn q4_0_by_hand() {
        // d = 2; the first weight is 15 - 8, the last 0 - 8, all others 0
        let mut data = [0x88; 18];
        data[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        (data[2], data[17]) = (0x8f, 0x08);
        let panels = BytePanels::new(Format::Q4_0, &data, 32);
        let mut input = [1.0; 32];
        (input[0], input[31]) = (127.0, -3.0);
        assert_eq!(multiply(&panels, &input, 1), [2.0 * (7.0 * 127.0 + 24.0)]);
        let mut row = [f32::NAN; 32];
        panels.weights_of(0, &mut row);
        assert_eq!((row[0], row[1], row[31]), (14.0, 0.0, -16.0));
    }

    #[test]
    fn activations_are_rounded_away_from_zero() {
        let mut input = [0.0; 32];
        (input[0], input[1], input[2], input[3]) = (127.0, 0.5, -1.5, -126.4);
        let activations = ByteActivations::new(&input, 32, 32);
        let expected = [127, 1, -2, -126].map(i8::cast_unsigned);
        assert_eq!(activations.quads[0][0], i32::from_le_bytes(expected));
        assert_eq!((activations.sums[0], activations.scales[0]), ([0, 0], 1.0));
    }

    #[test]
    fn a_value_that_is_not_finite_stays_visible() {
        let panels = BytePanels::new(Format::Q4_0, &[1; 18], 32);
        for defect in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input = [1.0; 32];
            input[7] = defect;
            assert!(multiply(&panels, &input, 1)[0].is_nan());
        }
    }
}
