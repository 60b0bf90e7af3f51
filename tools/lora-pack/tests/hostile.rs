//! Every byte of a packed file is damaged in turn: opening gives a typed error or a model that still runs. No panic, no hang,
//! no access outside the file (the arena is exact, so an overrun would show under a sanitizer too).

mod common;

use common::{aligned, tiny_llama};
use lora_runtime::format::{EntryKind, FileKind, Header};
use lora_runtime::kernels::{Kernels, KvType};
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::session::workers::Inline;
use lora_runtime::threads::ArenaBox;
use lora_runtime::tokenizer::EncodeOptions;
use lora_runtime::weights::WeightFormat;
use lora_runtime::{ErrorKind, Model, Segment, Session, Step};

/// Arenas beyond this are not allocated: the plan said how much it would be, which is all a caller needs.
const MAX_ARENA: u64 = 16 << 20;

/// Opens and, if that works, runs a step. Gives whether it opened.
fn open_and_run(bytes: &[u8]) -> bool {
    let Ok(model) = Model::open(bytes) else { return false };
    let config = SessionConfig {
        context: 16,
        tokens: 3,
        outputs: 1,
        source: 0,
        sequences: 1,
        kv: KvType::I8,
        adapters: AdapterNeeds::NONE,
    };
    let plan = model.plan(&config);
    if plan.arena_bytes > MAX_ARENA {
        return true;
    }
    let mut arena = ArenaBox::new(plan.arena_bytes as usize);
    let arena = &mut arena.as_mut_slice()[..plan.arena_bytes as usize];
    let Ok(mut session) = Session::new(model, config, Kernels::best(), &Inline, arena) else { return true };
    let step = Step {
        tokens: &[1, 2, 3],
        token_types: &[],
        segments: &[Segment { sequence: 0, past: 0, len: 3 }],
        outputs: &[2],
    };
    for entry in [EntryKind::Decode, EntryKind::Encode] {
        if session.run(entry, &step).is_ok()
            && let Ok(rows) = session.output(entry, "logits")
        {
            assert!(!rows.is_empty());
        }
    }
    if let Ok(tokenizer) = model.tokenizer() {
        let _ = tokenizer.encode("a b1\u{e9} \u{1f600}<s>", EncodeOptions::default());
        let _ = tokenizer.decode(&[0, 5, 9, 11], false);
    }
    true
}

#[test]
fn every_byte_flip_is_an_error_or_another_number() {
    for format in [WeightFormat::Q4, WeightFormat::F32] {
        let file = tiny_llama(format);
        let mut buffer = aligned(&file);
        assert!(open_and_run(buffer.bytes()));
        let header: Header = bytemuck::pod_read_unaligned(&file[..128]);
        assert_eq!(header.kind, FileKind::Model as u32);
        let (mut refused, mut ran) = (0, 0);
        for i in 0..file.len() {
            // Weights are only numbers: a sample of them is enough. Tables and header: every byte.
            let in_weights = (4096..common::tables_start(&file)).contains(&i);
            if in_weights && i % 97 != 0 {
                continue;
            }
            for mask in [0x01_u8, 0x80, 0xff] {
                buffer.bytes_mut()[i] ^= mask;
                if open_and_run(buffer.bytes()) {
                    ran += 1
                } else {
                    refused += 1
                }
                buffer.bytes_mut()[i] ^= mask;
            }
        }
        eprintln!("{}: {refused} damaged files refused, {ran} gave numbers", format.name());
        assert!(refused > 1000, "the verifier notices damage to the tables");
    }
}

#[test]
fn every_truncation_is_refused() {
    let file = tiny_llama(WeightFormat::Q8);
    let buffer = aligned(&file);
    for len in 0..file.len() {
        let error = Model::open(&buffer.bytes()[..len]).err().expect("a truncated file is refused");
        assert!(matches!(error.kind, ErrorKind::Truncated | ErrorKind::NotLpk), "{len}: {error}");
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(Model::open(aligned(&longer).bytes()).is_err());
}

#[test]
fn an_arena_one_byte_short_is_refused() {
    let file = tiny_llama(WeightFormat::Q8);
    let buffer = aligned(&file);
    let model = Model::open(buffer.bytes()).unwrap();
    for (context, tokens) in [(1, 1), (16, 4), (33, 7), (64, 64)] {
        let config = SessionConfig {
            context,
            tokens,
            outputs: 1,
            source: 0,
            sequences: 1,
            kv: KvType::I8,
            adapters: AdapterNeeds::NONE,
        };
        let need = model.plan(&config).arena_bytes as usize;
        let mut arena = ArenaBox::new(need);
        let exact = &mut arena.as_mut_slice()[..need];
        let error = Session::new(model, config, Kernels::best(), &Inline, &mut exact[..need - 1]).err().unwrap();
        assert_eq!((error.kind, error.found, error.expected), (ErrorKind::TooSmall, need as u64 - 1, need as u64));
        assert!(Session::new(model, config, Kernels::best(), &Inline, exact).is_ok());
    }
}
