//! What keeps the process from ending amid a step.

use crate::model::Compute;

/// The engine's thread is at work: on a device, the end of the process waits for its step (`cuda::AtWork`).
pub(super) struct AtWork {
    #[cfg(feature = "cuda")]
    device: Option<crate::cuda::AtWork>,
}

impl AtWork {
    pub(super) fn on(compute: Compute) -> Self {
        match compute {
            Compute::Host => Self {
                #[cfg(feature = "cuda")]
                device: None,
            },
            #[cfg(feature = "cuda")]
            Compute::Cuda(_) => Self {
                device: Some(crate::cuda::AtWork::begin()),
            },
        }
    }

    /// Waits for something to do.
    pub(super) fn pause<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        match self {
            #[cfg(feature = "cuda")]
            Self {
                device: Some(device),
            } => device.pause(wait),
            _ => wait(),
        }
    }
}
