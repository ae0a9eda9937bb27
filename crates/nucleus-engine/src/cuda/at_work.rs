//! Ending the process while a thread uses the device.

use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, Instant};

use super::sys;

/// Held for reading by every thread that uses a device, for writing from the moment the process ends.
static IN_USE: RwLock<()> = RwLock::new(());
static REGISTERED: Once = Once::new();
/// How long the end of the process waits for a step. One that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says that this thread may use the device. A process that ends takes the runtime and the driver apart while other threads go on, and a call
/// amid that is a crash; so the end waits until no thread is at work, and a thread that would begin after that waits for ever.
///
/// A thread has one at most, and does not end the process while it has it.
pub(crate) struct AtWork(Option<RwLockReadGuard<'static, ()>>);

impl AtWork {
    /// Begins. The device has been used before, so that what the runtime does at the process's end is done after what is registered here.
    pub(crate) fn begin() -> Self {
        REGISTERED.call_once(|| {
            // SAFETY: the function may be called at any time and from any thread. If there is no room for it, the process ends as if there were no `AtWork`.
            unsafe { sys::atexit(wait_for_workers) };
        });
        Self(Some(in_use()))
    }

    /// Does something that does not use the device and may take long.
    pub(crate) fn pause<T>(&mut self, idle: impl FnOnce() -> T) -> T {
        self.0 = None;
        let result = idle();
        self.0 = Some(in_use());
        result
    }
}

fn in_use() -> RwLockReadGuard<'static, ()> {
    IN_USE.read().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn wait_for_workers() {
    let begun = Instant::now();
    loop {
        match IN_USE.try_write() {
            Ok(lock) => return std::mem::forget(lock),
            Err(TryLockError::Poisoned(lock)) => return std::mem::forget(lock),
            Err(TryLockError::WouldBlock) if begun.elapsed() > PATIENCE => return,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}
