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
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
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
