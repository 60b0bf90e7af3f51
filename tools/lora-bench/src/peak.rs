//! What a core can do at most, and several at once: reading memory, and multiplying bytes.
#![expect(unsafe_code, reason = "prefetches, and loops of instructions whose sets are found at run time")]

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use memmap2::{Advice, MmapMut};

use crate::clock::Clock;
use crate::stats::Spread;

/// Memory to read: far more than any cache.
const BYTES: usize = 256 << 20;

/// Which pages hold the memory that is read.
#[derive(Clone, Copy, Debug)]
pub enum Pages {
    /// 4 KiB, as mapped files have them.
    Small,
    /// Those that the system gives when asked for huge ones.
    Huge,
}

/// Bytes per second that some threads read, several turns.
///
/// # Errors
/// No memory.
pub fn read_anonymous(pages: Pages, threads: usize, turns: u32) -> Result<Spread> {
    let mut map = MmapMut::map_anon(BYTES)?;
    #[cfg(target_os = "linux")]
    map.advise(match pages {
        Pages::Small => Advice::NoHugePage,
        Pages::Huge => Advice::HugePage,
    })?;
    map.fill(1);
    Ok(if threads == 1 { read(&map, turns) } else { read_together(&map, threads, turns) })
}

/// Bytes per second that several threads read from `bytes` together, by wall time, several turns.
pub fn read_together(bytes: &[u8], threads: usize, turns: u32) -> Spread {
    /// What a thread takes at a time.
    const CHUNK: usize = 1 << 20;
    let turn = |_| {
        let next = AtomicUsize::new(0);
        let seconds = together(threads, || {
            while let Some(chunk) = bytes.chunks(CHUNK).nth(next.fetch_add(1, Ordering::Relaxed)) {
                black_box(sum(black_box(chunk)));
            }
        });
        bytes.len() as f64 / seconds
    };
    let mut rates: Vec<f64> = (0..=turns).map(turn).skip(1).collect();
    Spread::of(&mut rates)
}

/// Seconds from the first of some threads beginning `work` to the last being done.
fn together(threads: usize, work: impl Fn() + Sync) -> f64 {
    let start = Barrier::new(threads);
    let one = || {
        start.wait();
        let begin = Clock::Wall.now();
        work();
        (begin, Clock::Wall.now())
    };
    let times = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(one)).collect();
        let mine = one();
        others.into_iter().filter_map(|t| t.join().ok()).chain([mine]).collect::<Vec<_>>()
    });
    let begin = times.iter().map(|t| t.0).min().unwrap_or(Duration::ZERO);
    let end = times.iter().map(|t| t.1).max().unwrap_or(Duration::ZERO);
    (end - begin).as_secs_f64()
}

