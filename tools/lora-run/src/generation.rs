//! Continuing a prompt, token by token.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};
use lora_runtime::format::{EntryKind, NONE};
use lora_runtime::kernels::Kernels;
use lora_runtime::sampler::{Rng, Rules, Sampling, choose, mark, mark_words, penalize};
use lora_runtime::{Model, Segment, Session, Step};
use serde_json::{Value as Json, json};

use crate::beam::{self, Beams, Hypothesis, Limits};
use crate::cli::SamplingArgs;
use crate::load::{Host, Room};
use crate::stats::{human, ms, peak_rss, per_second};
use crate::stop::Stopper;

/// How to continue.
#[derive(Clone, Debug)]
pub struct Settings<'m> {
    sampling: Sampling,
    rules: Rules<'m>,
    penalty: f32,
    seed: u64,
    max_new: usize,
    stops: Vec<String>,
    ignore_eos: bool,
    /// Beam search instead of one token after the other.
    beams: Option<Beams>,
}

impl<'m> Settings<'m> {
    /// The user's settings; where there are none, the model's.
    ///
    /// # Errors
    /// A token id that the model does not have.
    pub fn new(args: &SamplingArgs, model: &Model<'m>) -> Result<Self> {
        let info = model.face.info;
        if let Some(id) = args.first.filter(|id| *id >= info.vocab) {
            bail!("--first {id}: the model has {} tokens", info.vocab);
        }
        // A file's numbers count only where they mean something.
        let or = |value: f32, fits: bool, off: f32| if fits { value } else { off };
        let temperature = or(info.temperature, info.temperature.is_finite() && info.temperature >= 0.0, 0.0);
        let top_p = or(info.top_p, info.top_p > 0.0 && info.top_p <= 1.0, 1.0);
        let penalty =
            or(info.repetition_penalty, info.repetition_penalty.is_finite() && info.repetition_penalty > 0.0, 1.0);
        let sampling = Sampling {
            temperature: args.temp.unwrap_or(temperature),
            top_k: args.top_k.unwrap_or(info.top_k),
            top_p: args.top_p.unwrap_or(top_p),
            min_p: args.min_p.unwrap_or(0.0),
        };
        let own = model.rules();
        Ok(Self {
            sampling,
            rules: Rules { first: args.first.or(own.first), ..own },
            penalty: args.repeat_penalty.unwrap_or(penalty),
            seed: args.seed.unwrap_or_else(fresh_seed),
            max_new: args.n as usize,
            stops: args.stop.clone(),
            ignore_eos: args.ignore_eos,
            beams: args.beams.filter(|count| *count > 1).map(|count| Beams {
                count: count.into(),
                length_penalty: args.length_penalty.into(),
                early_stopping: args.early_stopping,
            }),
        })
    }
}

/// A seed that is another one each time.
fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model said so.
    Eos,
    /// As many tokens as were wanted.
    Length,
    /// A stop text.
    Stop,
    /// No more positions.
    Context,
    /// The user.
    Interrupted,
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Length => "length",
            Self::Stop => "stop",
            Self::Context => "context",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A continuation.
#[derive(Clone, Debug)]
pub struct Continuation {
    /// New tokens, without the end token.
    pub ids: Vec<u32>,
    /// Their text, up to a stop text.
    pub text: String,
    /// Why it ended.
    pub ending: Ending,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, how many were not in the cache.
    pub prefilled: usize,
    /// Tokens in the cache afterwards: of the prompt and the continuation.
    pub cached: usize,
    /// What beam search found, the best first, with texts.
    beams: Vec<(Hypothesis, String)>,
    seed: u64,
    prefill: Duration,
    first: Duration,
    decode: Duration,
}

impl Continuation {
    /// As a JSON object.
    pub fn json(&self, load: Duration) -> Json {
        let mut answer = json!({
            "text": self.text,
            "ids": self.ids,
            "stop": self.ending.name(),
            "seed": self.seed,
            "prompt_tokens": self.prompt_tokens,
            "load_ms": ms(load),
            "ttft_ms": ms(self.first),
            "prefill_tps": per_second(self.prefilled, self.prefill),
            "decode_tps": self.decode_tps(),
            "rss_bytes": peak_rss(),
        });
        if !self.beams.is_empty() {
            let one = |(h, text): &(Hypothesis, String)| json!({ "ids": h.ids, "text": text, "score": h.score });
            answer["beams"] = self.beams.iter().map(one).collect();
        }
        answer
    }

