//! Steps in which every sequence decodes one token, as CUDA graphs: one for each number of rows and longest context, from their buckets.
//!
//! A graph queues the kernels that the same step would queue one by one, with the same arguments: so results have the same bits. The first step
//! of a shape runs kernel by kernel, which loads what the driver loads late; the second is captured.

use std::collections::HashMap;

use super::step::Shape;
use crate::cuda::{Graph, Stream};
use crate::error::EngineError;

/// The graphs of a model.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    /// `None` of shapes that ran once.
    by_shape: HashMap<Shape, Option<Graph>>,
}

impl Graphs {
    /// Queues a step of that shape: by its graph, or by `queue`.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        shape: Shape,
        queue: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let Some(graph) = self.by_shape.get_mut(&shape) else {
            queue()?;
            self.by_shape.insert(shape, None);
            return Ok(());
        };
        let graph = match graph {
            Some(graph) => graph,
            None => graph.insert(Graph::capture(stream, queue)?),
        };
        Ok(graph.launch(stream)?)
    }
}
