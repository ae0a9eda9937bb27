//! The ranges that endpoints accept.

use crate::config::VocabInfo;
use crate::error::ParamError;
use crate::params::{Policy, SamplingParams};

impl SamplingParams {
    /// Checks every present parameter against the ranges of an endpoint.
    ///
    /// # Errors
    /// [`ParamError::OutOfRange`] with the parameter, its value and the range.
    pub fn check_policy(&self, _policy: Policy, _vocab: &VocabInfo) -> Result<(), ParamError> {
        unimplemented!()
    }

    /// The parameters with every absent one that has a default value on that endpoint filled in.
    #[must_use]
    pub fn with_defaults(self, _policy: Policy) -> Self {
        unimplemented!()
    }
}