/// Nanoseconds until one spinning thread sees what another has written: several times more where the two run on different
/// groups of cores with a cache of their own, as the CPUs of a virtual machine may.
pub fn hand_over(turns: u32) -> Spread {
    const HANDS: u32 = 20_000;
    let turn = |_| {
        let (ball, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let seconds = together(2, || {
            let parity = taken.fetch_add(1, Ordering::Relaxed);
            for i in (parity..HANDS as usize).step_by(2) {
                while ball.load(Ordering::Acquire) != i {
                    std::hint::spin_loop();
                }
                ball.store(i + 1, Ordering::Release);
            }
        });
        seconds * 1e9 / f64::from(HANDS)
    };
    let mut times: Vec<f64> = (0..turns).map(turn).collect();
    Spread::of(&mut times)
}

/// Bytes per second that one thread reads from `bytes`, several turns. Lines are asked for some time before, which is
/// faster than leaving it to the hardware.
pub fn read(bytes: &[u8], turns: u32) -> Spread {
    let mut rates = Vec::new();
    for turn in 0..=turns {
        let start = Clock::Thread.now();
        black_box(sum(black_box(bytes)));
        let seconds = (Clock::Thread.now() - start).as_secs_f64();
        if turn > 0 {
            rates.push(bytes.len() as f64 / seconds);
        }
    }
    Spread::of(&mut rates)
}

/// Bytes between a line and the one that is asked for meanwhile.
const AHEAD: usize = 3072;

/// Asks for the cache line at `p`.
fn ask(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that every x86-64 has, and that never faults.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Touches every byte with little arithmetic: the sum of all words.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 16];
    let lines = bytes.as_chunks::<128>().0;
    for line in lines {
        ask(line.as_ptr().wrapping_add(AHEAD));
        ask(line.as_ptr().wrapping_add(AHEAD + 64));
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// A loop of multiply-adds of bytes.
#[derive(Clone, Copy)]
pub struct Int8 {
    /// The instructions of the best set of this CPU.
    pub name: &'static str,
    /// Multiply-adds of a turn.
    per_turn: usize,
    /// Does so many turns.
    work: fn(u64) -> i32,
}

/// The loop for this CPU.
pub fn int8() -> Option<Int8> {
    #[cfg(target_arch = "x86_64")]
    {
        use x86::{CHAINS, avx2, avx512, avxvnni};
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the CPU has the instructions.
            return Some(Int8 { name: "avx512 vpdpbusd", per_turn: 64 * CHAINS, work: |n| unsafe { avx512(n) } });
        }
        if is_x86_feature_detected!("avxvnni") {
            // SAFETY: as above.
            return Some(Int8 { name: "avxvnni vpdpbusd", per_turn: 32 * CHAINS, work: |n| unsafe { avxvnni(n) } });
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            let work = |n| unsafe { avx2(n) };
            return Some(Int8 { name: "avx2 vpmaddubsw + vpmaddwd + vpaddd", per_turn: 32 * CHAINS, work });
        }
    }
    None
}

impl Int8 {
    /// Multiply-adds per second of one thread, by its CPU time.
    pub fn rate(&self) -> Spread {
        const TURNS: u64 = 4_000_000;
        let mut rates = Vec::new();
        for turn in 0..6 {
            let start = Clock::Thread.now();
            black_box((self.work)(black_box(TURNS)));
            let seconds = (Clock::Thread.now() - start).as_secs_f64();
            if turn > 0 {
                rates.push(TURNS as f64 * self.per_turn as f64 / seconds);
            }
        }
        Spread::of(&mut rates)
    }

    /// Multiply-adds per second of several threads together, by wall time: less than as many times one thread's where CPUs
    /// share a core.
    pub fn rate_together(&self, threads: usize) -> f64 {
        const TURNS: u64 = 4_000_000;
        let seconds = together(threads, || {
            black_box((self.work)(black_box(TURNS)));
        });
        threads as f64 * TURNS as f64 * self.per_turn as f64 / seconds
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums, so that latency does not matter.
    pub const CHAINS: usize = 10;

    /// # Safety
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn avx2(n: u64) -> i32 {
        let (a, ones) = (black_box(_mm256_set1_epi8(3)), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for i in 0..n {
            let x = _mm256_set1_epi32(i as i32 & 0x7f7f_7f7f);
            for sum in &mut sums {
                // The sum takes part, so that no two chains compute the same.
                let pairs = _mm256_maddubs_epi16(a, _mm256_xor_si256(x, *sum));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        let all = sums.into_iter().reduce(|a, b| _mm256_add_epi32(a, b));
        _mm256_extract_epi32::<0>(all.unwrap_or(ones))
    }

    /// # Safety
    /// The CPU has AVX2 and AVX-VNNI.
    #[target_feature(enable = "avx2,avxvnni")]
    pub unsafe fn avxvnni(n: u64) -> i32 {
        let a = black_box(_mm256_set1_epi8(3));
        let mut sums = [a; CHAINS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_set1_epi32(black_box(i as i32));
        }
        for i in 0..n {
            let x = _mm256_set1_epi32(i as i32 & 0x7f7f_7f7f);
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, x);
            }
        }
        let all = sums.into_iter().reduce(|a, b| _mm256_xor_si256(a, b));
        _mm256_extract_epi32::<0>(all.unwrap_or(a))
    }

    /// # Safety
    /// The CPU has AVX-512 F and VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe fn avx512(n: u64) -> i32 {
        let a = black_box(_mm512_set1_epi8(3));
        let mut sums = [a; CHAINS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_epi32(black_box(i as i32));
        }
        for i in 0..n {
            let x = _mm512_set1_epi32(i as i32 & 0x7f7f_7f7f);
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, x);
            }
        }
        let all = sums.into_iter().reduce(|a, b| _mm512_xor_si512(a, b));
        _mm_extract_epi32::<0>(_mm512_castsi512_si128(all.unwrap_or(a)))
    }
}
