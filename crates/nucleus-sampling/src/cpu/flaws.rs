//! What makes a row unusable.

use std::ops::BitOrAssign;

use crate::row::Status;

/// Logits that a row must not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flaws {
    /// A NaN.
    pub(super) nan: bool,
    /// +inf.
    pub(super) infinity: bool,
}

impl Flaws {
    /// Looks at one logit.
    pub(super) fn note(&mut self, logit: f32) {
        self.nan |= logit.is_nan();
        self.infinity |= logit == f32::INFINITY;
    }

    /// The row's status.
    ///
    /// # Errors
    /// [`Status::Nan`] with a NaN, else [`Status::Overflow`] with +inf.
    pub(super) fn status(self) -> Result<(), Status> {
        match self {
            Self { nan: true, .. } => Err(Status::Nan),
            Self { infinity: true, .. } => Err(Status::Overflow),
            _ => Ok(()),
        }
    }
}

impl BitOrAssign for Flaws {
    fn bitor_assign(&mut self, other: Self) {
        self.nan |= other.nan;
        self.infinity |= other.infinity;
    }
}
