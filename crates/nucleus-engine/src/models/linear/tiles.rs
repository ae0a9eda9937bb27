//! Rows of activations in passes and tiles.
//!
//! A kernel multiplies a panel with a tile of rows: as many as its sums fit into the vector registers. The rows of a pass lie
//! interleaved, `[blocks, rows]`, so that what a tile reads together lies together: rows of a power of two of bytes, one after the
//! other, would fall into the same few places of the first-level cache and drive each other out.

use std::ops::Range;

use super::PANEL;
use super::lanes::Lanes;

/// Rows of activations that stay near while the panels pass by.
const ROWS_PER_PASS: usize = 32;

/// Rows that pass by together: `start..end`.
pub(super) fn passes(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..rows).step_by(ROWS_PER_PASS);
    starts.map(move |start| start..rows.min(start + ROWS_PER_PASS))
}

/// Some rows of a pass.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// The first row of the pass.
    pub(super) pass: usize,
    /// Rows in the pass.
    pub(super) pass_rows: usize,
    /// The tile's first row, counted from the pass's.
    pub(super) row: usize,
}

impl Tile {
    /// The part of its pass of something of which each row has `count`.
    #[inline(always)]
    pub(super) fn pass<T>(self, all: &[T], count: usize) -> &[T] {
        &all[self.pass * count..(self.pass + self.pass_rows) * count]
    }

    /// What the tile's rows have at a place: `pass` is `[places, pass_rows]`.
    #[inline(always)]
    pub(super) fn at<T, const ROWS: usize>(self, pass: &[T], place: usize) -> &[T; ROWS] {
        let rows = &pass[place * self.pass_rows + self.row..];
        rows.first_chunk()
            .expect("a pass has the rows of its tiles")
    }
}

/// Products of panels with tiles of rows.
pub(super) trait TileProducts {
    /// The products of one panel's outputs with `ROWS` rows.
    fn tile<L: Lanes, const ROWS: usize>(
        &self,
        lanes: L,
        panel: usize,
        tile: Tile,
    ) -> [[f32; PANEL]; ROWS];
}

/// The columns of all rows that some panels compute.
pub(super) struct Columns<'a, 'b> {
    pub(super) first_panel: usize,
    pub(super) output: &'a mut [&'b mut [f32]],
}

impl Columns<'_, '_> {
    /// Walks the rows in passes, the panels in each pass, and tiles of rows in each panel.
    #[inline(always)]
    pub(super) fn fill<L: Lanes>(mut self, lanes: L, products: &impl TileProducts) {
        let width = self.output.first().map_or(0, |row| row.len());
        for pass in passes(self.output.len()) {
            for panel in 0..width.div_ceil(PANEL) {
                let mut tile = Tile {
                    pass: pass.start,
                    pass_rows: pass.len(),
                    row: 0,
                };
                if L::WIDE {
                    self.tiles::<L, 16>(lanes, products, panel, &mut tile);
                    self.tiles::<L, 8>(lanes, products, panel, &mut tile);
                }
                self.tiles::<L, 4>(lanes, products, panel, &mut tile);
                self.tiles::<L, 2>(lanes, products, panel, &mut tile);
                self.tiles::<L, 1>(lanes, products, panel, &mut tile);
            }
        }
    }

    /// As many tiles of so many rows as there are left in the pass.
    #[inline(always)]
    fn tiles<L: Lanes, const ROWS: usize>(
        &mut self,
        lanes: L,
        products: &impl TileProducts,
        panel: usize,
        tile: &mut Tile,
    ) {
        while tile.row + ROWS <= tile.pass_rows {
            let totals = products.tile::<L, ROWS>(lanes, self.first_panel + panel, *tile);
            let first_row = tile.pass + tile.row;
            for (row, totals) in self.output[first_row..].iter_mut().zip(&totals) {
                let columns = &mut row[panel * PANEL..];
                let width = columns.len().min(PANEL);
                columns[..width].copy_from_slice(&totals[..width]);
            }
            tile.row += ROWS;
        }
    }
}
