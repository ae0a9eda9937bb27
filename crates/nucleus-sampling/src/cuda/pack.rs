//! Rows as the plain data that a launch reads: fixed-size descriptions, and their lists one after another in an arena.

use crate::config::{CompiledParams, Flags, Op, OpCode, Program, SamplingConfig};
use crate::row::{LogprobsMode, Row};
use crate::state::SamplerState;

use super::layout::{
    BATCH_ALL_BOUNDED, BATCH_ALL_COUNTED, BATCH_ALL_DRAWN, BATCH_ALL_FEW, BATCH_COMMON_CHAINS,
    BATCH_CUT_BY_SURPRISE, BATCH_CUT_BY_WEIGHT, BATCH_DRAW_AFTER_MIN_P, BATCH_DRAWN_AFTER_TOP_P,
    BATCH_DRAWN_EDITED, BATCH_NO_EDITS, BATCH_NONE_BOUNDED, BATCH_NONE_CUT, BATCH_NONE_SUMMED,
    BATCH_NONE_WHOLE, BATCH_SMOOTHED, BATCH_SOME_FEW, BATCH_WARMED, SamplingList, SamplingOrder,
    SamplingRow, row_flags,
};
use super::logits::Dtype;
use super::slots::SlotRow;

/// Where a row's history is.
#[derive(Clone, Copy, Debug)]
pub(super) enum History<'a> {
    /// On the host.
    State(&'a SamplerState),
    /// On the device, so many tokens.
    Slot { slot: u32, len: u32, commit: bool },
}

/// A row without its logits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    history: History<'a>,
    params: &'a CompiledParams,
    mask: Option<&'a [u32]>,
    uniform: Option<u64>,
    logprobs: LogprobsMode,
    top: u32,
}

impl<'a> Work<'a> {
    pub(super) fn of_row(row: &Row<'a>) -> Self {
        Self {
            history: History::State(row.state),
            params: row.params,
            mask: row.mask,
            uniform: row.uniform,
            logprobs: row.logprobs.mode,
            top: 0,
        }
    }

    /// A slot's row, and the length of the slot's history.
    pub(super) fn of_slot(row: &SlotRow<'a>, len: u32) -> Self {
        Self {
            history: History::Slot {
                slot: row.slot,
                len,
                commit: row.commit,
            },
            params: row.params,
            mask: row.mask,
            uniform: row.uniform,
            logprobs: row.logprobs,
            top: row.top,
        }
    }

    /// No fewer ids than the row edits: every entry of its lists, and the whole history.
    fn edited(&self) -> u32 {
        let tables = self.params.tables();
        (self.history_len() + tables.bias.len() + tables.bad_words.len() + self.eos().len()) as u32
    }

