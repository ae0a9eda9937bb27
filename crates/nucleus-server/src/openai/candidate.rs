//! Continuations that are choices, or may become some: the best of more.

use super::batch::Batch;
use super::choice::{Choice, ChoiceEvent, End, Piece};
use super::logprobs::TokenReport;
use crate::app::AppState;
use crate::error::ApiError;
use crate::request::Accepted;

/// A continuation that is a choice, or may become one.
pub(super) struct Candidate {
    pub(super) choice: Choice,
    seed: u64,
    /// What its text begins with.
    pub(super) echo: String,
    /// The prompt's tokens, if they are asked for.
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    return_token_ids: bool,
}

/// A candidate that has ended.
pub(super) struct Ended {
    pub(super) piece: Piece,
    pub(super) end: End,
    pub(super) seed: u64,
}

impl Candidate {
    pub(super) fn new(batch: &Batch, index: usize, accepted: Accepted, state: &AppState) -> Self {
        let tokenizer = state.engine.tokenizer();
        let seed = accepted.generation.seed();
        let echo = batch.echoes.get(index / batch.candidates).cloned();
        let echo = echo.unwrap_or_default();
        // A text does not have in it what the model wants before it; token ids do, and then it is written out.
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let added = bos.is_some_and(|bos| !echo.starts_with(tokenizer.token_text(bos)));
        let settings = &batch.settings;
        Self {
            choice: Choice::new(
                accepted.generation,
                settings,
                added,
                batch.return_token_ids,
                tokenizer,
            ),
            seed,
            echo,
            prompt_token_ids: batch.return_token_ids.then(|| accepted.prompt.to_vec()),
            return_token_ids: batch.return_token_ids,
        }
    }

    /// Waits for its end.
    pub(super) async fn whole(mut self, logprobs: bool) -> Result<Ended, ApiError> {
        let mut reports: Option<Vec<TokenReport>> = logprobs.then(Vec::new);
        while let Some(event) = self.choice.next().await {
            match event {
                ChoiceEvent::Prompt(more) => reports.get_or_insert_default().extend(more),
                ChoiceEvent::Piece(piece) => {
                    if let (Some(all), Some(more)) = (&mut reports, piece.tokens) {
                        all.extend(more);
                    }
                }
                ChoiceEvent::End(end) => {
                    let piece = Piece {
                        text: self.echo + &end.text,
                        tokens: reports,
                        token_ids: self.return_token_ids.then(|| end.token_ids.clone()),
                        prompt_token_ids: self.prompt_token_ids,
                    };
                    return Ok(Ended {
                        piece,
                        end,
                        seed: self.seed,
                    });
                }
                ChoiceEvent::Failed(error) => return Err(error),
            }
        }
        Err(ApiError::Internal)
    }
}

/// Of every `candidates` the `n` with the highest mean log-probability of a token, the best first; of equals the first. As
/// they are where all are taken.
pub(super) fn best(ended: Vec<Ended>, candidates: usize, n: usize) -> Vec<Ended> {
    if candidates == n {
        return ended;
    }
    let mean = |candidate: &Ended| candidate.end.mean_logprob.unwrap_or(f64::NEG_INFINITY);
    let mut best = Vec::new();
    let mut rest = ended.into_iter();
    loop {
        let mut of_prompt: Vec<Ended> = rest.by_ref().take(candidates).collect();
        if of_prompt.is_empty() {
            return best;
        }
        of_prompt.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        of_prompt.truncate(n);
        best.append(&mut of_prompt);
    }
}

#[cfg(test)]
mod tests {
    use super::super::choice::Finish;
    use super::*;

    #[test]
    fn the_best_are_the_likeliest_on_average() {
        let ended = |seed, mean_logprob| Ended {
            piece: Piece::default(),
            end: End {
                text: String::new(),
                finish: Finish {
                    reason: "stop",
                    met: None,
                },
                prompt_tokens: 1,
                token_ids: Vec::new(),
                mean_logprob,
            },
            seed,
        };
        let seeds = |n| -> Vec<u64> {
            let means = [-2.0, -1.0, -1.0, -0.5, -3.0, -4.0].map(Some);
            let all = (0..)
                .zip(means)
                .map(|(seed, mean)| ended(seed, mean))
                .collect();
            best(all, 3, n).iter().map(|ended| ended.seed).collect()
        };
        assert_eq!(seeds(1), [1, 3]);
        assert_eq!(seeds(2), [1, 2, 3, 4]);
        assert_eq!(seeds(3), [0, 1, 2, 3, 4, 5]);
        let nothing = best(vec![ended(0, None), ended(1, Some(-9.0))], 2, 1);
        assert_eq!(nothing[0].seed, 1);
    }
}
