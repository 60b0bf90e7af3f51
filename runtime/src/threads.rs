//! The worker pool (feature `std`): persistent threads that share the tasks of an op.
//!
//! An op publishes one job; every thread, the caller included, takes task numbers from an atomic ticket until none are
//! left, so uneven cores (big.LITTLE, a busy machine) balance by themselves. The caller waits for the *tasks*, not for the
//! threads: a thread that the system has not scheduled yet holds nobody up. Between jobs the threads spin for a short while (the
//! next op of a decode step follows within microseconds) and then sleep, so an idle pool costs nothing. A job allocates
//! nothing and takes no contended lock unless a thread has to be woken. A caller that waits long for the last task sleeps too: most
//! likely the system has taken the CPU from the thread that runs it, and may now move that thread to the caller's.
//!
//! Then there are more busy threads than CPUs, and a thread that loses its CPU with a task in hand holds all others up for
//! longer than it ever helped. So after such a wait the pool works with one thread less for many times that long
//! (`Width`), and then tries again.
//!
//! One half of the threads takes the first tasks that are left, the other half the last ones: so a thread tends to work on the
//! same rows and columns in one op after the other, which its own caches hold.
//!
//! The ticket is one word: job number, first task that is left, and the one after the last, `Ticket`. To publish a job the caller (1) closes the
//! ticket: the new number without tasks, (2) writes the job's fields, (3) opens the ticket with all tasks. A thread reads the ticket's job
//! number, then the fields, then takes a task by compare-and-swap: if the number is still the same, the fields belong to it, and
//! the task is unfinished, so `run` has not returned and the closure is alive.
#![expect(unsafe_code, reason = "a job's closure is lent to the threads for the duration of `run`")]

mod arena;
mod width;

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::vec::Vec;

use crate::session::workers::Workers;
use width::Width;

pub use arena::ArenaBox;

/// How long a thread looks for a new job, or the caller for the last task, before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: u32 = 64;
/// Most tasks of a ticket: of a job with more, several go together.
const MOST: usize = 0xffff;

/// What is left of a job.
#[derive(Clone, Copy)]
struct Ticket {
    job: u64,
    first: u64,
    end: u64,
}

impl Ticket {
    const fn of(word: u64) -> Self {
        Self { job: word >> 32, first: word >> 16 & 0xffff, end: word & 0xffff }
    }
    const fn word(self) -> u64 {
        self.job << 32 | self.first << 16 | self.end
    }
    const fn open(self) -> bool {
        self.first < self.end
    }
}

type Task<'t> = &'t (dyn Fn(usize) + Sync);

struct Shared {
    /// A [`Ticket`]'s word.
    ticket: AtomicU64,
    /// The current job's closure: a pointer to a `Task` on the caller's stack.
    task: AtomicPtr<()>,
    tasks: AtomicUsize,
    /// Tasks that have returned.
    done: AtomicUsize,
    /// Threads that take part, the caller included: those whose number is lower.
    width: AtomicUsize,
    /// By number: the thread sleeps, and whoever takes the flag back wakes it. The caller's is not used.
    asleep: Box<[AtomicBool]>,
    stop: AtomicBool,
    /// A task panicked.
    failed: AtomicBool,
    lock: Mutex<()>,
    /// The caller sleeps until the last task is done.
    waiting: AtomicBool,
    all_done: Condvar,
}

/// A pool of `n` threads, the calling one included.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One job at a time.
    run: Mutex<Width>,
}

impl Pool {
    /// A pool in which `n` threads work (the caller and `n − 1` of its own); `n` is clamped to 1…256.
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn new(n: usize) -> std::io::Result<Self> {
        Self::with_start(n, |_| {})
    }

    /// As [`Pool::new`]; each of the pool's own threads begins with `start` of its number, from 1 on: a place to bind it to a
    /// processor, say.
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn with_start(n: usize, start: impl Fn(usize) + Send + Sync + 'static) -> std::io::Result<Self> {
        let (n, start) = (n.clamp(1, 256), Arc::new(start));
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            task: AtomicPtr::new(core::ptr::null_mut()),
            tasks: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            width: AtomicUsize::new(n),
            asleep: (0..n).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            lock: Mutex::new(()),
            waiting: AtomicBool::new(false),
            all_done: Condvar::new(),
        });
        let mut pool = Self { shared, threads: Vec::new(), run: Mutex::new(Width::new(n)) };
        for i in 1..n {
            let (shared, start) = (Arc::clone(&pool.shared), Arc::clone(&start));
            let thread = std::thread::Builder::new().name(std::format!("lora-{i}")).spawn(move || {
                start(i);
                drop(start);
                work(&shared, i);
            })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }
}

