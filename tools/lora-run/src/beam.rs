//! Beam search, with the rules of the `transformers` library (its `generate` with `num_beams`).
//!
//! At every step each running beam offers its likeliest next tokens; of all offers the best `B` that do not end go
//! on, and those of the best `B` that end are kept, by log-probability / length^penalty, as long as they are among the `B`
//! best ended ones.
//!
//! Beams are sequences of one session. A beam that goes on stays where its parent's keys and values are; only the
//! second and later children of a parent get a copy, in the place of a beam that ended.

use std::cmp::Ordering;
use std::sync::atomic::{AtomicBool, Ordering as Memory};

use anyhow::{Result, anyhow};
use lora_runtime::format::EntryKind;
use lora_runtime::kernels::Kernels;
use lora_runtime::sampler::{Rules, penalize};
use lora_runtime::{Segment, Session, Step};

use crate::cli::EarlyStopping;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Beams {
    /// Beams.
    pub count: usize,
    /// Exponent of the length.
    pub length_penalty: f64,
    /// When to end.
    pub early_stopping: EarlyStopping,
}

/// An ended continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// New tokens, without the end token.
    pub ids: Vec<u32>,
    /// Log-probability / length^penalty; the end token counts.
    pub score: f64,
    /// It ended with an end token.
    pub complete: bool,
}

/// A running beam.
#[derive(Clone, Debug)]
struct Beam {
    ids: Vec<u32>,
    score: f64,
    /// The sequence of the session that holds its past.
    place: u32,
}

/// A beam with one token more.
#[derive(Clone, Copy, Debug)]
struct Offer {
    parent: usize,
    token: u32,
    score: f64,
}

/// What bounds a search.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'l> {
    /// Most new tokens.
    pub max_new: usize,
    /// End tokens.
    pub eos: &'l [u32],
    /// Divides the log-probabilities of tokens that have occurred.
    pub repetition: f32,
    /// What the model's authors force or forbid.
    pub rules: Rules<'l>,
}

/// Continues the prompt that sequence 0 of the session has just read. The best continuation comes first.
///
/// # Errors
/// As [`Session::run`]; logits that are no numbers.
pub fn search(
    session: &mut Session<'_>,
    kernels: &'static Kernels,
    prompt: &[u32],
    beams: Beams,
    limits: Limits<'_>,
    interrupted: &AtomicBool,
) -> Result<Vec<Hypothesis>> {
    let room = session.config().context as usize - prompt.len();
    // The last token needs no position.
    let max_new = limits.max_new.min(room + 1);
    let mut running = vec![Beam { ids: Vec::new(), score: 0.0, place: 0 }];
    let mut ended: Vec<Hypothesis> = Vec::new();
    let mut row = Vec::new();
    let wanted = beams.count * (1 + limits.eos.len()).max(2);
    for len in 1..=max_new {
        let mut offers = Vec::with_capacity(running.len() * wanted);
        let rows = session.output(EntryKind::Decode, "logits")?;
        // The prompt's step has one row, the last; afterwards there is a row for each beam.
        for (parent, beam) in running.iter().enumerate() {
            let logits = if len == 1 { rows.row(rows.len() - 1) } else { rows.row(parent) };
            log_probabilities(kernels, logits, &mut row)?;
            if limits.repetition != 1.0 {
                let mut seen: Vec<u32> = prompt.iter().chain(&beam.ids).copied().collect();
                seen.sort_unstable();
                seen.dedup();
                penalize(&mut row, &seen, limits.repetition);
            }
            if !limits.rules.is_empty() {
                let past: Vec<u32> = prompt.iter().chain(&beam.ids).copied().collect();
                limits.rules.apply(&mut row, &past, beam.ids.len());
            }
            let allowed = best(kernels, &row, wanted).filter(|(_, p)| *p > f32::NEG_INFINITY);
            offers.extend(allowed.map(|(token, p)| Offer { parent, token, score: beam.score + f64::from(p) }));
        }
        // By score; equal ones by beam, then by token, the order in which they stand.
        offers.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
        offers.truncate(wanted);
        let ends = |o: &Offer| limits.eos.contains(&o.token) || len == max_new;
        if !(beams.early_stopping == EarlyStopping::Yes && ended.len() == beams.count) {
            for o in offers.iter().take(beams.count).filter(|o| ends(o)) {
                let complete = limits.eos.contains(&o.token);
                let mut ids = running[o.parent].ids.clone();
                ids.extend((!complete).then_some(o.token));
                ended.push(Hypothesis { ids, score: o.score / (len as f64).powf(beams.length_penalty), complete });
            }
            ended.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
            ended.truncate(beams.count);
        }
        let next: Vec<Offer> = offers.iter().filter(|o| !ends(o)).take(beams.count).copied().collect();
        let stop = interrupted.load(Memory::Relaxed) || is_over(&ended, &next, len, max_new, beams);
        if stop {
            if ended.is_empty() {
                let cut = |b: Beam| Hypothesis { score: b.score, ids: b.ids, complete: false };
                ended = running.into_iter().map(cut).collect();
            }
            break;
        }
        running = go_on(session, &running, &next, (prompt.len() + len - 1) as u32)?;
        step(session, &running, (prompt.len() + len - 1) as u32)?;
    }
    Ok(ended)
}

