//! Every block type against gguf-py's `dequantize` (see `tests/data/make_gguf_blocks.py`), to the bit.

use lora_pack::source::Dtype;

use crate::kit::{Gguf, Tensor};

fn take<'a>(at: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = at.split_at(n);
    *at = rest;
    taken
}

fn count(at: &mut &[u8]) -> usize {
    u32::from_le_bytes(take(at, 4).try_into().unwrap()) as usize
}

#[test]
fn values_are_those_of_gguf_py() {
    let dtypes = [
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Q8_0,
        Dtype::Q2K,
        Dtype::Q3K,
        Dtype::Q4K,
        Dtype::Q5K,
        Dtype::Q6K,
        Dtype::IQ4NL,
    ];
    let data: &[u8] = include_bytes!("../data/gguf_blocks.bin");
    let mut at = data;
    for dtype in dtypes {
        let name = String::from_utf8(take(&mut at, 8).to_vec()).unwrap();
        assert_eq!(name.trim_end_matches('\0'), dtype.name());
        let (blocks, size, elements) = (count(&mut at), count(&mut at), count(&mut at));
        assert_eq!((size, elements), (dtype.size(), dtype.block()));
        let bytes = take(&mut at, blocks * size).to_vec();
        let want = take(&mut at, blocks * elements * 4);
        // As the embedding of a model: rows are not moved.
        let mut gguf = Gguf::llama();
        gguf.set("token_embd.weight", Tensor { dtype, shape: vec![blocks, elements], bytes });
        let base = gguf.open().unwrap();
        let got = base.read_f32("model.embed_tokens.weight").unwrap();
        let want: Vec<f32> = want.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(got.len(), want.len());
        let differ = got.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits() && **a != **b).count();
        assert_eq!(differ, 0, "{}", dtype.name());
    }
    assert!(at.is_empty());
}
