//! ctrl-c ends an answer, not the program.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context;
use nucleus_engine::generate::CancelHandle;

use crate::terminal::Notes;

/// The answer that ctrl-c would end, if there is one.
type Current = Arc<Mutex<Option<CancelHandle>>>;

/// Listens for ctrl-c from now on.
pub(crate) struct Interrupts {
    current: Current,
}

/// An answer that ctrl-c ends as long as this lives.
pub(crate) struct Answering {
    current: Current,
}

impl Interrupts {
    /// Takes ctrl-c from the operating system, which would end the program.
    pub(crate) fn listen(notes: Notes) -> anyhow::Result<Self> {
        let current = Current::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = Arc::clone(&current);
        thread::Builder::new()
            .name("interrupts".into())
            .spawn(move || runtime.block_on(wait(listener, notes)))
            .context("cannot start the thread that waits for ctrl-c")?;
        Ok(Self { current })
    }

    /// Lets ctrl-c cancel this, until the result is dropped.
    pub(crate) fn cancel(&self, handle: CancelHandle) -> Answering {
        set(&self.current, Some(handle));
        Answering {
            current: Arc::clone(&self.current),
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        set(&self.current, None);
    }
}

fn set(current: &Current, handle: Option<CancelHandle>) {
    *current.lock().unwrap_or_else(PoisonError::into_inner) = handle;
}

async fn wait(current: Current, notes: Notes) {
    // An error means that this system has no ctrl-c.
    while tokio::signal::ctrl_c().await.is_ok() {
        match &*current.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(handle) => handle.cancel(),
            None => notes.say("\n/exit or ctrl-d leaves"),
        }
    }
}
