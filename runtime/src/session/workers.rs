//! Who does the work of an op: the calling thread alone, or a pool (feature `std`).
#![expect(unsafe_code, reason = "the trait promises what memory safety rests on")]

/// Runs the tasks of one op.
///
/// # Safety
/// [`Workers::run`] must call every task number exactly once and must not return before all calls have returned:
/// tasks write to disjoint memory by their number.
pub unsafe trait Workers: Sync {
    /// Threads that take part, the caller included.
    fn count(&self) -> usize;
    /// Calls `task(i)` exactly once for every `i < tasks`, in any order and from any thread, and returns when all are done.
    /// Of several threads one half begins with the first tasks, the other with the last: tasks that are near each other should
    /// be about the same memory, and then are about the memory that the same thread had in the op before.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// How work is dealt out: every thread gets a half of its share in one piece, then a quarter, and so on, so that threads work on
/// memory of their own for long, and the last tasks are short ones that let a slow core not hold up the others. One half of
/// the threads begins at the first task, the other at the last ([`Workers::run`]), so the long ones are at both ends.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    threads: usize,
    /// Tasks of a thread that is as fast as the others. The last two are of one size.
    rounds: u32,
}

impl Cuts {
    /// One task.
    pub const ALONE: Self = Self { threads: 1, rounds: 1 };
    /// Most tasks of a thread.
    const ROUNDS: u32 = 5;

    /// For some threads; as many equal parts as `parts` still make tasks that are worth it.
    #[must_use]
    pub const fn new(threads: usize, parts: usize) -> Self {
        let mut rounds = 1;
        while rounds < Self::ROUNDS && threads << rounds <= parts {
            rounds += 1;
        }
        Self { threads, rounds }
    }

    /// So many equal tasks.
    #[must_use]
    pub const fn even(tasks: usize) -> Self {
        Self { threads: tasks, rounds: 1 }
    }

    /// Number of tasks.
    #[must_use]
    pub const fn tasks(self) -> usize {
        if cfg!(feature = "std") { self.threads * self.rounds as usize } else { self.threads }
    }

    /// Where a task begins, of so many blocks; the task after the last begins where they end. Some tasks may have none.
    #[must_use]
    pub const fn start(self, task: usize, blocks: usize) -> usize {
        // Firmware, whose bytes count, has few threads if any: equal tasks.
        if !cfg!(feature = "std") {
            return task * blocks / self.threads;
        }
        // In units of the shortest tasks.
        let all = 1 << (self.rounds - 1);
        let (low, high) = (self.threads.div_ceil(2), self.threads / 2);
        let middle = low * self.rounds as usize;
        let units = if task <= middle {
            self.before(low, task)
        } else {
            self.threads * all - self.before(high, self.tasks() - task)
        };
        units * blocks / (all * self.threads)
    }

    /// What `threads` threads get before their task `task`.
    const fn before(self, threads: usize, task: usize) -> usize {
        let (round, place) = (task / threads, task % threads);
        let all = 1 << (self.rounds - 1);
        let (rest, size) = match self.rounds as usize - round {
            0 => (0, 0),
            1 => (1, 1),
            _ => (all >> round, all >> (round + 1)),
        };
        (all - rest) * threads + place * size
    }
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inline;

// SAFETY: a plain loop.
unsafe impl Workers for Inline {
    fn count(&self) -> usize {
        1
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        for i in 0..tasks {
            task(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::Cuts;

    #[test]
    fn tasks_follow_each_other_and_cover_everything() {
        for threads in [1, 2, 3, 7, 64] {
            for parts in [0, 1, 2, 5, 12, 100, 10_000] {
                for blocks in [1, 2, 17, 36, 3072] {
                    let cuts = Cuts::new(threads, parts);
                    let starts: Vec<usize> = (0..=cuts.tasks()).map(|t| cuts.start(t, blocks)).collect();
                    assert_eq!((starts[0], starts[cuts.tasks()]), (0, blocks), "{cuts:?}");
                    assert!(starts.is_sorted(), "{starts:?}");
                }
            }
        }
        let sizes =
            |cuts: Cuts| (0..cuts.tasks()).map(|t| cuts.start(t + 1, 64) - cuts.start(t, 64)).collect::<Vec<_>>();
        assert_eq!(sizes(Cuts::ALONE), [64]);
        assert_eq!(sizes(Cuts::new(2, 3)), [32, 32]);
        assert_eq!(sizes(Cuts::even(4)), [16, 16, 16, 16]);
        assert_eq!(sizes(Cuts::new(2, 8)), [16, 8, 8, 8, 8, 16]);
        assert_eq!(sizes(Cuts::new(2, 1000)), [16, 8, 4, 2, 2, 2, 2, 4, 8, 16]);
        assert_eq!(sizes(Cuts::new(4, 20)), [8, 8, 4, 4, 4, 4, 4, 4, 4, 4, 8, 8]);
    }
}
