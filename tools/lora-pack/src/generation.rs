//! Generation settings that were published with a model: what of them goes into the file, and what does not.
//!
//! They stand in `generation_config.json`, of older models in `config.json`.

use lora_runtime::format::{Info, NONE};
use serde_json::Value;

use crate::merge::{Level, Note};
use crate::source::BaseModel;

/// The settings of a model.
pub struct Generation<'a> {
    own: Option<&'a Value>,
    config: &'a Value,
    seq2seq: bool,
}

/// Settings that change what a model answers and that the file has no place for, with the number that turns each off.
const LEFT_OUT: &[(&str, f64)] = &[
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("diversity_penalty", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("begin_suppress_tokens", 0.0),
    ("forced_decoder_ids", 0.0),
    ("sequence_bias", 0.0),
    ("constraints", 0.0),
    ("force_words_ids", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("guidance_scale", 1.0),
    ("penalty_alpha", 0.0),
    ("dola_layers", 0.0),
    ("watermarking_config", 0.0),
    ("stop_strings", 0.0),
];

/// Those that count where sampling is on.
const LEFT_OUT_OF_SAMPLING: &[(&str, f64)] =
    &[("min_p", 0.0), ("typical_p", 1.0), ("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0)];

impl<'a> Generation<'a> {
    /// Of a base whose model has this config.
    pub fn new(base: &'a BaseModel, config: &'a Value) -> Self {
        let seq2seq = config.get("is_encoder_decoder").and_then(Value::as_bool).unwrap_or(false);
        Self { own: base.generation_config.as_ref(), config, seq2seq }
    }

    /// A special id: the generation config's, else the model config's.
    fn special(&self, name: &str) -> Option<&'a Value> {
        let there = |v: &'a Value| v.get(name).filter(|v| !v.is_null());
        self.own.and_then(there).or_else(|| there(self.config))
    }

    /// Another setting: the generation config's where there is one.
    fn setting(&self, name: &str) -> Option<&'a Value> {
        self.own.unwrap_or(self.config).get(name).filter(|v| !v.is_null())
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.setting(name).and_then(Value::as_f64)
    }

    fn count(&self, name: &str) -> u32 {
        self.setting(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }

    fn sampling(&self) -> bool {
        self.setting("do_sample").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Tokens that never come, and whether there are longer sequences that must not.
    fn suppressed(&self) -> (Vec<u32>, bool) {
        let mut ids = token_ids(self.setting("suppress_tokens"));
        let mut longer = false;
        for words in self.setting("bad_words_ids").and_then(Value::as_array).into_iter().flatten() {
            match token_ids(Some(words))[..] {
                [id] => ids.push(id),
                _ => longer = true,
            }
        }
        ids.sort_unstable();
        ids.dedup();
        (ids, longer)
    }

    /// Writes down what the file has a place for.
    pub fn fill(&self, info: &mut Info) {
        let vocab = info.vocab;
        let id = |name: &str| token_ids(self.special(name)).first().copied().filter(|i| *i < vocab);
        info.bos = id("bos_token_id").unwrap_or(NONE);
        info.pad = id("pad_token_id").unwrap_or(NONE);
        info.decoder_start = id("decoder_start_token_id").unwrap_or(NONE);
        let mut eos = token_ids(self.special("eos_token_id"));
        eos.retain(|i| *i < vocab);
        info.eos_count = put(&eos, &mut info.eos);
        // Sampling settings count only where the model's authors turned sampling on; else greedy.
        let sampled = |name: &str, off: f64| if self.sampling() { self.number(name).unwrap_or(off) } else { off };
        info.temperature = if self.sampling() { self.number("temperature").unwrap_or(1.0) as f32 } else { 0.0 };
        info.top_p = sampled("top_p", 1.0) as f32;
        info.top_k = sampled("top_k", 0.0) as u32;
        info.repetition_penalty = self.number("repetition_penalty").unwrap_or(1.0) as f32;
        let (mut suppressed, _) = self.suppressed();
        suppressed.retain(|i| *i < vocab);
        info.suppressed_count = put(&suppressed, &mut info.suppressed);
        info.no_repeat_ngram = self.count("no_repeat_ngram_size");
        // The decoder's start token counts towards `min_length`.
        let least = if self.seq2seq { self.count("min_length").saturating_sub(1) } else { 0 };
        info.min_new = self.count("min_new_tokens").max(least);
        if self.seq2seq {
            info.forced_first = id("forced_bos_token_id").map_or(0, |id| id + 1);
        }
    }

    /// What changes answers and is not in the file, by name.
    pub fn left_out(&self) -> Vec<Note> {
        let sampled = if self.sampling() { LEFT_OUT_OF_SAMPLING } else { &[] };
        let on = |(name, off): &&(&str, f64)| {
            self.setting(name).is_some_and(|v| match v {
                Value::Bool(b) => *b,
                Value::Array(list) => !list.is_empty(),
                Value::Object(map) => !map.is_empty(),
                v => v.as_f64() != Some(*off),
            })
        };
        let mut out: Vec<String> = LEFT_OUT
            .iter()
            .chain(sampled)
            .filter(on)
            .map(|(name, _)| {
                let value = self.setting(name).map(Value::to_string).unwrap_or_default();
                let value: String = value.chars().take(60).collect();
                match *name {
                    "num_beams" => format!("num_beams = {value}: only with --beams {value}"),
                    "min_p" => format!("min_p = {value}: only with --min-p {value}"),
                    _ => format!("{name} = {value} is not applied"),
                }
            })
            .collect();
        let (suppressed, longer) = self.suppressed();
        if longer {
            out.push("bad_words_ids: words of several tokens are not forbidden".into());
        }
        if suppressed.len() > Info::SUPPRESSED {
            let most = Info::SUPPRESSED;
            out.push(format!(
                "suppress_tokens, bad_words_ids: {} tokens, only the first {most} are forbidden",
                suppressed.len()
            ));
        }
        if !self.seq2seq && self.count("min_length") > 0 {
            out.push(format!("min_length = {} counts the prompt and is not applied", self.count("min_length")));
        }
        let note = |text| Note { level: Level::Warning, about: "generation settings".into(), text };
        out.into_iter().map(note).collect()
    }
}

fn put(ids: &[u32], places: &mut [u32]) -> u32 {
    let n = ids.len().min(places.len());
    places[..n].copy_from_slice(&ids[..n]);
    n as u32
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(v) => one(v).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use serde_json::json;

    use super::*;

    fn of<'a>(own: &'a Value, config: &'a Value) -> Generation<'a> {
        let seq2seq = config.get("is_encoder_decoder").is_some();
        Generation { own: Some(own), config, seq2seq }
    }

    fn filled(own: Value, config: Value) -> (Info, Vec<String>) {
        let mut info = Info { vocab: 100, ..Info::zeroed() };
        let generation = of(&own, &config);
        generation.fill(&mut info);
        (info, generation.left_out().into_iter().map(|n| n.text).collect())
    }

    #[test]
    fn settings_of_a_translator() {
        let own = json!({
            "bad_words_ids": [[99], [1, 2]], "forced_bos_token_id": 7, "num_beams": 4, "min_length": 5,
            "no_repeat_ngram_size": 3, "eos_token_id": [2, 500], "temperature": 0.5, "forced_eos_token_id": 2
        });
        let (info, left_out) = filled(own, json!({"is_encoder_decoder": true, "decoder_start_token_id": 2}));
        assert_eq!((info.suppressed_count, info.suppressed[0], info.forced_first), (1, 99, 8));
        assert_eq!((info.no_repeat_ngram, info.min_new, info.eos_count, info.decoder_start), (3, 4, 1, 2));
        assert_eq!(info.temperature, 0.0);
        assert_eq!(
            left_out,
            ["num_beams = 4: only with --beams 4", "bad_words_ids: words of several tokens are not forbidden"]
        );
    }

    #[test]
    fn settings_that_are_off_are_no_matter() {
        let own = json!({
            "num_beams": 1, "diversity_penalty": 0.0, "guidance_scale": null, "typical_p": 0.9, "sequence_bias": {},
            "forced_bos_token_id": 3, "suppress_tokens": []
        });
        let (info, left_out) = filled(own, json!({}));
        assert_eq!((left_out, info.forced_first, info.suppressed_count), (vec![], 0, 0));
        let own = json!({"do_sample": true, "typical_p": 0.9, "min_length": 3, "min_new_tokens": 6});
        let (info, left_out) = filled(own, json!({}));
        assert_eq!((info.temperature, info.min_new), (1.0, 6));
        assert_eq!(left_out, ["typical_p = 0.9 is not applied", "min_length = 3 counts the prompt and is not applied"]);
    }
}
