//! Threads that stay on processors of the user's choice (`--pin`).

use anyhow::{Context, Result, ensure};
use lora_runtime::threads::Pool;

/// A pool of `threads` threads; with `cpus` the calling one runs on the first of them, the next on the second, and so on.
///
/// # Errors
/// There are fewer `cpus` than threads, no such processor, or the system cannot start or bind a thread.
pub fn pool(threads: usize, cpus: &[usize]) -> Result<Pool> {
    let start = || format!("cannot start {threads} threads");
    if cpus.is_empty() {
        return Pool::new(threads).with_context(start);
    }
    ensure!(cpus.len() >= threads, "--pin: {} processors for {threads} threads", cpus.len());
    for (i, cpu) in cpus.iter().enumerate() {
        ensure!(!cpus[..i].contains(cpu), "--pin: processor {cpu} twice");
    }
    // Each is tried here first, where an error can be told.
    for cpu in cpus[1..].iter().chain(&cpus[..1]) {
        bind(*cpu).with_context(|| format!("--pin: cannot run on processor {cpu}"))?;
    }
    let cpus = cpus.to_vec();
    Pool::with_start(threads, move |thread| {
        if let Err(e) = bind(cpus[thread]) {
            eprintln!("lora-run: --pin: thread {thread} is not on processor {}: {e}", cpus[thread]);
        }
    })
    .with_context(start)
}

/// Has the calling thread run on one processor only.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn bind(cpu: usize) -> std::io::Result<()> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    if cpu >= CpuSet::MAX_CPU {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn bind(_: usize) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