    /// As a line for people.
    pub fn summary(&self, load: Duration) -> String {
        format!(
            "loaded in {:.1} ms, first token after {:.1} ms; prompt {} tokens at {:.1}/s, answer {} tokens at {:.1}/s; \
             peak memory {}",
            ms(load),
            ms(self.first),
            self.prompt_tokens,
            per_second(self.prefilled, self.prefill),
            self.ids.len(),
            self.decode_tps(),
            peak_rss().map_or("unknown".into(), human),
        )
    }

    /// The first token belongs to the prefill.
    fn decode_tps(&self) -> f64 {
        per_second(self.ids.len().saturating_sub(1), self.decode)
    }
}

/// Chooses the next token from the session's logits.
struct Chooser<'m> {
    kernels: &'static Kernels,
    sampling: Sampling,
    penalty: f32,
    rng: Rng,
    /// The row that is changed; empty where none is.
    row: Vec<f32>,
    seen: Vec<u64>,
    distinct: Vec<u32>,
    rules: Rules<'m>,
    /// Prompt and answer, where the rules look at them, and the tokens of the answer.
    past: Vec<u32>,
    made: usize,
}

impl<'m> Chooser<'m> {
    fn new(kernels: &'static Kernels, settings: &Settings<'m>, vocab: u32, history: &[u32]) -> Self {
        let penalizes = settings.penalty != 1.0;
        let mut chooser = Self {
            kernels,
            sampling: settings.sampling,
            penalty: settings.penalty,
            rng: Rng::new(settings.seed),
            row: Vec::new(),
            seen: vec![0; if penalizes { mark_words(vocab) } else { 0 }],
            distinct: Vec::new(),
            rules: settings.rules,
            past: Vec::new(),
            made: 0,
        };
        history.iter().for_each(|id| chooser.saw(*id));
        chooser
    }

    fn saw(&mut self, id: u32) {
        // Without a penalty there is no memory for it, and nothing is new.
        if mark(&mut self.seen, id) {
            self.distinct.push(id);
        }
        if !self.rules.is_empty() {
            self.past.push(id);
        }
    }

    fn next(&mut self, session: &Session<'_>) -> Result<u32> {
        let rows = session.output(EntryKind::Decode, "logits")?;
        let logits = rows.row(rows.len() - 1);
        let id = if self.sampling.is_greedy() && self.seen.is_empty() && self.rules.is_empty() {
            let best = self.kernels.argmax(logits).filter(|i| logits[*i] > f32::NEG_INFINITY);
            best.map(|i| i as u32)
        } else {
            self.row.clear();
            self.row.extend_from_slice(logits);
            penalize(&mut self.row, &self.distinct, self.penalty);
            self.rules.apply(&mut self.row, &self.past, self.made);
            choose(self.kernels, &mut self.row, &self.sampling, &mut self.rng)
        };
        let id = id.ok_or_else(|| match self.rules.is_empty() {
            true => anyhow!("the model's logits are not numbers: the file's weights are damaged"),
            false => anyhow!("the model's generation settings leave no token, or its logits are not numbers"),
        })?;
        self.saw(id);
        self.made += 1;
        Ok(id)
    }
}

/// What to continue.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// Token ids of the prompt.
    pub prompt: &'r [u32],
    /// How to continue it.
    pub settings: &'r Settings<'r>,
    /// When the request came.
    pub started: Instant,
}

/// Gets the text as it becomes certain.
pub type Emit<'e> = &'e mut dyn FnMut(&str) -> Result<()>;

