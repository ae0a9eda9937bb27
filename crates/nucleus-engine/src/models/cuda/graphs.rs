//! Steps in which every sequence decodes one token, as CUDA graphs: one for each number of rows and longest context, from their buckets.
//!
//! A graph queues the kernels that the same step would queue one by one, with the same arguments: so results have the same bits. The first step
//! of a shape runs kernel by kernel, which loads what the driver loads late; the second is captured. A graph takes some of the device's memory: where
//! there is none, steps run kernel by kernel.

use std::collections::HashMap;

use super::step::Shape;
use crate::cuda::{Graph, Stream};
use crate::error::EngineError;

/// Steps that run without a graph after there was no memory for one, before another is captured.
const STEPS_WITHOUT: u32 = 256;

/// The graphs of a model.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    /// Steps before a graph is captured again.
    without: u32,
    /// `None` of shapes that ran once.
    by_shape: HashMap<Shape, Option<Graph>>,
}

impl Graphs {
    /// Queues a step of that shape: by its graph, or by `queue`.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        shape: Shape,
        mut queue: impl FnMut() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let Some(graph) = self.by_shape.get_mut(&shape) else {
            queue()?;
            self.by_shape.insert(shape, None);
            return Ok(());
        };
        if graph.is_none() && self.without > 0 {
            self.without -= 1;
            return queue();
        }
        match launch(graph, stream, &mut queue) {
            Err(EngineError::OutOfMemory(what)) => {
                tracing::warn!("no memory for the graph of a step, which runs without: {what}");
                *graph = None;
                self.without = STEPS_WITHOUT;
                queue()
            }
            result => result,
        }
    }
}

/// Launches a step's graph, which is captured if there is none.
fn launch(
    graph: &mut Option<Graph>,
    stream: &Stream,
    queue: impl FnOnce() -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let graph = match graph {
        Some(graph) => graph,
        None => graph.insert(Graph::capture(stream, queue)?),
    };
    Ok(graph.launch(stream)?)
}
