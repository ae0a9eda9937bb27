//! What a device has to know of a step's rows: one list of numbers, which goes up in one copy.

use std::ops::Range;

use super::super::cache::BLOCK_SIZE;
use crate::cuda::NO_DRAWN_ROW;
use crate::kv_cache::BlockId;
use crate::model::Chunk;

/// Rows of steps in which every sequence decodes a token. A step with fewer rows runs as the next of these.
const BUCKETS: [usize; 15] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];

/// The least number of positions that steps are told apart by.
const LEAST_CONTEXT: usize = 256;

/// Every list begins at a multiple of so many numbers: 16 bytes.
const ALIGNMENT: usize = 4;

/// How many numbers each list of a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) rows: usize,
    /// Rows whose logits are wanted.
    pub(super) wanted: usize,
    /// Groups of rows that attend together.
    pub(super) tiles: usize,
    /// Block tables.
    pub(super) tables: usize,
    pub(super) blocks_per_table: usize,
    /// No position is beyond it.
    pub(super) max_context: usize,
}

/// Where each list lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) tokens: Range<usize>,
    pub(super) positions: Range<usize>,
    /// The block table of each row.
    pub(super) sequences: Range<usize>,
    /// Which of the tokens just drawn a row takes.
    pub(super) drawn_rows: Range<usize>,
    /// Rows whose logits are wanted.
    pub(super) wanted: Range<usize>,
    /// Pairs of the first row and the number of rows.
    pub(super) tiles: Range<usize>,
    pub(super) block_tables: Range<usize>,
    /// Numbers in all.
    pub(super) len: usize,
}

impl Shape {
    /// The lists' places.
    pub(super) fn layout(&self) -> Layout {
        let mut end = 0_usize;
        let mut list = |len: usize| {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + len;
            start..end
        };
        Layout {
            tokens: list(self.rows),
            positions: list(self.rows),
            sequences: list(self.rows),
            drawn_rows: list(self.rows),
            wanted: list(self.wanted),
            tiles: list(2 * self.tiles),
            block_tables: list(self.tables * self.blocks_per_table),
            len: end,
        }
    }

    /// The largest number of positions, as steps are told apart by it, of a model with that context.
    pub(super) fn context_bucket(positions: usize) -> usize {
        positions.next_power_of_two().max(LEAST_CONTEXT)
    }
}

/// Numbers that a step of so many rows and sequences may need.
pub(super) fn most_words(rows: usize, sequences: usize, context_length: usize) -> usize {
    let blocks_per_table = Shape::context_bucket(context_length) / BLOCK_SIZE;
    let shape = Shape {
        rows: rows.max(bucket(sequences).unwrap_or(0)),
        wanted: rows,
        tiles: rows,
        tables: bucket(sequences).unwrap_or(sequences),
        blocks_per_table,
        max_context: context_length,
    };
    shape.layout().len
}

/// The smallest bucket for so many rows.
pub(super) fn bucket(rows: usize) -> Option<usize> {
    BUCKETS.into_iter().find(|&bucket| bucket >= rows)
}

/// What a step is described with beside its chunks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Describe {
    /// A block that belongs to no sequence.
    pub(super) spare_block: u32,
    /// Most rows that attend together.
    pub(super) tile_rows: usize,
    /// Whether a step in which every sequence decodes a token may have rows beside the chunks', up to the next bucket.
    pub(super) pads: bool,
}

/// A step's rows as numbers.
#[derive(Debug, Default)]
pub(super) struct Described {
    pub(super) words: Vec<u32>,
    /// For each chunk, its last row.
    pub(super) last_rows: Vec<usize>,
    pub(super) wanted: usize,
    /// Whether it was filled up: every chunk is one token whose logits are wanted, and such steps are alike.
    pub(super) is_padded: bool,
}