impl Shared {
    /// Whether there may be a task for thread `number` to take in a job other than `seen`, or after a closed ticket.
    fn open_job(&self, number: usize, seen: u64) -> Option<u64> {
        let ticket = Ticket::of(self.ticket.load(Ordering::SeqCst));
        if number >= self.width.load(Ordering::Relaxed) {
            return None;
        }
        (ticket.job != seen && ticket.open()).then_some(ticket.job)
    }

    /// Takes and runs tasks of job `job` until none are left; returns how many.
    fn take_tasks(&self, number: usize, job: u64) -> u32 {
        let mut taken = 0;
        let (task, tasks) = (self.task.load(Ordering::Acquire), self.tasks.load(Ordering::Acquire));
        let mut word = self.ticket.load(Ordering::Acquire);
        loop {
            let ticket = Ticket::of(word);
            if ticket.job != job || !ticket.open() {
                return taken;
            }
            let (next, rest) = match number.is_multiple_of(2) {
                true => (ticket.first, Ticket { first: ticket.first + 1, ..ticket }),
                false => (ticket.end - 1, Ticket { end: ticket.end - 1, ..ticket }),
            };
            // A thread that is late must not take (and drop) a task of the job after its own.
            if let Err(now) = self.ticket.compare_exchange_weak(word, rest.word(), Ordering::AcqRel, Ordering::Acquire)
            {
                word = now;
                continue;
            }
            let next = next as usize;
            // SAFETY: the ticket is of `job`, so `task` and `tasks` are that job's; task `next` has not returned, so `run`,
            // which owns the closure, is still waiting for it (see the module's documentation).
            let task = unsafe { *task.cast::<Task<'_>>() };
            taken += 1;
            let result = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| task(next)));
            if result.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            // SeqCst, as in `wait`: either the caller sees this task done, or this thread sees the caller waiting.
            let done = self.done.fetch_add(1, Ordering::SeqCst) + 1;
            if done == tasks && self.waiting.load(Ordering::SeqCst) {
                drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
                self.all_done.notify_one();
            }
            word = self.ticket.load(Ordering::Acquire);
        }
    }
}

impl Shared {
    /// Returns when all tasks of the job have; how long that took, if it was not at once.
    fn wait(&self, tasks: usize) -> Option<Duration> {
        let all_done = || self.done.load(Ordering::SeqCst) == tasks;
        if (0..LOOKS).any(|_| {
            all_done() || {
                core::hint::spin_loop();
                false
            }
        }) {
            return None;
        }
        let start = Instant::now();
        if spin(|| all_done().then_some(())).is_none() {
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.waiting.store(true, Ordering::SeqCst);
            while !all_done() {
                guard = self.all_done.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.waiting.store(false, Ordering::SeqCst);
        }
        Some(start.elapsed())
    }
}

/// Looks for what `look` finds, for the time of [`SPIN`].
fn spin<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let mut start = None;
    loop {
        for _ in 0..LOOKS {
            if let Some(found) = look() {
                return Some(found);
            }
            core::hint::spin_loop();
        }
        // The clock is read without a system call; the first looks do without.
        if start.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return None;
        }
    }
}

/// A thread of the pool.
fn work(shared: &Shared, number: usize) {
    let mut seen = 0;
    let look = |seen| match shared.stop.load(Ordering::SeqCst) {
        true => Some(None),
        false => shared.open_job(number, seen).map(Some),
    };
    loop {
        let found = spin(|| look(seen)).unwrap_or_else(|| {
            loop {
                // SeqCst, as in `run` and `drop`: either this thread sees what is new, or that one sees it asleep.
                shared.asleep[number].store(true, Ordering::SeqCst);
                if let Some(found) = look(seen) {
                    shared.asleep[number].store(false, Ordering::Relaxed);
                    break found;
                }
                std::thread::park();
            }
        });
        let Some(job) = found else { return };
        seen = job;
        shared.take_tasks(number, job);
    }
}