/// Continues a prompt whose first `cached` tokens the session has already read, until it ends or is `interrupted`.
///
/// # Errors
/// The prompt is empty or does not fit; as [`Session::run`]; what `emit` returns.
pub fn continue_prompt(
    session: &mut Session<'_>,
    kernels: &'static Kernels,
    request: Request<'_>,
    cached: usize,
    interrupted: &AtomicBool,
    emit: Emit<'_>,
) -> Result<Continuation> {
    let Request { prompt, settings, started } = request;
    let model = *session.model();
    let context = session.config().context as usize;
    if session.model().entry(EntryKind::Encode).is_err() && !prompt.is_empty() {
        session.select(session.selected().for_prompt(prompt))?;
    }
    let prefill_started = Instant::now();
    let cached = session.reusable(0, cached.min(prompt.len().saturating_sub(1)) as u32) as usize;
    let mut past = read_prompt(session, prompt, cached, interrupted)?;
    let prefill = prefill_started.elapsed();

    let mut chooser = Chooser::new(kernels, settings, model.face.info.vocab, prompt);
    let mut decoder = model.tokenizer().ok().map(|t| t.decoder(true));
    let mut stopper = Stopper::new(&settings.stops);
    let (mut ids, mut text) = (Vec::with_capacity(settings.max_new.min(context)), String::new());
    let (mut piece, mut certain) = (String::new(), String::new());
    let mut first = None;
    let mut decode_started = Instant::now();
    let mut ending = loop {
        if ids.len() == settings.max_new {
            break Ending::Length;
        }
        if interrupted.load(Ordering::Relaxed) {
            break Ending::Interrupted;
        }
        if !ids.is_empty() {
            if past == context {
                break Ending::Context;
            }
            run(session, &ids[ids.len() - 1..], past)?;
            past += 1;
        }
        let id = chooser.next(session)?;
        if first.is_none() {
            first = Some(started.elapsed());
            decode_started = Instant::now();
        }
        if !settings.ignore_eos && model.eos().contains(&id) {
            break Ending::Eos;
        }
        ids.push(id);
        let Some(decoder) = &mut decoder else { continue };
        piece.clear();
        certain.clear();
        // Writing to a string cannot fail.
        let _ = decoder.push(id, &mut piece);
        let stopped = stopper.push(&piece, &mut certain);
        if !certain.is_empty() {
            text.push_str(&certain);
            emit(&certain)?;
        }
        if stopped {
            break Ending::Stop;
        }
    };
    let decode = decode_started.elapsed();
    if let Some(decoder) = decoder.as_mut().filter(|_| ending != Ending::Stop) {
        piece.clear();
        certain.clear();
        let _ = decoder.finish(&mut piece);
        if stopper.push(&piece, &mut certain) {
            ending = Ending::Stop;
        } else {
            stopper.finish(&mut certain);
        }
        if !certain.is_empty() {
            text.push_str(&certain);
            emit(&certain)?;
        }
    }
    Ok(Continuation {
        ids,
        text,
        ending,
        prompt_tokens: prompt.len(),
        prefilled: past.min(prompt.len()) - cached,
        cached: past,
        beams: Vec::new(),
        seed: settings.seed,
        prefill,
        first: first.unwrap_or(prefill),
        decode,
    })
}

/// Reads a prompt whose first `cached` tokens the session has already read; gives how many it has read then.
fn read_prompt(session: &mut Session<'_>, prompt: &[u32], cached: usize, interrupted: &AtomicBool) -> Result<usize> {
    let context = session.config().context as usize;
    if prompt.is_empty() {
        bail!("the prompt is empty, and the model has no token to begin with");
    }
    if prompt.len() > context {
        bail!("the prompt has {} tokens, there are {context} positions: shorten it, or raise --ctx", prompt.len());
    }
    let mut past = cached;
    for tokens in prompt[cached..].chunks(session.config().tokens as usize) {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        run(session, tokens, past)?;
        past += tokens.len();
    }
    Ok(past)
}