    /// The ids that end a text, where they may not be drawn, now or, from a slot, for some of its tokens. Elsewhere no launch need look at them.
    fn eos(&self) -> &'a [u32] {
        let config = self.params.config();
        let banned = config.flags & Flags::IGNORE_EOS != 0
            || match self.history {
                History::State(state) => state.position() < config.min_tokens,
                History::Slot { .. } => config.min_tokens > 0,
            };
        if banned {
            &self.params.tables().eos
        } else {
            &[]
        }
    }

    fn history_len(&self) -> usize {
        match self.history {
            History::State(state) => state.tokens().len(),
            History::Slot { len, .. } => len as usize,
        }
    }

    /// The first operation that neither edits logits by id nor is a temperature, and those behind it.
    fn decision(&self) -> Option<(&Op, &[Op])> {
        let ops = self.params.tables().program.ops();
        let first = ops.iter().position(|op| !LEADING.contains(&op.code))?;
        ops[first..].split_first()
    }

    /// That operation.
    fn decides(&self) -> Option<&Op> {
        self.decision().map(|(op, _)| op)
    }

    /// The operation that leaves few tokens, if they alone decide: edits by id and temperatures come first, then `top_k`, `min_p` or
    /// the largest logit, and the log-probability does not ask for the whole row.
    fn bounded_by(&self) -> Option<OpCode> {
        let tables = self.params.tables();
        let decides = self.decides()?;
        let first = match decides.code {
            OpCode::TopK => decides.threshold <= BOUND_K,
            OpCode::MinP => u64::from(self.params.config().min_keep) <= BOUND_K,
            OpCode::Argmax => true,
            _ => false,
        };
        let bounded = first
            && self.logprobs == LogprobsMode::Processed
            && tables.allowed.is_none()
            && self.window() + tables.bias.len() + tables.bad_words.len() + self.eos().len()
                <= EDITS_MOST;
        bounded.then_some(decides.code)
    }

    /// Whether the row is weighed whole, or cut by the launches that do that, unless it is bounded.
    fn is_whole(&self) -> bool {
        self.decides().is_some_and(|op| match op.code {
            OpCode::TopK => op.threshold <= WHOLE_K,
            code => matches!(
                code,
                OpCode::Draw | OpCode::TopP | OpCode::MinP | OpCode::Argmax
            ),
        })
    }

    /// Whether its first cut is a `top_k` that is made before the last launch, where it is not weighed whole.
    fn is_cut(&self) -> bool {
        self.decides()
            .is_some_and(|op| op.code == OpCode::TopK && op.threshold <= CUT_K)
    }

    /// Whether every cut of its follows from sums over what is left of the row (`cuts_by_sums` of `sums_state.cuh`).
    fn is_summed(&self) -> bool {
        let mut ops = self.params.tables().program.ops().iter();
        let choice = ops.next_back().map(|op| op.code);
        self.logprobs == LogprobsMode::Processed
            && matches!(choice, Some(OpCode::Draw | OpCode::Mirostat2))
            && ops.all(|op| LEADING.contains(&op.code) || SUMMED.contains(&op.code))
    }

    /// Whether nothing but the draw follows an operation that leaves few tokens.
    fn draws_after(&self, code: OpCode) -> bool {
        let mut ops = self.params.tables().program.ops().iter();
        ops.any(|op| op.code == code) && ops.next().is_some_and(|op| op.code == OpCode::Draw)
    }

    /// Whether a mask or a list allows few ids and the request can do with these alone: edits by id come first, and the log-probability does
    /// not ask for the whole row. Of a launch with so many rows.
    fn is_few(&self, rows: usize) -> bool {
        let tables = self.params.tables();
        let codes = tables.program.ops().iter().map(|op| op.code);
        let serves = self.logprobs == LogprobsMode::Processed
            && codes
                .skip_while(|code| edits_by_id(*code))
                .all(|code| !edits_by_id(code) && code != OpCode::AdaptiveP);
        let listed = tables.allowed.as_ref().map(Vec::len);
        let masked = || {
            let words = self.mask?.iter();
            Some(words.map(|word| word.count_ones() as usize).sum())
        };
        let most = || most_gathered(rows, self.bounded_by().is_some());
        serves && listed.or_else(masked).is_some_and(|ids| ids <= most())
    }

    /// Whether logits may be edited by id: by a bias, by lists of ids that are banned, or by what the history holds.
    fn edits(&self) -> bool {
        let tables = self.params.tables();
        !tables.bias.is_empty()
            || !tables.bad_words.is_empty()
            || !self.eos().is_empty()
            || tables.program.ops().iter().any(|op| edits_by_id(op.code))
    }

    /// Whether what follows the operation that bounds the row is the commonest (`is_common` of `chain.cuh`).
    fn has_common_chain(&self) -> bool {
        let config = self.params.config();
        let Some((bounds, rest)) = self.decision() else {
            return false;
        };
        let Some((last, between)) = rest.split_last() else {
            return bounds.code == OpCode::Argmax;
        };
        last.code == OpCode::Draw
            && between
                .iter()
                .all(|op| matches!(op.code, OpCode::TopP | OpCode::MinP))
            && config.min_keep <= 1
            && config.flags & Flags::KEEP_TIES == 0
    }

    /// Whether the launch for draws can edit the row's logits (`PenaltiesAndBiases` of `prepare.cuh`): penalties come first, nothing else looks tokens up in the history, no words are bad, and there are
    /// not too many edits.
    fn edits_simply(&self) -> bool {
        let tables = self.params.tables();
        let ops = tables.program.ops();
        ops.iter()
            .enumerate()
            .all(|(at, op)| !edits_by_id(op.code) || (at == 0 && op.code == OpCode::Penalties))
            && tables.bad_words.is_empty()
            && self.window() + PLACES_OF_BIAS * (tables.bias.len() + self.eos().len()) <= EDITS_MOST
    }

    /// How the launch for draws decides the row, if it does: it is as it came, but for temperatures and a mask, and its token is drawn from all of it, or what it weighs tells
    /// one cut or one temperature of it, or smoothed logits are drawn from (`kind_by_weight` of `prepare.cuh`); or, of a launch with so many rows, it has few edits by id, too.
    fn drawn(&self, rows: usize) -> Option<Drawn> {
        if self.params.tables().allowed.is_some() {
            return None;
        }
        let (decides, rest) = self.decision()?;
        let code = decides.code;
        if self.edits() {
            let drawn = match code {
                OpCode::Draw => rows >= EDITED_FROM,
                OpCode::TopP => is_draw(rest),
                _ => false,
            };
            return (drawn && self.edits_simply()).then_some(Drawn::Edited);
        }
        let ties = self.params.config().flags & Flags::KEEP_TIES != 0;
        let cuts_by_mass = |code| {
            matches!(code, OpCode::TopP | OpCode::TopA) || (code == OpCode::Epsilon && !ties)
        };
        let cuts =
            |code| cuts_by_mass(code) || (!ties && matches!(code, OpCode::Eta | OpCode::TypicalP));
        let warmed_after = rest
            .iter()
            .take_while(|op| op.code == OpCode::Temperature)
            .count();
        let flags = match code {
            OpCode::Draw => return Some(Drawn::Whole),
            OpCode::Mirostat2 => BATCH_CUT_BY_WEIGHT,
            OpCode::Smoothing if is_draw(rest) => BATCH_SMOOTHED,
            OpCode::DynamicTemperature if is_draw(rest) => BATCH_WARMED,
            OpCode::DynamicTemperature
                if rest
                    .split_first()
                    .is_some_and(|(cut, rest)| cuts_by_mass(cut.code) && is_draw(rest)) =>
            {
                BATCH_WARMED | BATCH_CUT_BY_WEIGHT
            }
            _ if !cuts(code) || !is_draw(&rest[warmed_after..]) => return None,
            OpCode::TopP if warmed_after == 0 => 0,
            OpCode::Epsilon | OpCode::TopA if warmed_after == 0 => BATCH_CUT_BY_WEIGHT,
            _ => BATCH_CUT_BY_SURPRISE,
        };
        Some(Drawn::Cut(flags))
    }

    /// Tokens at the end of the history that operations by id look at.
    fn window(&self) -> usize {
        let config = self.params.config();
        self.params
            .tables()
            .program
            .ops()
            .iter()
            .map(|op| match op.code {
                OpCode::Dry => config.dry_penalty_last_n as usize,
                OpCode::Penalties => config.repeat_last_n as usize,
                OpCode::NoRepeatNgram => usize::MAX,
                _ => 0,
            })
            .max()
            .unwrap_or(0)
            .min(self.history_len())
    }
}

/// How the launch for draws decides a row.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drawn {
    /// It is drawn from as a whole.
    Whole,
    /// Behind a cut, by a temperature or from logits that follow from what it weighs; what the launch has to know of it, as bits of a batch's flags.
    Cut(u32),
    /// As a whole or behind `top_p`, after edits by id.
    Edited,
}

