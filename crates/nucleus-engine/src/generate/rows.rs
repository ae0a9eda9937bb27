//! The rows of a step: the chunks that the model runs for them, what their logits are for, and what is read from them.

use nucleus_sampling::{LogitsRow, Logprobs, Row, SampledToken, Sampler, Status};

use crate::model::{Chunk, PENDING};
use crate::scheduler::{Scheduled, SequenceId};
use crate::sequence::{Drawn, PromptToken, Sequence};

/// What a row of logits is for.
pub(super) enum Purpose<'a> {
    /// To score this token, which is the prompt's next.
    Score(SequenceId, u32),
    /// To draw the next token of everyone who is sampled from the run.
    Draw(&'a Scheduled),
}

/// The tokens of a run as the model takes them: at once, or one by one where the logits of each are wanted.
pub(super) fn chunks_of<'a>(
    run: &'a Scheduled,
    sequence: &'a Sequence,
) -> impl Iterator<Item = Chunk<'a>> + use<'a> {
    let end = run.start + run.len;
    let one_by_one = (run.start..end).any(|position| sequence.scores(position));
    let len = if one_by_one { 1 } else { run.len };
    (run.start..end).step_by(len).map(move |start| Chunk {
        // What has been drawn and is not known yet comes last, and runs alone.
        tokens: sequence
            .tokens()
            .get(start..start + len)
            .unwrap_or(&[PENDING]),
        position: start,
        blocks: &run.blocks,
        wants_logits: sequence.scores(start) || (run.samples && start + len == end),
    })
}

/// What the logits of a run are for, in order.
pub(super) fn purposes_of<'a>(
    run: &'a Scheduled,
    sequence: &'a Sequence,
) -> impl Iterator<Item = Purpose<'a>> + use<'a> {
    let scores = (run.start..run.start + run.len)
        .filter(|&position| sequence.scores(position))
        .map(|position| Purpose::Score(run.id, sequence.tokens()[position + 1]));
    scores.chain(run.samples.then_some(Purpose::Draw(run)))
}

pub(super) fn row_of<'a>(logits: LogitsRow<'a>, sequence: &'a Sequence) -> Row<'a> {
    Row {
        mask: sequence.mask(),
        logprobs: sequence.logprobs(),
        ..Row::new(logits, &sequence.params, &sequence.state)
    }
}

/// A prompt token with its log-probability and, if the row asks for them, the likeliest ones in its place.
pub(super) fn scored(sampler: &mut dyn Sampler, row: Row<'_>, id: u32) -> PromptToken {
    let given = SampledToken {
        token_id: id,
        logprob: f32::NAN,
        kept_count: 0,
        status: Status::Ok,
        feedback: 0,
    };
    let row = Row {
        logprobs: Logprobs {
            top: row.logprobs.top,
            ..Logprobs::default()
        },
        ..row
    };
    let top_logprobs = sampler.top_logprobs(&row, &given);
    let own = top_logprobs.iter().find(|entry| entry.token_id == id);
    PromptToken {
        id,
        logprob: own.map(|own| own.logprob),
        top_logprobs,
    }
}

/// A token with what is wanted beside it: the likeliest ones, the logits.
pub(super) fn drawn(
    sampler: &mut dyn Sampler,
    row: &Row<'_>,
    token: SampledToken,
    wants_logits: bool,
) -> Drawn {
    let wants_top = row.logprobs.top > 0 && token.status == Status::Ok;
    let top_logprobs = if wants_top {
        sampler.top_logprobs(row, &token)
    } else {
        Vec::new()
    };
    Drawn {
        token,
        top_logprobs,
        logits: wants_logits.then(|| row.logits.to_f32(row.logits.len())),
    }
}
