//! The worker pool (feature `std`): persistent threads that share the tasks of an op.
//!
//! An op publishes one job; every thread, the caller included, takes task numbers from an atomic cursor until none are
//! left, so uneven cores (big.LITTLE, a busy machine) balance by themselves. Between jobs the threads spin for a short
//! while (the next op of a decode step follows within microseconds) and then sleep, so an idle pool costs nothing.
//! A job allocates nothing and takes no lock unless a thread has to be woken.
#![expect(unsafe_code, reason = "a job's closure is lent to the threads for the duration of `run`")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::vec::Vec;

use crate::session::workers::Workers;

/// Times a thread looks for a new job before it sleeps: some tens of microseconds.
const SPINS: u32 = 20_000;

type Task = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Number of the current job; odd while it is being set up.
    epoch: AtomicU32,
    /// The current job.
    task: UnsafeCell<Option<Task>>,
    tasks: AtomicUsize,
    /// Next task number.
    cursor: AtomicUsize,
    /// Worker threads that have not finished with the current job.
    working: AtomicUsize,
    sleeping: AtomicUsize,
    stop: AtomicBool,
    /// A task panicked.
    failed: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `task` is written only by the thread that holds the pool's run lock while no worker is in a job
// (`working == 0`), and read by workers only after they saw the new epoch.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer inside is only used during `run`, which outlives its use.
unsafe impl Send for Shared {}

/// A pool of `n` threads, the calling one included.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One job at a time.
    run: Mutex<()>,
}

impl Pool {
    /// A pool in which `n` threads work (the caller and `n − 1` of its own); `n` is clamped to 1…256.
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn new(n: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            task: UnsafeCell::new(None),
            tasks: AtomicUsize::new(0),
            cursor: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self { shared, threads: Vec::new(), run: Mutex::new(()) };
        for i in 1..n.clamp(1, 256) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(std::format!("lora-{i}")).spawn(move || work(&shared))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen {
            spins += 1;
            if spins < SPINS {
                core::hint::spin_loop();
                continue;
            }
            let mut guard = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
            shared.sleeping.fetch_add(1, Ordering::SeqCst);
            while shared.epoch.load(Ordering::SeqCst) == seen {
                guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            shared.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
        seen = shared.epoch.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the epoch changed after `task` was written (release/acquire), and `run` does not return, nor is
        // `task` written again, before this thread lowers `working`.
        if let Some(task) = unsafe { *shared.task.get() } {
            // SAFETY: `run` keeps the closure alive until `working` is 0.
            take_tasks(shared, unsafe { &*task });
        }
        shared.working.fetch_sub(1, Ordering::Release);
    }
}

fn take_tasks(shared: &Shared, task: &(dyn Fn(usize) + Sync)) {
    let tasks = shared.tasks.load(Ordering::Relaxed);
    let result = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
        loop {
            let i = shared.cursor.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            task(i);
        }
    }));
    if result.is_err() {
        shared.failed.store(true, Ordering::Release);
    }
}

// SAFETY: `cursor.fetch_add` gives every task number to exactly one caller, and `run` returns after all threads are done.
unsafe impl Workers for Pool {
    fn count(&self) -> usize {
        self.threads.len() + 1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.threads.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        let _one_at_a_time = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &*self.shared;
        // SAFETY: only the lifetime changes; the pointer is not used after this call, which waits for `working == 0`.
        let lent: Task = unsafe { core::mem::transmute::<&(dyn Fn(usize) + Sync), Task>(task) };
        // SAFETY: no worker is in a job (the last `run` waited for them), and the run lock excludes other writers.
        unsafe { *s.task.get() = Some(lent) };
        s.tasks.store(tasks, Ordering::Relaxed);
        s.cursor.store(0, Ordering::Relaxed);
        s.failed.store(false, Ordering::Relaxed);
        s.working.store(self.threads.len(), Ordering::Relaxed);
        s.epoch.fetch_add(1, Ordering::SeqCst);
        if s.sleeping.load(Ordering::SeqCst) > 0 {
            drop(s.lock.lock().unwrap_or_else(PoisonError::into_inner));
            s.wake.notify_all();
        }
        take_tasks(s, task);
        let mut spins = 0_u32;
        while s.working.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins.is_multiple_of(SPINS) {
                std::thread::yield_now();
            } else {
                core::hint::spin_loop();
            }
        }
        assert!(!s.failed.load(Ordering::Acquire), "a worker task panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// A zeroed, 64-byte aligned arena on the heap, for hosted programs.
pub struct ArenaBox {
    blocks: Box<[AlignedBlock]>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct AlignedBlock([u8; 64]);

// SAFETY: plain bytes without padding; every bit pattern is valid.
unsafe impl bytemuck::Zeroable for AlignedBlock {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for AlignedBlock {}

impl ArenaBox {
    /// An arena of at least `bytes`; pages are taken from the system when first touched.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { blocks: bytemuck::allocation::zeroed_slice_box(bytes.div_ceil(64)) }
    }
    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;

    #[test]
    fn every_task_runs_exactly_once() {
        for n in [1, 2, 3, 7] {
            let pool = Pool::new(n).unwrap();
            assert_eq!(pool.count(), n);
            for tasks in [0, 1, 2, 5, 64, 1000] {
                let counts: Vec<AtomicU64> = (0..tasks).map(|_| AtomicU64::new(0)).collect();
                for _ in 0..20 {
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 20), "{n} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn sleeping_threads_wake_up() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicU64::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i as u64, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 4950);
        }
    }
}