impl Described {
    /// Describes a step.
    pub(super) fn fill(&mut self, chunks: &[Chunk<'_>], how: Describe) -> Shape {
        let decodes = chunks
            .iter()
            .all(|chunk| chunk.tokens.len() == 1 && chunk.wants_logits);
        self.wanted = chunks.iter().filter(|chunk| chunk.wants_logits).count();
        let padded = bucket(chunks.len()).filter(|_| decodes && how.pads);
        self.is_padded = padded.is_some();
        let shape = match padded {
            Some(rows) => decode_shape(chunks, rows),
            None => shape(chunks, how.tile_rows),
        };
        let layout = shape.layout();
        self.words.clear();
        self.words.resize(layout.len, 0);
        self.words[layout.drawn_rows.clone()].fill(NO_DRAWN_ROW);
        self.last_rows.clear();
        let mut lists = Lists {
            words: &mut self.words,
            layout: &layout,
            rows: 0,
            wanted: 0,
            tiles: 0,
            tables: 0,
        };
        let mut before: Option<&Chunk<'_>> = None;
        for chunk in chunks {
            // A bucket's rows have a table each.
            let shares = !self.is_padded && before.is_some_and(|b| same_blocks(b, chunk));
            if !shares {
                lists.add_table(shape.blocks_per_table, chunk.blocks);
            }
            lists.add_rows(chunk, how.tile_rows);
            self.last_rows.push(lists.rows - 1);
            before = Some(chunk);
        }
        while lists.rows < shape.rows {
            lists.add_padding(shape.blocks_per_table, how.spare_block);
        }
        shape
    }

    /// Makes a row, which is alone with its table, one that only fills the step up.
    pub(super) fn make_padding(&mut self, shape: Shape, row: usize, how: Describe) {
        let layout = shape.layout();
        let table = self.words[layout.sequences.start + row] as usize;
        for (place, word) in [
            (layout.tokens.start + row, 0),
            (layout.positions.start + row, 0),
            (
                layout.block_tables.start + table * shape.blocks_per_table,
                how.spare_block,
            ),
        ] {
            self.words[place] = word;
        }
    }
}

/// Whether two chunks are of one sequence.
fn same_blocks(a: &Chunk<'_>, b: &Chunk<'_>) -> bool {
    std::ptr::eq(a.blocks, b.blocks)
}

/// Positions that a chunk's sequence has after it.
fn end(chunk: &Chunk<'_>) -> usize {
    chunk.position + chunk.tokens.len()
}

fn longest(chunks: &[Chunk<'_>]) -> usize {
    chunks.iter().map(end).max().unwrap_or(0)
}

fn decode_shape(chunks: &[Chunk<'_>], rows: usize) -> Shape {
    let max_context = Shape::context_bucket(longest(chunks));
    Shape {
        rows,
        wanted: rows,
        tiles: rows,
        tables: rows,
        blocks_per_table: max_context / BLOCK_SIZE,
        max_context,
    }
}

fn shape(chunks: &[Chunk<'_>], tile_rows: usize) -> Shape {
    let lens = chunks.iter().map(|chunk| chunk.tokens.len());
    let shared = chunks
        .windows(2)
        .filter(|pair| same_blocks(&pair[0], &pair[1]));
    Shape {
        rows: lens.clone().sum(),
        wanted: chunks.iter().filter(|chunk| chunk.wants_logits).count(),
        tiles: lens.map(|len| len.div_ceil(tile_rows)).sum(),
        tables: chunks.len() - shared.count(),
        blocks_per_table: longest(chunks).div_ceil(BLOCK_SIZE),
        max_context: Shape::context_bucket(longest(chunks)),
    }
}

/// Lists that are being filled.
struct Lists<'a> {
    words: &'a mut [u32],
    layout: &'a Layout,
    rows: usize,
    wanted: usize,
    tiles: usize,
    tables: usize,
}

impl Lists<'_> {
    fn add_table(&mut self, blocks_per_table: usize, blocks: &[BlockId]) {
        let start = self.layout.block_tables.start + self.tables * blocks_per_table;
        let table = &mut self.words[start..start + blocks_per_table];
        for (word, &BlockId(block)) in table.iter_mut().zip(blocks) {
            *word = block;
        }
        self.tables += 1;
    }

    fn add_rows(&mut self, chunk: &Chunk<'_>, tile_rows: usize) {
        let (first, len) = (self.rows, chunk.tokens.len());
        for (index, &token) in chunk.tokens.iter().enumerate() {
            self.add_row(token, chunk.position + index);
        }
        for start in (0..len).step_by(tile_rows) {
            self.add_tile(first + start, tile_rows.min(len - start));
        }
        if chunk.wants_logits {
            self.add_wanted(self.rows - 1);
        }
    }

    fn add_padding(&mut self, blocks_per_table: usize, spare_block: u32) {
        let table = self.layout.block_tables.start + self.tables * blocks_per_table;
        self.words[table] = spare_block;
        self.tables += 1;
        self.add_row(0, 0);
        self.add_tile(self.rows - 1, 1);
        self.add_wanted(self.rows - 1);
    }

    fn add_row(&mut self, token: u32, position: usize) {
        let Layout {
            tokens,
            positions,
            sequences,
            ..
        } = self.layout;
        self.words[tokens.start + self.rows] = token;
        self.words[positions.start + self.rows] = position as u32;
        self.words[sequences.start + self.rows] = self.tables as u32 - 1;
        self.rows += 1;
    }

    fn add_tile(&mut self, first_row: usize, rows: usize) {
        let place = self.layout.tiles.start + 2 * self.tiles;
        self.words[place] = first_row as u32;
        self.words[place + 1] = rows as u32;
        self.tiles += 1;
    }

    fn add_wanted(&mut self, row: usize) {
        self.words[self.layout.wanted.start + self.wanted] = row as u32;
        self.wanted += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOW: Describe = Describe {
        spare_block: 99,
        tile_rows: 4,
        pads: true,
    };

    fn chunk<'a>(tokens: &'a [u32], position: usize, blocks: &'a [BlockId]) -> Chunk<'a> {
        Chunk {
            tokens,
            position,
            blocks,
            wants_logits: true,
        }
    }

    fn list(described: &Described, range: &Range<usize>) -> Vec<u32> {
        described.words[range.clone()].to_vec()
    }

    #[test]
    fn chunks_become_rows_tiles_and_tables() {
        let (a, b) = ([BlockId(7), BlockId(3)], [BlockId(5)]);
        let chunks = [
            Chunk {
                wants_logits: false,
                ..chunk(&[1, 2, 3, 4, 5, 6], 14, &a)
            },
            chunk(&[8], 20, &a),
            chunk(&[9], 2, &b),
        ];
        let mut described = Described::default();
        let shape = described.fill(&chunks, HOW);
        assert_eq!([shape.rows, shape.wanted, shape.tiles], [8, 2, 4]);
        // The first two chunks are of one sequence; 21 positions take two blocks.
        assert_eq!([shape.tables, shape.blocks_per_table], [2, 2]);
        assert_eq!(shape.max_context, 256);
        assert_eq!((described.wanted, described.is_padded), (2, false));
        assert_eq!(described.last_rows, [5, 6, 7]);
        let layout = shape.layout();
        assert_eq!(list(&described, &layout.tokens), [1, 2, 3, 4, 5, 6, 8, 9]);
        assert_eq!(
            list(&described, &layout.positions),
            [14, 15, 16, 17, 18, 19, 20, 2]
        );
        assert_eq!(
            list(&described, &layout.sequences),
            [0, 0, 0, 0, 0, 0, 0, 1]
        );
        assert_eq!(list(&described, &layout.wanted), [6, 7]);
        assert_eq!(list(&described, &layout.tiles), [0, 4, 4, 2, 6, 1, 7, 1]);
        assert_eq!(list(&described, &layout.block_tables), [7, 3, 5, 0]);
        assert_eq!(list(&described, &layout.drawn_rows), [NO_DRAWN_ROW; 8]);
    }

    #[test]
    fn steps_that_decode_are_filled_up_with_rows_in_the_spare_block() {
        let (a, b, c) = ([BlockId(7); 20], [BlockId(5)], [BlockId(4)]);
        let chunks = [chunk(&[1], 300, &a), chunk(&[2], 0, &b), chunk(&[3], 1, &c)];
        let mut described = Described::default();
        let shape = described.fill(&chunks, HOW);
        assert!(described.is_padded);
        assert_eq!(described.wanted, 3);
        let rows = 4;
        let expected = Shape {
            rows,
            wanted: rows,
            tiles: rows,
            tables: rows,
            blocks_per_table: 512 / BLOCK_SIZE,
            max_context: 512,
        };
        assert_eq!(shape, expected);
        let layout = shape.layout();
        assert_eq!(list(&described, &layout.tokens), [1, 2, 3, 0]);
        assert_eq!(list(&described, &layout.positions), [300, 0, 1, 0]);
        assert_eq!(list(&described, &layout.sequences), [0, 1, 2, 3]);
        assert_eq!(list(&described, &layout.tiles), [0, 1, 1, 1, 2, 1, 3, 1]);
        let tables = list(&described, &layout.block_tables);
        let firsts: Vec<u32> = tables.into_iter().step_by(32).collect();
        assert_eq!(firsts, [7, 5, 4, 99]);
        described.make_padding(shape, 1, HOW);
        assert_eq!(list(&described, &layout.tokens), [1, 0, 3, 0]);
        assert_eq!(list(&described, &layout.positions), [300, 0, 1, 0]);
        let tables = list(&described, &layout.block_tables);
        let firsts: Vec<u32> = tables.into_iter().step_by(32).collect();
        assert_eq!(firsts, [7, 99, 4, 99]);
        let eager = described.fill(&chunks, Describe { pads: false, ..HOW });
        assert_eq!(
            [eager.rows, eager.tables, eager.blocks_per_table],
            [3, 3, 19]
        );
    }

    #[test]
    fn lists_begin_at_multiples_of_16_bytes_and_the_largest_step_fits() {
        let shape = Shape {
            rows: 5,
            wanted: 3,
            tiles: 5,
            tables: 2,
            blocks_per_table: 3,
            max_context: 256,
        };
        let layout = shape.layout();
        let starts = [
            &layout.tokens,
            &layout.positions,
            &layout.sequences,
            &layout.drawn_rows,
            &layout.wanted,
            &layout.tiles,
            &layout.block_tables,
        ]
        .map(|range| range.start);
        assert_eq!(starts, [0, 8, 16, 24, 32, 36, 48]);
        assert_eq!(layout.len, 54);
        // 256 sequences of 8,192 positions, and 600 rows
        let decode = Shape {
            rows: 256,
            wanted: 256,
            tiles: 256,
            tables: 256,
            blocks_per_table: 512,
            max_context: 8192,
        };
        assert!(decode.layout().len <= most_words(600, 200, 8000));
    }
}
