//! Masks and bias: what may be drawn at all.

use crate::config::Flags;
use crate::reference::candidates::{Candidate, Candidates};
use crate::row::{Row, Status};

/// The candidates of a row after every mask and the bias. What a mask forbids is not looked at: a NaN there goes unnoticed.
///
/// # Errors
/// As [`Candidates::new`].
pub(crate) fn candidates(row: &Row<'_>) -> Result<Candidates, Status> {
    let allowed = allowed(row);
    let bias = &row.params.tables().bias;
    let tokens = tokens(row).filter(|token| allowed[token.id as usize]);
    Candidates::new(tokens.map(|token| {
        let entry = bias.binary_search_by_key(&token.id, |bias| bias.token_id);
        let logit = entry.map_or(token.logit, |index| token.logit + bias[index].value);
        Candidate { logit, ..token }
    }))
}

/// Every token of the row with its logit as it came.
pub(crate) fn tokens(row: &Row<'_>) -> impl Iterator<Item = Candidate> {
    let logits = row.logits.to_f32(row.params.config().vocab_size as usize);
    (0..).zip(logits).map(|(id, logit)| Candidate { id, logit })
}

/// Whether each id may be drawn.
fn allowed(row: &Row<'_>) -> Vec<bool> {
    let tables = row.params.tables();
    let mut allowed = vec![true; row.params.config().vocab_size as usize];
    if let Some(ids) = &tables.allowed {
        allowed.fill(false);
        ids.iter().for_each(|id| allowed[*id as usize] = true);
    }
    if let Some(mask) = row.mask {
        allowed
            .iter_mut()
            .enumerate()
            .for_each(|(id, allowed)| *allowed &= bit(mask, id));
    }
    if eos_is_banned(row) {
        tables
            .eos
            .iter()
            .for_each(|id| allowed[*id as usize] = false);
    }
    for word in &tables.bad_words {
        if let Some(id) = banned_by(word, history_of_bad_words(row)) {
            allowed[id as usize] = false;
        }
    }
    allowed
}

/// Bit `id` of a mask, least significant bit first; missing words forbid.
fn bit(mask: &[u32], id: usize) -> bool {
    mask.get(id / 32)
        .is_some_and(|word| word >> (id % 32) & 1 == 1)
}

fn eos_is_banned(row: &Row<'_>) -> bool {
    let config = row.params.config();
    config.flags & Flags::IGNORE_EOS != 0 || row.state.position() < config.min_tokens
}

fn history_of_bad_words<'a>(row: &Row<'a>) -> &'a [u32] {
    let output_only = row.params.config().flags & Flags::BAD_WORDS_OUTPUT_ONLY != 0;
    if output_only {
        row.state.output()
    } else {
        row.state.tokens()
    }
}

/// The last token of the word, if the history ends with all the others.
fn banned_by(word: &[u32], history: &[u32]) -> Option<u32> {
    let (last, others) = word.split_last()?;
    history.ends_with(others).then_some(*last)
}
