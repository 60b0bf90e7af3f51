//! # conformance
//!
//! The programs are judged from outside, through the command line, as a user would call them. What
//! they must compute was recorded with Hugging Face transformers and PEFT in float32; see
//! `tests/README.md` for the data, the commands and the ledger of what is covered.
//!
//! | module | holds |
//! |---|---|
//! | [`data`] | where the recorded cases and real models lie |
//! | [`case`] | a case's `case.json` |
//! | [`tensors`], [`score`] | reading safetensors; errors, divergences, digests |
//! | [`tools`], [`process`] | the built programs; running one with limits |
//! | [`desk`] | a temporary folder, and how the programs' endings are read |
//! | [`checks`] | what is asked of a case, one file per subject |
//! | [`ledger`] | what passes and what is not covered, kept in `tests/coverage.json` |
//! | [`models`] | `docs/models.md`, from the ledger |
//! | [`real`] | trained models and adapters: accuracy over a test set |

pub mod case;
pub mod checks;
pub mod data;
pub mod desk;
pub mod ledger;
pub mod models;
pub mod process;
pub mod real;
pub mod score;
pub mod tensors;
pub mod tools;

use std::io::Write;

/// Writes a line to the real standard error: the test harness captures `eprintln!` of passing tests,
/// and a skipped check or a summary must be seen without `--nocapture`.
pub fn say(line: &str) {
    // Nothing sensible can be done when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Says loudly that something was not tested, and what would make it run.
pub fn skip(what: &str, remedy: &str) {
    say(&format!("SKIP: {what} not run: {remedy}"));
}

/// Runs `work` over `items` on all cores and returns the results in the items' order.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len().max(1));
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(item) = items.get(i) else { break mine };
                        mine.push((i, work(item)));
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, r)| r).collect()
}
