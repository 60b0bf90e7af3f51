//! Two clocks: what the calling thread has computed, and what has passed.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Which time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// CPU time of the calling thread: what others do on the machine is left out. For one thread.
    Thread,
    /// CPU time of all threads of this process.
    Process,
    /// Time that passes. For several threads.
    Wall,
}

impl Clock {
    /// The clock for a run with so many threads.
    pub const fn for_threads(threads: usize) -> Self {
        if threads == 1 { Self::Thread } else { Self::Wall }
    }

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Thread | Self::Process => "CPU time",
            Self::Wall => "wall time",
        }
    }

    /// The clock's reading.
    pub fn now(self) -> Duration {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(match self {
            Self::Thread => ClockId::ThreadCPUTime,
            Self::Process => ClockId::ProcessCPUTime,
            Self::Wall => ClockId::Monotonic,
        });
        Duration::new(tv_sec as u64, tv_nsec as u32)
    }

    /// Seconds that `work` takes.
    pub fn seconds<E>(self, work: impl FnOnce() -> Result<(), E>) -> Result<f64, E> {
        let start = self.now();
        work()?;
        Ok((self.now() - start).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_takes_no_cpu_time() {
        let nap = || -> Result<(), ()> {
            std::thread::sleep(Duration::from_millis(30));
            Ok(())
        };
        assert!(Clock::Thread.seconds(nap).unwrap() < 0.02);
        assert!(Clock::Wall.seconds(nap).unwrap() >= 0.03);
    }
}