/// Whether no running beam could still change the answer.
fn is_over(ended: &[Hypothesis], next: &[Offer], len: usize, max_new: usize, beams: Beams) -> bool {
    let Some(best) = next.first() else { return true };
    if ended.len() < beams.count {
        return false;
    }
    let hopeful = match beams.early_stopping {
        EarlyStopping::Yes => return true,
        EarlyStopping::Never if beams.length_penalty > 0.0 => max_new,
        EarlyStopping::No | EarlyStopping::Never => len,
    };
    let reach = best.score / (hopeful as f64).powf(beams.length_penalty);
    ended.last().is_some_and(|worst| reach <= worst.score)
}

/// The beams of the next step, each with its past in a place of its own.
fn go_on(session: &mut Session<'_>, running: &[Beam], next: &[Offer], past: u32) -> Result<Vec<Beam>> {
    let places = session.config().sequences;
    let mut free: Vec<u32> = (0..places).filter(|p| !next.iter().any(|o| running[o.parent].place == *p)).collect();
    let mut taken = vec![false; running.len()];
    let mut beams = Vec::with_capacity(next.len());
    for o in next {
        let parent = &running[o.parent];
        let place = if std::mem::replace(&mut taken[o.parent], true) {
            // There are as many places as beams, and every parent that goes on fills one of them.
            let place = free.pop().ok_or_else(|| anyhow!("more beams than sequences"))?;
            session.copy_past(parent.place, place, past)?;
            place
        } else {
            parent.place
        };
        let ids = parent.ids.iter().copied().chain([o.token]).collect();
        beams.push(Beam { ids, score: o.score, place });
    }
    Ok(beams)
}

/// One step of all beams.
fn step(session: &mut Session<'_>, beams: &[Beam], past: u32) -> Result<()> {
    let tokens: Vec<u32> = beams.iter().filter_map(|b| b.ids.last().copied()).collect();
    let segments: Vec<Segment> = beams.iter().map(|b| Segment { sequence: b.place, past, len: 1 }).collect();
    let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
    let step = Step { tokens: &tokens, token_types: &[], segments: &segments, outputs: &outputs };
    Ok(session.run(EntryKind::Decode, &step)?)
}

/// `row[i] = ln softmax(logits)[i]`.
fn log_probabilities(kernels: &'static Kernels, logits: &[f32], row: &mut Vec<f32>) -> Result<()> {
    row.clear();
    row.extend_from_slice(logits);
    let best = kernels.argmax(logits).unwrap_or(0);
    kernels.softmax_in_place(row);
    // The likeliest token's probability is 1 / Σ exp(x − max).
    let (max, log_sum) = (logits[best], -row[best].ln());
    if !(max + log_sum).is_finite() {
        return Err(anyhow!("the model's logits are not numbers: the file's weights are damaged"));
    }
    for (p, x) in row.iter_mut().zip(logits) {
        *p = (x - max) - log_sum;
    }
    Ok(())
}

/// The likeliest tokens, best first.
fn best(kernels: &'static Kernels, row: &[f32], wanted: usize) -> impl Iterator<Item = (u32, f32)> + use<> {
    let k = wanted.min(row.len());
    let (mut index, mut value) = (vec![0; k], vec![0.0; k]);
    let found = kernels.top_k(row, &mut index, &mut value);
    index.into_iter().zip(value).take(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hypothesis(score: f64) -> Hypothesis {
        Hypothesis { ids: vec![1], score, complete: true }
    }

    #[test]
    fn the_search_ends_when_nothing_can_change() {
        let offer = [Offer { parent: 0, token: 3, score: -4.0 }];
        let with = |early_stopping| Beams { count: 2, length_penalty: 1.0, early_stopping };
        let full = [hypothesis(-0.5), hypothesis(-1.5)];
        // At length 2 the running beam stands at −2, at length 4 it could still come to −1.
        assert!(is_over(&full, &offer, 2, 4, with(EarlyStopping::No)));
        assert!(!is_over(&full, &offer, 2, 4, with(EarlyStopping::Never)));
        assert!(is_over(&full, &offer, 2, 4, with(EarlyStopping::Yes)));
        assert!(!is_over(&full[..1], &offer, 2, 4, with(EarlyStopping::Yes)));
        assert!(is_over(&full[..1], &[], 2, 4, with(EarlyStopping::Never)));
    }

    #[test]
    fn log_probabilities_of_equal_logits() {
        let mut row = Vec::new();
        log_probabilities(Kernels::best(), &[2.0; 4], &mut row).unwrap();
        for p in &row {
            assert!((p + 4_f32.ln()).abs() < 1e-6);
        }
        assert!(log_probabilities(Kernels::best(), &[f32::NAN; 4], &mut row).is_err());
    }
}
