//! The threads that a model computes on.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

use super::error::ModelError;

/// A pool of threads.
pub(super) struct Threads {
    pool: ThreadPool,
}

/// Times that a thread looks for work in vain before it lets others have its core: about a tenth of a millisecond.
const LOOKS: u32 = 1000;
/// How long it goes on looking in vain after that: far longer than what is not shared out takes, and than waking up does.
const PATIENCE: Duration = Duration::from_millis(1);

impl Threads {
    /// Starts so many threads, or one for each core.
    pub(super) fn start(threads: Option<usize>) -> Result<Self, ModelError> {
        let threads = threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("nucleus-model-{index}"))
            .build();
        Ok(Self {
            pool: pool.map_err(|error| ModelError::Threads {
                threads,
                reason: error.to_string(),
            })?,
        })
    }

    /// Runs work on one of the threads, where it can be shared out.
    pub(super) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// [`install`](Self::install) for work of many short parts, of which some are not shared out: meanwhile the other
    /// threads look for the next one instead of falling asleep, since waking up takes longer than many a part.
    pub(super) fn install_awake<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let done = &AtomicBool::new(false);
        self.pool.scope(|scope| {
            let worker = rayon::current_thread_index();
            scope.spawn_broadcast(move |_, context| {
                if Some(context.index()) != worker {
                    look_for_work(done);
                }
            });
            let _done = SetOnDrop(done);
            work()
        })
    }
}

/// Sets a flag even when there is a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Does what other threads of the pool share out, until the flag is set or there has been nothing for a while: the thread may have begun to look
/// within a part that it has taken from another one, which then waits for its return.
fn look_for_work(done: &AtomicBool) {
    let mut looks = 0;
    let mut vain_since = Instant::now();
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            looks = 0;
        } else if looks < LOOKS {
            looks += 1;
            if looks == LOOKS {
                vain_since = Instant::now();
            }
            spin_loop();
        } else if vain_since.elapsed() < PATIENCE {
            std::thread::yield_now();
        } else {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn parts_are_shared_out_and_the_result_comes_back() {
        for threads in 1..=3 {
            let threads = Threads::start(Some(threads)).unwrap();
            let sum = threads.install_awake(|| {
                let sums = (0..100_u64).map(|part| (0..=part).into_par_iter().sum::<u64>());
                sums.sum::<u64>()
            });
            assert_eq!(sum, 99 * 100 * 101 / 6);
        }
    }

    #[test]
    fn threads_without_work_do_it_once_there_is_some() {
        let threads = Threads::start(Some(2)).unwrap();
        let busy = AtomicUsize::new(0);
        threads.install_awake(|| {
            // Each waits for the other, so both threads must take part.
            (0..2).into_par_iter().with_max_len(1).for_each(|_| {
                busy.fetch_add(1, Ordering::SeqCst);
                while busy.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        });
        assert_eq!(busy.into_inner(), 2);
    }

    #[test]
    fn a_thread_does_not_look_for_ever() {
        let threads = Threads::start(Some(1)).unwrap();
        threads.install(|| look_for_work(&AtomicBool::new(false)));
    }

    #[test]
    fn many_short_steps_end_on_more_threads_than_cores() {
        let threads = Threads::start(Some(8)).unwrap();
        for _ in 0..2_000 {
            threads.install_awake(|| {
                for _ in 0..4 {
                    (0..16).into_par_iter().with_max_len(1).for_each(|_| {
                        std::thread::yield_now();
                    });
                }
            });
        }
    }

    #[test]
    fn a_panic_ends_the_others_too() {
        let threads = Threads::start(Some(2)).unwrap();
        let work = || threads.install_awake(|| panic!("a part fails"));
        assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
        assert_eq!(threads.install_awake(|| 7), 7);
    }
}