/// Whether nothing but the draw follows.
fn is_draw(ops: &[Op]) -> bool {
    matches!(ops, [op] if op.code == OpCode::Draw)
}

/// Whether an operation looks tokens up in the history.
fn edits_by_id(code: OpCode) -> bool {
    matches!(
        code,
        OpCode::Dry | OpCode::NoRepeatNgram | OpCode::Penalties
    )
}

/// Operations that may precede the one that bounds a request.
const LEADING: [OpCode; 5] = [
    OpCode::None,
    OpCode::Dry,
    OpCode::NoRepeatNgram,
    OpCode::Penalties,
    OpCode::Temperature,
];
/// Operations whose cuts follow from sums over the row, or that only change what is left of it.
const SUMMED: [OpCode; 9] = [
    OpCode::DynamicTemperature,
    OpCode::Smoothing,
    OpCode::TopNSigma,
    OpCode::TypicalP,
    OpCode::MinP,
    OpCode::Epsilon,
    OpCode::Eta,
    OpCode::TopA,
    OpCode::Xtc,
];
/// The largest `top_k` that the launches for whole rows cut by: three quarters of the warps of a cluster (`plan_row` of `prepare.cuh`).
const WHOLE_K: u64 = 96;
/// The largest `top_k` of a first cut by clusters of 3 blocks (`kth_known` of `first_cut.cuh`).
const CUT_K: u64 = 230;
/// The largest `top_k` or `min_keep` of a request that few tokens decide (`BOUND_K` of `bounded.cuh`).
const BOUND_K: u64 = 128;
/// The most ids that it may edit, its history's repetitions counted (`EDITS_MOST` of `bounded.cuh`).
const EDITS_MOST: usize = 1536;

/// What a bias, or an id that may not be drawn, takes of these where the launch for draws edits rows.
const PLACES_OF_BIAS: usize = 4;
/// From so many rows on that launch takes edited rows of every type, and those that are drawn from as a whole (docs/kernel.md, "Times").
const EDITED_FROM: usize = 64;

/// The most ids that are gathered (`FEW_IDS` of `few.cuh`).
const FEW_IDS: usize = 4096;

/// The most allowed ids for which gathering them takes less time than reading the row under its mask, in a launch with so many rows
/// (docs/kernel.md, "Few allowed ids"). A bounded row is read at the speed of the memory: it pays where rows are many.
const fn most_gathered(rows: usize, bounded: bool) -> usize {
    match (bounded, rows) {
        (true, ..=40) => 0,
        (true, ..=66) => 64,
        (true, _) => FEW_IDS / 2,
        (false, ..=16) => FEW_IDS / 8,
        (false, ..=48) => FEW_IDS / 2,
        (false, _) => FEW_IDS,
    }
}

/// Masks have a multiple of so many words: the device copies them 16 bytes at a time.
const MASK_UNIT: usize = 4;

/// What decides a row, as far as launches are for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Few tokens.
    Bounded,
    /// A draw from the whole of the row, as it came but for temperatures and a mask.
    Drawn,
    /// A draw from what one cut by the row's weight keeps of it: `top_p`, epsilon, `top_a`, or mirostat 2.
    Cut,
    /// The same behind `top_p`, or from the whole of the row, after edits by id; or else one of the others.
    Edited,
    Other,
    /// The few ids that are allowed.
    Few,
}

/// The kinds of a launch's rows: where their numbers begin in the arena, and how many rows each of the first four has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sorted {
    from: usize,
    rows: [u32; 4],
}

impl Sorted {
    /// What a launch is told, from where the arena lies on the device.
    pub(super) fn order(&self, arena: *const u32) -> SamplingOrder {
        let [bounded, drawn, cut, others] = self.rows;
        SamplingOrder {
            order: arena.wrapping_add(self.from),
            bounded,
            drawn,
            cut,
            others,
        }
    }
}

/// The rows of one launch, on the host. Kept between launches so that nothing is allocated once it has grown.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) rows: Vec<SamplingRow>,
    pub(super) configs: Vec<SamplingConfig>,
    pub(super) programs: Vec<Program>,
    pub(super) arena: Vec<u32>,
    /// `[row with a mask][mask_words]`
    pub(super) masks: Vec<u32>,
    pub(super) mask_words: usize,
    /// The most ids that one row edits.
    pub(super) max_edited: u32,
    /// How many of its likeliest tokens each row wants.
    pub(super) tops: Vec<u32>,
    /// Rows of which few ids are allowed, which are gathered.
    few: usize,
    /// Other rows that few tokens decide.
    bounded: usize,
    /// Of those, the ones whose tokens are bounded by a count.
    counted: usize,
    /// And those by `min_p` that the usual draw follows at once.
    drawn_after: usize,
    /// Bounded rows that go on with the commonest operations alone.
    common: usize,
    /// Rows that are neither, and weighed whole.
    whole: usize,
    /// Rows that are none of these, and whose cuts follow from sums.
    summed: usize,
    /// And those whose first cut is made before the last launch.
    cut: usize,
    /// Rows that edit no logits by id.
    unedited: usize,
    /// Of those, the ones that draw from the whole row.
    drawn: usize,
    /// And those where what the row weighs tells one cut or one temperature, or that draw from smoothed logits.
    drawn_after_cut: usize,
    /// What the launch has to know of those.
    cut_flags: u32,
    /// Rows that the launch for draws may edit.
    drawn_edited: usize,
    /// Whether some of those draw from what `top_p` keeps, as they are.
    cut_by_top_p: bool,
    /// Rows that are weighed whole, but for these two.
    other_whole: usize,
    /// Of each row.
    kinds: Vec<Kind>,
}