// SAFETY: the ticket gives every task number of a job to exactly one thread, and `run` returns after all have returned.
unsafe impl Workers for Pool {
    fn count(&self) -> usize {
        self.shared.width.load(Ordering::Relaxed)
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks > MOST {
            let together = tasks.div_ceil(MOST);
            let several = |i: usize| (i * together..tasks.min((i + 1) * together)).for_each(task);
            return self.run(tasks.div_ceil(together), &several);
        }
        let s = &*self.shared;
        // A lone task is not worth a clock, unless threads rest: in a pool of one thread at present all tasks are alone.
        if self.threads.is_empty() || (tasks <= 1 && self.count() > self.threads.len()) {
            (0..tasks).for_each(task);
            return;
        }
        let mut width = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        s.width.store(width.at(start), Ordering::Relaxed);
        if tasks <= 1 || width.threads() == 1 {
            (0..tasks).for_each(task);
            return;
        }
        let job = (Ticket::of(s.ticket.load(Ordering::Relaxed)).job + 1) & 0xffff_ffff;
        s.ticket.swap(Ticket { job, first: 0, end: 0 }.word(), Ordering::AcqRel);
        let lent: Task<'_> = task;
        // Release: who reads a field of this job cannot then take an older job's ticket.
        s.task.store((&raw const lent).cast_mut().cast(), Ordering::Release);
        s.tasks.store(tasks, Ordering::Release);
        s.done.store(0, Ordering::Relaxed);
        s.failed.store(false, Ordering::Relaxed);
        s.ticket.store(Ticket { job, first: 0, end: tasks as u64 }.word(), Ordering::SeqCst);
        self.wake(1..width.threads());
        let taken = s.take_tasks(0, job);
        if let Some(waited) = s.wait(tasks) {
            let end = Instant::now();
            let worked = (end - start).saturating_sub(waited);
            width.waited(end, waited, worked / taken.max(1));
            s.width.store(width.threads(), Ordering::Relaxed);
        }
        assert!(!s.failed.load(Ordering::Relaxed), "a worker task panicked");
    }
}

impl Pool {
    /// Wakes those of some threads that sleep.
    fn wake(&self, numbers: core::ops::Range<usize>) {
        for number in numbers {
            let asleep = &self.shared.asleep[number];
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                self.threads[number - 1].thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake(1..self.threads.len() + 1);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;

    #[test]
    fn own_threads_begin_with_start() {
        let started = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&started);
        let pool = Pool::with_start(4, move |i| {
            seen.fetch_add(1 << (8 * i), Ordering::SeqCst);
        })
        .unwrap();
        // Threads that have not been scheduled yet may still be on their way when a pool stops, but they do start.
        drop(pool);
        assert_eq!(started.load(Ordering::SeqCst), 0x0101_0100);
    }

    #[test]
    fn every_task_runs_exactly_once() {
        for n in [1, 2, 3, 7] {
            let pool = Pool::new(n).unwrap();
            assert_eq!(pool.count(), n);
            for tasks in [0, 1, 2, 5, 64, 1000, 0xffff, 0x10000, 200_000] {
                let counts: Vec<AtomicU64> = (0..tasks).map(|_| AtomicU64::new(0)).collect();
                let times = if tasks > 1000 { 2 } else { 20 };
                for _ in 0..times {
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == times), "{n} threads, {tasks} tasks");
            }
        }
    }

    /// Late threads meet the next job: no task may get lost or run twice over many short jobs.
    #[test]
    fn short_jobs_in_quick_succession() {
        for n in [2, 3, 5] {
            let pool = Pool::new(n).unwrap();
            for job in 0..30_000_usize {
                let tasks = 2 + job % 5;
                let sum = AtomicU64::new(0);
                pool.run(tasks, &|i| {
                    sum.fetch_add(1 << (8 * i), Ordering::Relaxed);
                });
                let expected = (0..tasks).map(|i| 1_u64 << (8 * i)).sum::<u64>();
                assert_eq!(sum.load(Ordering::Relaxed), expected, "{n} threads, job {job}");
            }
        }
    }

    #[test]
    fn sleeping_threads_wake_up() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            let sum = AtomicU64::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i as u64, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 4950);
        }
    }
}
