//! From a request to plain data.

use crate::config::{CompiledParams, VocabInfo};
use crate::error::ParamError;
use crate::params::SamplingParams;

pub(crate) fn compile(
    _params: &SamplingParams,
    _vocab: &VocabInfo,
) -> Result<CompiledParams, ParamError> {
    unimplemented!()
}
