//! What other tools do with such an adapter: differences that were measured, so that nobody is surprised.
//!
//! About PEFT: its release 0.21.2, run. About llama.cpp: `convert_lora_to_gguf.py`, read; what it writes keeps one alpha for
//! the whole adapter and scales every factor by alpha / rank.

use super::adapter::Adapter;
use super::config::{Bias, Init};
use super::keys::Part;
use super::method::Kind;

/// One sentence for each thing in the adapter that others ignore, refuse or get wrong.
pub(super) fn of(adapter: &Adapter) -> Vec<String> {
    let config = &adapter.config;
    let has = |part: Part| adapter.groups.values().any(|g| g.parts.contains_key(&part));
    let embedding = has(Part::EmbeddingA);
    let mut out = Vec::new();
    let mut say = |applies: bool, text: &str| {
        if applies {
            out.push(text.to_owned());
        }
    };
    if adapter.method.kind != Kind::Lora {
        say(true, "llama.cpp's converter knows plain LoRA only");
        return out;
    }
    say(config.rslora, "llama.cpp's converter ignores use_rslora silently: the scale is too small by sqrt(r)");
    let patterns = !config.alpha_pattern.is_empty();
    say(patterns, "llama.cpp's converter ignores alpha_pattern silently: those modules get another scale");
    say(config.dora, "llama.cpp's converter stops at DoRA magnitudes");
    say(has(Part::BBias) || config.bias != Bias::None, "llama.cpp's converter stops at biases");
    say(!adapter.replaced.is_empty(), "llama.cpp's converter stops at whole tensors: heads, norms, embeddings");
    say(embedding || has(Part::Tokens), "llama.cpp's converter stops at embeddings and token rows");
    say(
        !config.target_parameters.is_empty(),
        "llama.cpp's converter does not know factors of bare parameters (experts)",
    );
    let tied = embedding || adapter.groups.keys().any(|(m, _)| m.ends_with("lm_head"));
    say(tied, "over a tied model, PEFT's own merge changes both embeddings, or one of them twice");
    say(config.layer_replication.is_some(), "PEFT's own merge adds the deltas of all copies to the one shared layer");
    say(
        config.invocation_tokens.is_some(),
        "tools that merge it, or run it on the whole prompt, change what it was trained for",
    );
    let mutating = matches!(config.init, Init::Pissa | Init::Olora);
    say(mutating, "tools that add it to the published base without taking the start off first give another model");
    let lost = matches!(config.init, Init::Lost(_));
    say(lost, "PEFT loads it over the published base without a word, though training had changed that base");
    say(config.qalora.is_some(), "PEFT ignores use_qalora on float layers");
    out
}
