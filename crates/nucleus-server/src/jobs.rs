//! Which jobs run, by name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nucleus_engine::generate::CancelHandle;
use nucleus_sampling::random_seed;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::quote;

/// A job's name: 1 to 128 visible ASCII characters, so that it can be logged and compared without surprises.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub(crate) struct JobId(String);

impl JobId {
    const MAX_LEN: usize = 128;

    pub(crate) fn new(name: String) -> Result<Self, ApiError> {
        let valid = (1..=Self::MAX_LEN).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic());
        if !valid {
            let expected = format!("1 to {} visible ASCII characters", Self::MAX_LEN);
            return Err(ApiError::field("job_id", quote(&name), &expected));
        }
        Ok(Self(name))
    }

    /// What [`JobId::new`] takes.
    pub(crate) fn schema() -> Value {
        json!({"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": Self::MAX_LEN})
    }

    fn random() -> Self {
        Self(format!("job-{:014x}", random_seed()))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The jobs that run.
#[derive(Default)]
pub(crate) struct Jobs {
    running: Mutex<HashMap<JobId, Job>>,
}

enum Job {
    /// Its name is taken, the engine has not accepted it yet.
    Starting { cancelled: bool },
    /// The engine has it.
    Started(CancelHandle),
}

/// A name that is taken until this is dropped.
pub(crate) struct JobGuard {
    id: JobId,
    jobs: Arc<Jobs>,
}

impl Jobs {
    /// Takes a name, or one that nobody has.
    pub(crate) fn reserve(self: &Arc<Self>, id: Option<JobId>) -> Result<JobGuard, ApiError> {
        let id = id.unwrap_or_else(JobId::random);
        match self.lock().entry(id.clone()) {
            Entry::Occupied(_) => Err(ApiError::JobRunning {
                job_id: id.to_string(),
            }),
            Entry::Vacant(entry) => {
                entry.insert(Job::Starting { cancelled: false });
                Ok(JobGuard {
                    id,
                    jobs: Arc::clone(self),
                })
            }
        }
    }

    /// Cancels a job. Returns whether one of that name runs.
    pub(crate) fn cancel(&self, id: &JobId) -> bool {
        match self.lock().get_mut(id) {
            None => return false,
            Some(Job::Starting { cancelled }) => *cancelled = true,
            Some(Job::Started(handle)) => handle.cancel(),
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Job>> {
        // No code that holds the lock can leave the map half changed.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobGuard {
    pub(crate) fn id(&self) -> &JobId {
        &self.id
    }

    /// Says how to cancel the job, and does it if that was asked for already.
    pub(crate) fn started(&self, handle: CancelHandle) {
        let cancel = handle.clone();
        let before = self
            .jobs
            .lock()
            .insert(self.id.clone(), Job::Started(handle));
        if matches!(before, Some(Job::Starting { cancelled: true })) {
            cancel.cancel();
        }
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        self.jobs.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> JobId {
        JobId::new(name.into()).unwrap()
    }

    #[test]
    fn a_name_is_visible_ascii_of_bounded_length() {
        for valid in ["a", "tale-7", "0b1f:/x.y_z", &"x".repeat(128)] {
            assert!(JobId::new(valid.into()).is_ok(), "{valid}");
        }
        for invalid in [
            "",
            " ",
            "a b",
            "a\r\nset-cookie: x",
            "a\0",
            "é",
            &"x".repeat(129),
        ] {
            let error = JobId::new(invalid.into()).unwrap_err().to_string();
            assert!(error.contains("1 to 128 visible ASCII"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_name_is_taken_until_its_guard_is_dropped() {
        let jobs = Arc::new(Jobs::default());
        let first = jobs.reserve(Some(id("a"))).unwrap();
        assert_eq!(first.id(), &id("a"));
        let taken = jobs.reserve(Some(id("a"))).map(|_| ()).unwrap_err();
        assert_eq!(taken, ApiError::JobRunning { job_id: "a".into() });
        let other = jobs.reserve(None).unwrap();
        assert_ne!(other.id(), first.id());
        drop(first);
        assert!(jobs.reserve(Some(id("a"))).is_ok());
    }

    #[test]
    fn a_job_that_does_not_run_cannot_be_cancelled() {
        let jobs = Arc::new(Jobs::default());
        assert!(!jobs.cancel(&id("a")));
        let guard = jobs.reserve(Some(id("a"))).unwrap();
        assert!(jobs.cancel(&id("a")));
        assert!(jobs.cancel(&id("a")));
        drop(guard);
        assert!(!jobs.cancel(&id("a")));
    }
}
