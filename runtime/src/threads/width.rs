//! How many threads of a pool work at present.

use std::time::{Duration, Instant};

/// A caller that waits longer than this for the last task, and longer than two tasks take, waits for a thread that has lost
/// its CPU: the system gives it back after milliseconds.
const LATE: Duration = Duration::from_micros(100);
/// For how many times the wait a thread is left out.
const REST: u32 = 16;
/// A thread that is late so soon after a rest shows that the machine is still as busy as before: the next rest is twice as long.
const TRIAL: Duration = Duration::from_millis(20);
/// Longest rest: so long after the machine has become quiet all threads work again.
const LONGEST: Duration = Duration::from_millis(250);

/// The number of working threads, by what waits were seen.
#[derive(Debug)]
pub(super) struct Width {
    all: usize,
    threads: usize,
    /// When it was changed last, and whether that was the end of a rest.
    since: Option<(Instant, bool)>,
    /// How long a thread is left out.
    rest: Duration,
}

impl Width {
    /// All of `all` threads.
    pub(super) const fn new(all: usize) -> Self {
        Self { all, threads: all, since: None, rest: Duration::ZERO }
    }

    /// Working threads.
    pub(super) const fn threads(&self) -> usize {
        self.threads
    }

    /// Working threads of a job that begins now: one more after a rest.
    pub(super) fn at(&mut self, now: Instant) -> usize {
        if self.threads < self.all && self.since.is_none_or(|(since, _)| now.duration_since(since) >= self.rest) {
            self.threads += 1;
            self.since = Some((now, true));
        }
        self.threads
    }

    /// The caller has waited for the last task; its own took `task` each.
    pub(super) fn waited(&mut self, now: Instant, waited: Duration, task: Duration) {
        if waited < LATE || waited < 2 * task {
            return;
        }
        let again = self.since.is_some_and(|(since, rested)| rested && now.duration_since(since) < TRIAL);
        self.rest = (REST * waited).max(if again { 2 * self.rest } else { Duration::ZERO }).min(LONGEST);
        self.threads = (self.threads - 1).max(1);
        self.since = Some((now, false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_late_thread_rests_and_comes_back() {
        let start = Instant::now();
        let mut width = Width::new(4);
        // As long as two tasks: the thread may just have begun one.
        width.waited(start, ms(2), ms(2));
        width.waited(start, Duration::from_micros(50), Duration::from_micros(1));
        assert_eq!(width.at(start), 4);
        width.waited(start, ms(2), ms(1));
        assert_eq!((width.at(start), width.at(start + ms(31))), (3, 3));
        assert_eq!((width.at(start + ms(32)), width.at(start + ms(33))), (4, 4));
    }

    #[test]
    fn rests_grow_while_the_machine_is_busy() {
        let mut now = Instant::now();
        let mut width = Width::new(2);
        let mut rests = [0; 6];
        for rest in &mut rests {
            width.waited(now, ms(2), ms(0));
            assert_eq!(width.threads(), 1);
            while width.at(now) == 1 {
                now += ms(1);
                *rest += 1;
            }
            now += ms(3);
        }
        assert_eq!(rests, [32, 64, 128, 250, 250, 250]);
        // A long time without a wait, and it is as if there had been none.
        now += ms(1000);
        width.waited(now, ms(1), ms(0));
        assert_eq!((width.at(now + ms(15)), width.at(now + ms(16))), (1, 2));
    }

    #[test]
    fn one_thread_always_works() {
        let now = Instant::now();
        let mut width = Width::new(3);
        for _ in 0..5 {
            width.waited(now, ms(2), ms(0));
        }
        assert_eq!(width.threads(), 1);
        assert_eq!(Width::new(1).at(now), 1);
    }
}