/// Continues a prompt by beam search; all of the text comes at the end.
fn search(
    session: &mut Session<'_>,
    kernels: &'static Kernels,
    request: Request<'_>,
    beams: Beams,
    interrupted: &AtomicBool,
    emit: Emit<'_>,
) -> Result<Continuation> {
    let Request { prompt, settings, started } = request;
    let model = *session.model();
    if session.model().entry(EntryKind::Encode).is_err() && !prompt.is_empty() {
        session.select(session.selected().for_prompt(prompt))?;
    }
    let prefill_started = Instant::now();
    let past = read_prompt(session, prompt, 0, interrupted)?;
    let (prefill, decode_started) = (prefill_started.elapsed(), Instant::now());
    let eos = if settings.ignore_eos { &[] } else { model.eos() };
    let limits = Limits { max_new: settings.max_new, eos, repetition: settings.penalty, rules: settings.rules };
    let found = beam::search(session, kernels, prompt, beams, limits, interrupted)?;
    let decode = decode_started.elapsed();
    let text = |ids: &[u32]| {
        let mut text = String::new();
        if let Ok(tokenizer) = model.tokenizer() {
            let mut decoder = tokenizer.decoder(true);
            for id in ids {
                // Writing to a string cannot fail.
                let _ = decoder.push(*id, &mut text);
            }
            let _ = decoder.finish(&mut text);
        }
        text
    };
    let beams: Vec<(Hypothesis, String)> = found.into_iter().map(|h| (h.clone(), text(&h.ids))).collect();
    let (ids, text, complete) =
        beams.first().map_or_else(Default::default, |(h, text)| (h.ids.clone(), text.clone(), h.complete));
    emit(&text)?;
    let full = prompt.len() + ids.len() > session.config().context as usize && ids.len() < settings.max_new;
    Ok(Continuation {
        ending: match (interrupted.load(Ordering::Relaxed), complete, full) {
            (true, ..) => Ending::Interrupted,
            (_, true, _) => Ending::Eos,
            (_, _, true) => Ending::Context,
            _ => Ending::Length,
        },
        ids,
        text,
        prompt_tokens: prompt.len(),
        prefilled: past,
        cached: 0,
        beams,
        seed: settings.seed,
        prefill,
        first: started.elapsed(),
        decode,
    })
}

/// One step of the decoder; the last token's logits are wanted.
fn run(session: &mut Session<'_>, tokens: &[u32], past: usize) -> Result<()> {
    let len = tokens.len() as u32;
    let segments = [Segment { sequence: 0, past: past as u32, len }];
    let step = Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
    Ok(session.run(EntryKind::Decode, &step)?)
}

/// Answers one request in a session of its own. For an encoder–decoder, `prompt` is what the encoder reads.
///
/// # Errors
/// As [`continue_prompt`]; the model does not generate.
pub fn generate(
    host: &Host,
    model: Model<'_>,
    room: &mut Room,
    request: Request<'_>,
    emit: Emit<'_>,
) -> Result<Continuation> {
    let Request { prompt, settings, .. } = request;
    let never = AtomicBool::new(false);
    let wanted = |start: usize| u32::try_from(start.saturating_add(settings.max_new)).unwrap_or(u32::MAX);
    let len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    let sequences = settings.beams.map_or(1, |b| b.count as u32);
    let answer = |session: &mut Session<'_>, request: Request<'_>, emit: Emit<'_>| match settings.beams {
        Some(beams) => search(session, host.kernels, request, beams, &never, emit),
        None => continue_prompt(session, host.kernels, request, 0, &never, emit),
    };
    if model.entry(EntryKind::Encode).is_err() {
        let context = host.context(&model, wanted(prompt.len()))?;
        let mut config = host.config(&model, context, host.chunk().min(len).max(sequences), sequences);
        config.sequences = sequences;
        return answer(&mut host.session(model, config, room)?, request, emit);
    }
    if prompt.is_empty() {
        bail!("the text is empty: it has no tokens");
    }
    let start = model.face.info.decoder_start;
    if start == NONE {
        bail!(
            "the file does not say with which token its decoder begins: pack it again with decoder_start_token_id in config.json"
        );
    }
    let limit = model.entry(EntryKind::Encode)?.max_positions;
    if len > limit {
        bail!("the text has {len} tokens, the encoder has {limit} positions: shorten it");
    }
    let mut config = host.config(&model, host.context(&model, wanted(1))?, len.max(sequences), sequences);
    (config.source, config.sequences) = (len, sequences);
    let mut session = host.session(model, config, room)?;
    let encode_started = Instant::now();
    encode(&mut session, prompt)?;
    let encoded = encode_started.elapsed();
    let mut c = answer(&mut session, Request { prompt: &[start], ..request }, emit)?;
    (c.prompt_tokens, c.prefilled) = (prompt.len(), prompt.len());
    c.prefill += encoded;
    Ok(c)
}

/// The encoder's pass over a whole text.
pub fn encode(session: &mut Session<'_>, tokens: &[u32]) -> Result<()> {
    let len = tokens.len() as u32;
    let segments = [Segment { sequence: 0, past: 0, len }];
    let step = Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
    Ok(session.run(EntryKind::Encode, &step)?)
}
