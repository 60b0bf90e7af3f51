//! One small file per family: config → description. No loops over tokens, no arithmetic on weights.

use crate::config::Config;
use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::seq2seq::Seq2Seq;

pub mod bart;
pub mod bert;
pub mod deberta;
pub mod gemma;
pub mod gpt2;
pub mod llama;
pub mod modernbert;
pub mod moe;
pub mod neox;
pub mod parallel;
pub mod t5;

/// How a `model_type` is read.
#[derive(Clone, Copy, Debug)]
pub enum Reader {
    /// As a decoder.
    Decoder(fn(Config<'_>) -> Result<Decoder, ModelError>),
    /// As an encoder.
    Encoder(fn(Config<'_>) -> Result<Encoder, ModelError>),
    /// As an encoder–decoder.
    Seq2Seq(fn(Config<'_>) -> Result<Seq2Seq, ModelError>),
}

/// Every supported `model_type`, sorted.
pub const ARCHITECTURES: &[(&str, Reader)] = &[
    ("albert", Reader::Encoder(bert::albert)),
    ("bart", Reader::Seq2Seq(bart::bart)),
    ("bert", Reader::Encoder(bert::bert)),
    ("bloom", Reader::Decoder(neox::bloom)),
    ("camembert", Reader::Encoder(bert::roberta)),
    ("cohere", Reader::Decoder(parallel::cohere)),
    ("cohere2", Reader::Decoder(parallel::cohere2)),
    ("deberta-v2", Reader::Encoder(deberta::deberta_v2)),
    ("distilbert", Reader::Encoder(bert::distilbert)),
    ("electra", Reader::Encoder(bert::electra)),
    ("falcon", Reader::Decoder(neox::falcon)),
    ("gemma", Reader::Decoder(gemma::gemma)),
    ("gemma2", Reader::Decoder(gemma::gemma2)),
    ("gemma3_text", Reader::Decoder(gemma::gemma3_text)),
    ("glm", Reader::Decoder(llama::glm)),
    ("glm4", Reader::Decoder(llama::glm4)),
    ("gpt2", Reader::Decoder(gpt2::gpt2)),
    ("gpt_neo", Reader::Decoder(gpt2::gpt_neo)),
    ("gpt_neox", Reader::Decoder(neox::gpt_neox)),
    ("gptj", Reader::Decoder(parallel::gptj)),
    ("granite", Reader::Decoder(llama::granite)),
    ("llama", Reader::Decoder(llama::llama)),
    ("marian", Reader::Seq2Seq(bart::marian)),
    ("mbart", Reader::Seq2Seq(bart::mbart)),
    ("mistral", Reader::Decoder(llama::mistral)),
    ("mixtral", Reader::Decoder(moe::mixtral)),
    ("modernbert", Reader::Encoder(modernbert::modernbert)),
    ("mpnet", Reader::Encoder(bert::mpnet)),
    ("mpt", Reader::Decoder(neox::mpt)),
    ("mt5", Reader::Seq2Seq(t5::mt5)),
    ("olmo", Reader::Decoder(parallel::olmo)),
    ("olmo2", Reader::Decoder(llama::olmo2)),
    ("olmoe", Reader::Decoder(moe::olmoe)),
    ("opt", Reader::Decoder(gpt2::opt)),
    ("phi", Reader::Decoder(parallel::phi)),
    ("phi3", Reader::Decoder(llama::phi3)),
    ("qwen2", Reader::Decoder(llama::qwen2)),
    ("qwen2_moe", Reader::Decoder(moe::qwen2_moe)),
    ("qwen3", Reader::Decoder(llama::qwen3)),
    ("qwen3_moe", Reader::Decoder(moe::qwen3_moe)),
    ("roberta", Reader::Encoder(bert::roberta)),
    ("smollm3", Reader::Decoder(llama::smollm3)),
    ("stablelm", Reader::Decoder(parallel::stablelm)),
    ("starcoder2", Reader::Decoder(neox::starcoder2)),
    ("t5", Reader::Seq2Seq(t5::t5)),
    ("xlm-roberta", Reader::Encoder(bert::roberta)),
];