impl Packed {
    /// Replaces the contents by these rows.
    pub(super) fn fill<'a>(&mut self, rows: impl Iterator<Item = Work<'a>> + Clone) {
        self.rows.clear();
        self.configs.clear();
        self.programs.clear();
        self.arena.clear();
        self.masks.clear();
        self.tops.clear();
        self.max_edited = 0;
        self.few = 0;
        self.bounded = 0;
        self.counted = 0;
        self.drawn_after = 0;
        self.common = 0;
        self.whole = 0;
        self.summed = 0;
        self.cut = 0;
        self.unedited = 0;
        self.drawn = 0;
        self.drawn_after_cut = 0;
        self.drawn_edited = 0;
        self.cut_flags = 0;
        self.cut_by_top_p = false;
        self.other_whole = 0;
        self.kinds.clear();
        // A mask without words forbids every id, for which one word is needed.
        self.mask_words = rows
            .clone()
            .filter_map(|row| row.mask.map(|words| words.len().max(1)))
            .max()
            .unwrap_or(0)
            .next_multiple_of(MASK_UNIT);
        let count = rows.clone().count();
        for (index, row) in rows.enumerate() {
            let mut packed = self.row(index as u32, &row);
            let few = row.is_few(count);
            packed.flags |= if few { row_flags::FEW } else { 0 };
            self.rows.push(packed);
            self.configs.push(*row.params.config());
            self.programs.push(row.params.tables().program);
            self.max_edited = self.max_edited.max(row.edited());
            self.tops.push(row.top);
            self.unedited += usize::from(!row.edits());
            let (bounded_by, drawn) = (row.bounded_by(), row.drawn(count));
            let kind = match bounded_by {
                _ if few => Kind::Few,
                Some(_) => Kind::Bounded,
                None => match drawn {
                    None => Kind::Other,
                    Some(Drawn::Whole) => Kind::Drawn,
                    Some(Drawn::Cut(_)) => Kind::Cut,
                    Some(Drawn::Edited) => Kind::Edited,
                },
            };
            self.kinds.push(kind);
            self.drawn += usize::from(drawn == Some(Drawn::Whole));
            self.drawn_edited += usize::from(kind == Kind::Edited);
            if let Some(Drawn::Cut(flags)) = drawn {
                self.drawn_after_cut += 1;
                self.cut_flags |= flags;
                self.cut_by_top_p |= flags == 0;
            }
            if few {
                self.few += 1;
            } else if let Some(code) = bounded_by {
                self.bounded += 1;
                let by_count = code != OpCode::MinP;
                self.counted += usize::from(by_count);
                self.drawn_after += usize::from(!by_count && row.draws_after(code));
                self.common += usize::from(row.has_common_chain());
            } else if row.is_whole() || kind == Kind::Cut {
                self.whole += 1;
                self.other_whole += usize::from(matches!(kind, Kind::Other | Kind::Edited));
            } else {
                self.summed += usize::from(row.is_summed());
                self.cut += usize::from(row.is_cut());
            }
        }
    }

    /// The most of the likeliest tokens that a row wants.
    pub(super) fn most_top(&self) -> u32 {
        self.tops.iter().copied().max().unwrap_or(0)
    }

    /// Whether the launch for draws takes rows with edits of logits of this type: without masks, and beside no other cuts than `top_p`.
    fn draws_edited(&self, dtype: Dtype) -> bool {
        let many = dtype == Dtype::F32 || self.rows.len() >= EDITED_FROM;
        many && self.masks.is_empty() && self.cut_flags == 0
    }

    /// Leaves the numbers of a launch's rows, counted from its first, sorted by their kinds, in the arena, if they are of several kinds for which
    /// there are launches.
    pub(super) fn sort(&mut self, first: u32, rows: u32, dtype: Dtype) -> Option<Sorted> {
        const ORDER: [Kind; 5] = [
            Kind::Bounded,
            Kind::Drawn,
            Kind::Cut,
            Kind::Other,
            Kind::Few,
        ];
        let edited = if self.draws_edited(dtype) {
            Kind::Cut
        } else {
            Kind::Other
        };
        let kinds = self.kinds[first as usize..][..rows as usize].iter();
        let kinds = kinds.map(|kind| if *kind == Kind::Edited { edited } else { *kind });
        let [bounded, drawn, cut, others, few] =
            ORDER.map(|kind| kinds.clone().filter(|of| *of == kind).count() as u32);
        let drawn_at_all = drawn + cut;
        let of_launches = [bounded, drawn_at_all, others];
        let several = of_launches.iter().filter(|rows| **rows > 0).count() > 1;
        if !several && (drawn_at_all == 0 || few == 0) {
            return None;
        }
        let from = self.arena.len();
        for kind in ORDER {
            let numbers = (0..).zip(kinds.clone()).filter(|(_, of)| *of == kind);
            self.arena.extend(numbers.map(|(number, _)| number));
        }
        let rows = [bounded, drawn, cut, others];
        Some(Sorted { from, rows })
    }

    /// What the launch may know of its rows. `sorted`: it is told their kinds, and asks for those that are bounded alone whether counts bound them, for the
    /// others alone whether they are weighed whole.
    pub(super) fn known_flags(&self, sorted: bool, dtype: Dtype) -> u32 {
        let rows = self.rows.len();
        let edited = if self.draws_edited(dtype) {
            self.drawn_edited
        } else {
            0
        };
        let others = rows - self.few;
        let told = |holds: bool, bit: u32| if holds { bit } else { 0 };
        let none_whole = if sorted {
            self.other_whole == edited
        } else {
            self.whole == 0 && self.bounded < others
        };
        let bounded = match self.bounded {
            _ if others == 0 => return BATCH_ALL_FEW,
            0 => BATCH_NONE_BOUNDED,
            _ if self.counted == others => BATCH_ALL_BOUNDED | BATCH_ALL_COUNTED,
            bounded if bounded == others => {
                let drawn_after = self.counted + self.drawn_after == others;
                BATCH_ALL_BOUNDED | told(drawn_after, BATCH_DRAW_AFTER_MIN_P)
            }
            bounded if sorted && self.counted == bounded => BATCH_ALL_COUNTED,
            _ => 0,
        };
        bounded
            | told(
                self.bounded > 0 && self.common == self.bounded,
                BATCH_COMMON_CHAINS,
            )
            | told(self.few > 0, BATCH_SOME_FEW)
            | told(none_whole, BATCH_NONE_WHOLE)
            | told(none_whole && self.summed == 0, BATCH_NONE_SUMMED)
            | told(none_whole && self.summed + self.cut == 0, BATCH_NONE_CUT)
            | told(self.unedited == rows, BATCH_NO_EDITS)
            | told(edited > 0, BATCH_DRAWN_EDITED)
            | self.cut_flags
            | told(
                self.cut_by_top_p && self.cut_flags & (BATCH_WARMED | BATCH_SMOOTHED) != 0,
                BATCH_CUT_BY_WEIGHT,
            )
            | match self.drawn {
                drawn if drawn == rows => BATCH_ALL_DRAWN,
                drawn => told(
                    drawn + self.drawn_after_cut + edited == rows,
                    BATCH_DRAWN_AFTER_TOP_P,
                ),
            }
    }

    fn row(&mut self, request: u32, row: &Work<'_>) -> SamplingRow {
        let tables = row.params.tables();
        let bias = self.list(tables.bias.len(), |arena| {
            arena.extend(
                tables
                    .bias
                    .iter()
                    .flat_map(|bias| [bias.token_id, bias.value.to_bits()]),
            );
        });
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let packed = SamplingRow {
            uniform: row.uniform.unwrap_or(0),
            bias,
            allowed: self.ids(tables.allowed.as_deref().unwrap_or_default()),
            bad_words: self.sequences(&tables.bad_words),
            breakers: self.sequences(&tables.breakers),
            eos: self.ids(row.eos()),
            request,
            mask: self.mask(row.mask),
            flags: flag(row.uniform.is_some(), row_flags::UNIFORM)
                | flag(
                    row.logprobs == LogprobsMode::Processed,
                    row_flags::PROCESSED,
                )
                | flag(tables.allowed.is_some(), row_flags::ALLOWED)
                | match row.logprobs {
                    LogprobsMode::Raw if row.top > 0 => 0,
                    LogprobsMode::Processed if row.top > 0 => row_flags::NO_TOP | row_flags::TOP,
                    _ => row_flags::NO_TOP,
                },
            ..SamplingRow::default()
        };
        match row.history {
            History::State(state) => SamplingRow {
                history: self.ids(state.tokens()),
                prompt_len: state.prompt().len() as u32,
                position: state.position(),
                choice: state.choice(),
                attempt: state.attempt(),
                mirostat_mu: state.mirostat_mu(),
                adaptive_target: state.adaptive_target(),
                ..packed
            },
            History::Slot { slot, commit, .. } => SamplingRow {
                slot,
                flags: packed.flags | row_flags::SLOT | flag(commit, row_flags::COMMIT),
                ..packed
            },
        }
    }

    /// The mask's index, -1 for none. Missing words forbid, so short masks end in zeros.
    fn mask(&mut self, mask: Option<&[u32]>) -> i32 {
        let Some(words) = mask else { return -1 };
        let index = self.masks.len() / self.mask_words;
        self.masks.extend(words);
        self.masks.resize((index + 1) * self.mask_words, 0);
        index as i32
    }

    fn list(&mut self, len: usize, put: impl FnOnce(&mut Vec<u32>)) -> SamplingList {
        // A list of 64-bit entries is read with 8-byte loads.
        if self.arena.len() % 2 == 1 {
            self.arena.push(0);
        }
        let offset = self.arena.len() as u64;
        put(&mut self.arena);
        SamplingList {
            offset,
            len: len as u32,
            reserved: 0,
        }
    }

    fn ids(&mut self, ids: &[u32]) -> SamplingList {
        self.list(ids.len(), |arena| arena.extend(ids))
    }

    /// Start indices, then the ids.
    fn sequences(&mut self, sequences: &[Vec<u32>]) -> SamplingList {
        self.list(sequences.len(), |arena| {
            let mut end = 0;
            arena.push(end);
            for sequence in sequences {
                end += sequence.len() as u32;
                arena.push(end);
            }
            arena.extend(sequences.iter().flatten());
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogitsRow, SamplerState, SamplingParams, VocabInfo};

    fn pack(params: &SamplingParams, mask: Option<&[u32]>) -> Packed {
        let compiled = params
            .validate(&VocabInfo::new(100).with_eos(&[9]))
            .expect("the parameters are valid");
        let mut state = SamplerState::new(&compiled, &[1, 2, 3]);
        state.commit_forced(4);
        let mut row = Row::new(LogitsRow::F32(&[]), &compiled, &state);
        row.mask = mask;
        let mut packed = Packed::default();
        packed.fill([row, row].iter().map(Work::of_row));
        packed
    }

    /// A row of each.
    fn pack_each(all: &[&SamplingParams], mode: LogprobsMode) -> Packed {
        let compiled: Vec<_> = all
            .iter()
            .map(|params| {
                params
                    .validate(&VocabInfo::new(1_000))
                    .expect("the parameters are valid")
            })
            .collect();
        let states: Vec<_> = compiled
            .iter()
            .map(|params| SamplerState::new(params, &[1]))
            .collect();
        let rows: Vec<_> = compiled
            .iter()
            .zip(&states)
            .map(|(params, state)| {
                let mut row = Row::new(LogitsRow::F32(&[]), params, state);
                row.logprobs.mode = mode;
                row
            })
            .collect();
        let mut packed = Packed::default();
        packed.fill(rows.iter().map(Work::of_row));
        packed
    }

    fn words(packed: &Packed, list: SamplingList, count: usize) -> &[u32] {
        &packed.arena[list.offset as usize..][..count]
    }

    #[test]
    fn lists_lie_in_the_arena() {
        let params = SamplingParams {
            logit_bias: Some([(7, 1.5)].into()),
            bad_words: Some(vec![vec![5], vec![6, 8]]),
            allowed_token_ids: Some(vec![4, 7]),
            min_tokens: Some(2),
            ..SamplingParams::default()
        };
        let packed = pack(&params, None);
        let row = packed.rows[1];
        assert_eq!(words(&packed, row.history, 4), [1, 2, 3, 4]);
        assert_eq!((row.prompt_len, row.position, row.request), (3, 1, 1));
        assert_eq!(words(&packed, row.bias, 2), [7, 1.5_f32.to_bits()]);
        assert_eq!(row.bad_words.len, 2);
        assert_eq!(words(&packed, row.bad_words, 6), [0, 1, 3, 5, 6, 8]);
        assert_eq!(words(&packed, row.allowed, 2), [4, 7]);
        assert_eq!(row.flags & row_flags::ALLOWED, row_flags::ALLOWED);
        assert_eq!(words(&packed, row.eos, 1), [9]);
        assert_eq!((row.mask, packed.mask_words), (-1, 0));
        assert_eq!(packed.max_edited, 4 + 1 + 2 + 1);
    }

    #[test]
    fn ends_are_edits_only_while_they_may_not_be_drawn() {
        let told = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            let packed = pack(&params, None);
            (
                packed.rows[0].eos.len,
                packed.known_flags(false, Dtype::F32),
            )
        };
        let drawn = BATCH_NONE_BOUNDED | BATCH_NO_EDITS | BATCH_ALL_DRAWN;
        assert_eq!(told(|_| ()), (0, drawn));
        assert_eq!(told(|params| params.min_tokens = Some(1)), (0, drawn));
        let banned = (1, BATCH_NONE_BOUNDED);
        assert_eq!(told(|params| params.min_tokens = Some(2)), banned);
        assert_eq!(told(|params| params.ignore_eos = Some(true)), banned);

        let compiled = SamplingParams {
            min_tokens: Some(1),
            ..SamplingParams::default()
        }
        .validate(&VocabInfo::new(100).with_eos(&[9]))
        .expect("the parameters are valid");
        let mut packed = Packed::default();
        packed.fill([Work::of_slot(&SlotRow::new(0, &compiled), 70)].into_iter());
        assert_eq!(
            packed.rows[0].eos.len, 1,
            "the device knows how many there are"
        );
    }

    #[test]
    fn a_slot_has_its_history_on_the_device() {
        let params = SamplingParams::default()
            .validate(&VocabInfo::new(10))
            .expect("the parameters are valid");
        let mut packed = Packed::default();
        let row = SlotRow::new(3, &params);
        packed.fill(
            [(row, 70), (SlotRow { top: 5, ..row }, 50)]
                .iter()
                .map(|(row, len)| Work::of_slot(row, *len)),
        );
        assert_eq!((packed.rows[0].slot, packed.rows[0].history.len), (3, 0));
        let flags = row_flags::SLOT | row_flags::COMMIT;
        assert_eq!(packed.rows[0].flags, flags | row_flags::NO_TOP);
        assert_eq!(packed.rows[1].flags, flags);
        assert_eq!(
            (packed.tops.as_slice(), packed.most_top()),
            (&[0, 5][..], 5)
        );
        assert_eq!(packed.max_edited, 70);
    }

    #[test]
    fn a_launch_knows_whether_its_rows_are_bounded() {
        let greedy = SamplingParams {
            temperature: Some(0.0),
            repetition_penalty: Some(1.2),
            ..SamplingParams::default()
        };
        let flag =
            |all: &[&SamplingParams], mode| pack_each(all, mode).known_flags(false, Dtype::F32);
        let (drawn, processed) = (SamplingParams::default(), LogprobsMode::Processed);
        let min_p = SamplingParams {
            min_p: Some(0.1),
            ..SamplingParams::default()
        };
        let bounded = BATCH_ALL_BOUNDED | BATCH_COMMON_CHAINS;
        let counted = bounded | BATCH_ALL_COUNTED;
        assert_eq!(flag(&[&greedy, &greedy], processed), counted);
        let drawn_after = bounded | BATCH_DRAW_AFTER_MIN_P;
        assert_eq!(flag(&[&greedy, &min_p], processed), drawn_after);
        assert_eq!(flag(&[&min_p], processed), drawn_after | BATCH_NO_EDITS);
        let then_typical = SamplingParams {
            typical_p: Some(0.9),
            samplers: Some(vec!["min_p".to_owned(), "typical_p".to_owned()]),
            ..min_p.clone()
        };
        assert_eq!(
            flag(&[&min_p, &then_typical], processed),
            BATCH_ALL_BOUNDED | BATCH_NO_EDITS,
            "more is cut off after min_p"
        );
        assert_eq!(flag(&[&greedy, &drawn], processed), BATCH_COMMON_CHAINS);
        assert_eq!(
            flag(&[&min_p, &drawn], processed),
            BATCH_NO_EDITS | BATCH_COMMON_CHAINS,
            "one of them is bounded"
        );
        let biased = SamplingParams {
            logit_bias: Some([(1, 2.0)].into_iter().collect()),
            ..SamplingParams::default()
        };
        assert_eq!(flag(&[&biased], processed), BATCH_NONE_BOUNDED);
        assert_eq!(
            flag(&[&drawn, &drawn], processed),
            BATCH_NONE_BOUNDED | BATCH_NO_EDITS | BATCH_ALL_DRAWN
        );
        let top_p = SamplingParams {
            top_p: Some(0.9),
            ..SamplingParams::default()
        };
        let cut = BATCH_NONE_BOUNDED | BATCH_NO_EDITS | BATCH_DRAWN_AFTER_TOP_P;
        assert_eq!(flag(&[&top_p, &drawn], processed), cut);
        let epsilon = SamplingParams {
            epsilon_cutoff: Some(0.001),
            ..SamplingParams::default()
        };
        let mirostat = SamplingParams {
            mirostat: Some(2),
            ..SamplingParams::default()
        };
        let by_weight = cut | BATCH_CUT_BY_WEIGHT;
        assert_eq!(flag(&[&top_p, &epsilon, &mirostat], processed), by_weight);
        assert_eq!(flag(&[&mirostat], LogprobsMode::Raw), by_weight);
        assert_eq!(flag(&[&top_p], LogprobsMode::Raw), cut);
        let then_typical = SamplingParams {
            typical_p: Some(0.9),
            samplers: Some(vec!["top_p".to_owned(), "typical_p".to_owned()]),
            ..top_p.clone()
        };
        assert_eq!(
            flag(&[&top_p, &then_typical], processed),
            BATCH_NONE_BOUNDED | BATCH_NO_EDITS,
            "more is cut off after top_p"
        );
        let biased_top_p = SamplingParams {
            logit_bias: Some([(1, 2.0)].into_iter().collect()),
            ..top_p.clone()
        };
        let edited = BATCH_NONE_BOUNDED | BATCH_DRAWN_AFTER_TOP_P | BATCH_DRAWN_EDITED;
        assert_eq!(flag(&[&top_p, &biased_top_p], processed), edited);
        let halves = pack_each(&[&top_p, &biased_top_p], processed).known_flags(false, Dtype::Bf16);
        assert_eq!(halves, BATCH_NONE_BOUNDED, "few rows of 16 bits");
        assert_eq!(
            flag(&[&epsilon, &biased_top_p], processed),
            BATCH_NONE_BOUNDED | BATCH_CUT_BY_WEIGHT,
            "another cut beside it"
        );
        let penalised = SamplingParams {
            frequency_penalty: Some(0.2),
            ..top_p.clone()
        };
        assert_eq!(flag(&[&penalised], processed), edited);
        let dry = SamplingParams {
            dry_multiplier: Some(0.8),
            ..penalised.clone()
        };
        assert_eq!(flag(&[&dry], processed), BATCH_NONE_BOUNDED);
        let worded = SamplingParams {
            bad_words: Some(vec![vec![5]]),
            ..top_p.clone()
        };
        assert_eq!(flag(&[&worded], processed), BATCH_NONE_BOUNDED);
        assert_eq!(flag(&[&greedy], LogprobsMode::Raw), BATCH_NONE_BOUNDED);
        let typical = SamplingParams {
            typical_p: Some(0.9),
            ..SamplingParams::default()
        };
        assert_eq!(
            flag(&[&typical, &min_p], processed),
            BATCH_NO_EDITS | BATCH_CUT_BY_SURPRISE | BATCH_COMMON_CHAINS
        );
        let surprise = cut | BATCH_CUT_BY_SURPRISE;
        assert_eq!(flag(&[&typical], LogprobsMode::Raw), surprise);
        let dynamic = SamplingParams {
            dynatemp_range: Some(0.3),
            ..SamplingParams::default()
        };
        let warmed = cut | BATCH_WARMED;
        assert_eq!(flag(&[&dynamic, &drawn], processed), warmed);
        let cut_and_warmed = warmed | BATCH_CUT_BY_WEIGHT;
        assert_eq!(flag(&[&dynamic, &top_p], processed), cut_and_warmed);
        let dynamic_top_p = SamplingParams {
            top_p: Some(0.9),
            ..dynamic.clone()
        };
        assert_eq!(flag(&[&dynamic_top_p], processed), cut_and_warmed);
        let smoothed = SamplingParams {
            smoothing_factor: Some(0.2),
            ..SamplingParams::default()
        };
        assert_eq!(flag(&[&smoothed], processed), cut | BATCH_SMOOTHED);
        let smoothed_top_p = SamplingParams {
            top_p: Some(0.9),
            ..smoothed.clone()
        };
        assert_eq!(
            flag(&[&smoothed_top_p], processed),
            BATCH_NONE_BOUNDED
                | BATCH_NO_EDITS
                | BATCH_NONE_WHOLE
                | BATCH_NONE_SUMMED
                | BATCH_NONE_CUT
        );
        let last = SamplingParams {
            samplers: Some(vec!["top_p".to_owned(), "temperature".to_owned()]),
            temperature: Some(0.7),
            ..top_p.clone()
        };
        assert_eq!(flag(&[&last], processed), surprise);
        let many = SamplingParams {
            top_k: Some(200),
            ..SamplingParams::default()
        };
        let sigma = SamplingParams {
            top_n_sigma: Some(1.5),
            ..SamplingParams::default()
        };
        let none_whole = BATCH_NONE_BOUNDED | BATCH_NO_EDITS | BATCH_NONE_WHOLE;
        assert_eq!(flag(&[&sigma, &many], processed), none_whole);
        let none = none_whole | BATCH_NONE_SUMMED;
        assert_eq!(flag(&[&many, &many], processed), none);
        let all = SamplingParams {
            top_k: Some(231),
            ..SamplingParams::default()
        };
        assert_eq!(flag(&[&all, &many], processed), none, "one of them is cut");
        assert_eq!(flag(&[&all], processed), none | BATCH_NONE_CUT);
        let raw = flag(&[&sigma], LogprobsMode::Raw);
        assert_eq!(raw, none | BATCH_NONE_CUT);
        let fewer = SamplingParams {
            top_k: Some(96),
            ..SamplingParams::default()
        };
        assert_eq!(
            flag(&[&many, &fewer], LogprobsMode::Raw),
            BATCH_NONE_BOUNDED | BATCH_NO_EDITS,
            "one of them is weighed whole"
        );
        assert_eq!(flag(&[&typical, &drawn], processed), surprise);
        let listed = SamplingParams {
            allowed_token_ids: Some(vec![5, 7]),
            repetition_penalty: Some(1.2),
            ..SamplingParams::default()
        };
        assert_eq!(flag(&[&listed], processed), BATCH_ALL_FEW);
        assert_eq!(
            flag(&[&listed, &greedy], processed),
            counted | BATCH_SOME_FEW
        );
        assert_eq!(
            flag(&[&listed, &drawn], processed),
            BATCH_NONE_BOUNDED | BATCH_SOME_FEW
        );
        assert_eq!(flag(&[&listed], LogprobsMode::Raw), BATCH_NONE_BOUNDED);
    }

    #[test]
    fn rows_of_several_kinds_are_sorted() {
        let params = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            params
        };
        let drawn = params(|_| ());
        let greedy = params(|params| params.temperature = Some(0.0));
        let top_p = params(|params| params.top_p = Some(0.9));
        let biased = params(|params| params.logit_bias = Some([(1, 2.0)].into()));
        let sigma = params(|params| params.top_n_sigma = Some(1.5));
        let listed = params(|params| params.allowed_token_ids = Some(vec![5]));
        let processed = LogprobsMode::Processed;

        let mut packed = pack_each(
            &[
                &listed, &sigma, &drawn, &top_p, &greedy, &biased, &drawn, &greedy,
            ],
            processed,
        );
        let from = packed.arena.len();
        let sorted = packed
            .sort(0, 8, Dtype::F32)
            .expect("there are several kinds");
        let rows = [2, 2, 1, 2];
        assert_eq!(sorted, Sorted { from, rows });
        assert_eq!(packed.arena[from..], [4, 7, 2, 6, 3, 1, 5, 0]);
        let told = packed.known_flags(true, Dtype::F32);
        let counted = BATCH_ALL_COUNTED | BATCH_SOME_FEW | BATCH_COMMON_CHAINS;
        assert_eq!(told, counted, "the biased row is weighed whole");

        // Of a part, counted from its first row.
        let from = packed.arena.len();
        let sorted = packed
            .sort(2, 3, Dtype::F32)
            .expect("there are several kinds");
        let rows = [1, 1, 1, 0];
        assert_eq!(sorted, Sorted { from, rows });
        assert_eq!(packed.arena[from..], [2, 0, 1]);

        let mut packed = pack_each(&[&greedy, &drawn, &sigma], processed);
        assert!(packed.sort(0, 3, Dtype::F32).is_some());
        let told = packed.known_flags(true, Dtype::F32);
        let none_whole = BATCH_NO_EDITS | BATCH_NONE_WHOLE | BATCH_COMMON_CHAINS;
        assert_eq!(told, none_whole | BATCH_ALL_COUNTED);
        let min_p = params(|params| params.min_p = Some(0.1));
        let told =
            pack_each(&[&greedy, &min_p, &drawn, &sigma], processed).known_flags(true, Dtype::F32);
        assert_eq!(told, none_whole, "a count bounds one of two");
        assert_eq!(packed.sort(1, 1, Dtype::F32), None, "nothing but draws");
        assert_eq!(
            packed.sort(0, 1, Dtype::F32),
            None,
            "nothing but bounded rows"
        );
        assert_eq!(packed.sort(2, 1, Dtype::F32), None, "nothing but others");
        let mut packed = pack_each(&[&greedy, &biased, &listed, &listed], processed);
        assert!(
            packed.sort(0, 2, Dtype::F32).is_some(),
            "bounded rows and others"
        );
        assert_eq!(
            packed.sort(2, 2, Dtype::F32),
            None,
            "few ids allowed of all"
        );
    }

    #[test]
    fn each_masked_row_has_its_mask() {
        let packed = pack(&SamplingParams::default(), Some(&[3, 1]));
        assert_eq!([packed.rows[0].mask, packed.rows[1].mask], [0, 1]);
        assert_eq!(packed.masks, [3, 1, 0, 0, 3, 1, 0, 0]);
    }

    #[test]
    fn ids_are_gathered_where_few_are_allowed_and_edits_by_id_come_first() {
        let few = |params: &SamplingParams, mask: Option<&[u32]>, rows: usize| {
            let compiled = params
                .validate(&VocabInfo::new(300_000))
                .expect("the parameters are valid");
            let state = SamplerState::new(&compiled, &[1]);
            let mut row = Row::new(LogitsRow::F32(&[]), &compiled, &state);
            row.mask = mask;
            row.logprobs.mode = LogprobsMode::Processed;
            Work::of_row(&row).is_few(rows)
        };
        let plain = SamplingParams::default();
        assert!(!few(&plain, None, 1));
        assert!(few(&plain, Some(&[u32::MAX; 16]), 1));
        assert!(!few(&plain, Some(&[u32::MAX; 17]), 1));
        assert!(few(&plain, Some(&[u32::MAX; 128]), 64));
        assert!(!few(&plain, Some(&[u32::MAX; 129]), 64));
        let bounded = SamplingParams {
            top_k: Some(5),
            ..SamplingParams::default()
        };
        assert!(!few(&bounded, Some(&[1]), 40));
        assert!(few(&bounded, Some(&[u32::MAX; 2]), 66));
        assert!(!few(&bounded, Some(&[u32::MAX; 3]), 66));
        assert!(few(&bounded, Some(&[u32::MAX; 64]), 67));
        assert!(!few(&bounded, Some(&[u32::MAX; 65]), 67));
        let late = SamplingParams {
            repetition_penalty: Some(1.2),
            top_k: Some(5),
            samplers: Some(vec!["top_k".to_owned(), "penalties".to_owned()]),
            ..SamplingParams::default()
        };
        assert!(!few(&late, Some(&[1]), 1));
    }

    #[test]
    fn a_mask_without_words_forbids_everything() {
        let packed = pack(&SamplingParams::default(), Some(&[]));
        assert_eq!((packed.mask_words, packed.masks), (4, vec![0; 8]));
    }
}
