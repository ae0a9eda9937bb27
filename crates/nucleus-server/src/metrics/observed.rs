//! A generation whose events are counted as they pass.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use nucleus_engine::generate::{Event, Generation};

use super::Metrics;

/// A generation on its way to its client. A client that goes away before the end is counted as one that cancelled.
pub(crate) struct Observed {
    generation: Generation,
    observer: Option<Observer>,
}

struct Observer {
    metrics: Arc<Metrics>,
    submitted: Instant,
    last_token: Option<Instant>,
}

impl From<Generation> for Observed {
    /// Not counted until [`Observed::count_in`].
    fn from(generation: Generation) -> Self {
        Self {
            generation,
            observer: None,
        }
    }
}

impl Observed {
    /// Counts its events from now on; it was handed over at `submitted`.
    pub(crate) fn count_in(&mut self, metrics: &Arc<Metrics>, submitted: Instant) {
        self.observer = Some(Observer {
            metrics: Arc::clone(metrics),
            submitted,
            last_token: None,
        });
    }

    /// The next event; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let event = self.generation.next().await?;
        if let Some(observer) = &mut self.observer
            && observer.note(&event)
        {
            self.observer = None;
        }
        Some(event)
    }
}

impl Observer {
    /// Returns whether that was the last event.
    fn note(&mut self, event: &Event) -> bool {
        let now = Instant::now();
        let whole = now.saturating_duration_since(self.submitted);
        match event {
            Event::Token(_) => {
                match self.last_token.replace(now) {
                    None => self.metrics.first_token(whole),
                    Some(before) => self
                        .metrics
                        .further_token(now.saturating_duration_since(before)),
                }
                false
            }
            Event::End(completion) => {
                self.metrics.completed(completion, whole);
                true
            }
            Event::Failed(_) => {
                self.metrics.finished("error", whole);
                true
            }
            Event::Prompt(_) => false,
        }
    }
}

impl Deref for Observed {
    type Target = Generation;

    fn deref(&self) -> &Generation {
        &self.generation
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if let Some(observer) = self.observer.take() {
            let whole = observer.submitted.elapsed();
            observer.metrics.finished("cancelled", whole);
        }
    }
}
