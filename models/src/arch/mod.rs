//! One small file per family: config → description. No loops over tokens, no arithmetic on weights.

use crate::config::Config;
use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::ModelError;

pub mod bert;
pub mod gemma;
pub mod gpt2;
pub mod llama;
pub mod neox;

/// How a `model_type` is read.
#[derive(Clone, Copy, Debug)]
pub enum Reader {
    /// As a decoder.
    Decoder(fn(Config<'_>) -> Result<Decoder, ModelError>),
    /// As an encoder.
    Encoder(fn(Config<'_>) -> Result<Encoder, ModelError>),
}

/// Every supported `model_type`, sorted.
pub const ARCHITECTURES: &[(&str, Reader)] = &[
    ("bert", Reader::Encoder(bert::bert)),
    ("bloom", Reader::Decoder(neox::bloom)),
    ("falcon", Reader::Decoder(neox::falcon)),
    ("gemma", Reader::Decoder(gemma::gemma)),
    ("gemma2", Reader::Decoder(gemma::gemma2)),
    ("gemma3_text", Reader::Decoder(gemma::gemma3_text)),
    ("gpt2", Reader::Decoder(gpt2::gpt2)),
    ("gpt_neox", Reader::Decoder(neox::gpt_neox)),
    ("granite", Reader::Decoder(llama::granite)),
    ("llama", Reader::Decoder(llama::llama)),
    ("mistral", Reader::Decoder(llama::mistral)),
    ("olmo2", Reader::Decoder(llama::olmo2)),
    ("opt", Reader::Decoder(gpt2::opt)),
    ("phi3", Reader::Decoder(llama::phi3)),
    ("qwen2", Reader::Decoder(llama::qwen2)),
    ("qwen3", Reader::Decoder(llama::qwen3)),
    ("smollm3", Reader::Decoder(llama::smollm3)),
    ("starcoder2", Reader::Decoder(neox::starcoder2)),
];
