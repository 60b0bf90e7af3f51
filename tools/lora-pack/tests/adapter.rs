//! Adapters beside a base: mixed steps, caches, switching, and files that do not fit or are damaged.

#[path = "common/adapters.rs"]
mod adapters;
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use adapters::{KINDS, Kind, adapter};
use common::{Aligned, aligned, tiny_llama};
use lora_runtime::format::{Bundle, EntryKind};
use lora_runtime::kernels::{Kernels, KvType};
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::session::workers::{Inline, Workers};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::weights::WeightFormat;
use lora_runtime::{Active, Adapter, ErrorKind, Model, Segment, Session, Set, Step};

/// Counts this thread's allocations.
struct Counting;

thread_local! { static ALLOCATIONS: Cell<u64> = const { Cell::new(0) }; }

// SAFETY: passes everything on to the system's allocator.
#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn config(sequences: u32, tokens: u32, adapters: AdapterNeeds) -> SessionConfig {
    SessionConfig { context: 32, tokens, outputs: 8, source: 0, sequences, kv: KvType::F16, adapters }
}

/// The logits' bits of the requested rows.
fn bits(session: &Session<'_>) -> Vec<Vec<u32>> {
    let rows = session.output(EntryKind::Decode, "logits").unwrap();
    (0..rows.len()).map(|i| rows.row(i).iter().map(|x| x.to_bits()).collect()).collect()
}

/// A prompt, then one token, of sequence 0 alone; the logits of both steps' last rows.
fn alone(model: Model<'_>, set: Set<'_>, workers: &dyn Workers, prompt: &[u32], next: u32) -> [Vec<u32>; 2] {
    let config = config(1, 16, set.needs());
    let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
    let mut session = Session::new(model, config, Kernels::best(), workers, arena.as_mut_slice()).unwrap();
    session.select(set).unwrap();
    let mut step = |tokens: &[u32], past: u32| {
        let len = tokens.len() as u32;
        let segments = [Segment { sequence: 0, past, len }];
        let step = Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
        session.run(EntryKind::Decode, &step).unwrap();
        bits(&session).remove(0)
    };
    [step(prompt, 0), step(&[next], prompt.len() as u32)]
}

#[test]
fn segments_with_different_adapters_get_the_bits_that_they_get_alone() {
    let pool = Pool::new(3).unwrap();
    for (base, factors) in [
        (WeightFormat::F32, WeightFormat::F32),
        (WeightFormat::Q8, WeightFormat::Q8),
        (WeightFormat::Q4, WeightFormat::F16),
        (WeightFormat::F32, WeightFormat::Q8),
    ] {
        let file = tiny_llama(base);
        let file = aligned(&file);
        let model = Model::open(file.bytes()).unwrap();
        let kinds = [Kind::Plain, Kind::Dora, Kind::Norm, Kind::Tokens, Kind::Embedding, Kind::Activated];
        let files: Vec<Aligned> = kinds.iter().enumerate().map(|(i, k)| adapter(*k, i as u64, factors)).collect();
        let list: Vec<Adapter<'_>> = files.iter().map(|f| Adapter::attach(&model, f.bytes()).unwrap()).collect();
        let half = Active { weight: 0.5, ..Active::new(&list[0]) };
        let late = Active { from: 3, ..Active::new(&list[5]) };
        let sets = [
            Set::new(&[Active::new(&list[0])]).unwrap(),
            Set::BASE,
            Set::new(&[half, Active::new(&list[1]), Active::new(&list[2])]).unwrap(),
            Set::new(&[Active::new(&list[3])]).unwrap(),
            Set::new(&[Active::new(&list[4])]).unwrap(),
            Set::new(&[late]).unwrap(),
            Set::new(&[Active::new(&list[1])]).unwrap(),
        ];
        let prompts: [&[u32]; 7] =
            [&[1, 3, 7, 9, 11], &[1, 3, 7], &[4, 40, 3, 7, 2, 47, 8], &[3, 7, 3], &[9, 8], &[1, 2, 3, 4, 5, 6], &[1]];
        let needs = sets.iter().fold(AdapterNeeds::NONE, |n, s| n.or(s.needs()));
        let config = config(7, 64, needs);
        let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
        let mut session = Session::new(model, config, Kernels::best(), &pool, arena.as_mut_slice()).unwrap();
        let tokens: Vec<u32> = prompts.concat();
        let (mut segments, mut outputs, mut end) = (Vec::new(), Vec::new(), 0);
        for (i, p) in prompts.iter().enumerate() {
            segments.push(Segment { sequence: i as u32, past: 0, len: p.len() as u32 });
            end += p.len() as u32;
            outputs.push(end - 1);
        }
        let step = Step { tokens: &tokens, token_types: &[], segments: &segments, outputs: &outputs };
        session.run_with(EntryKind::Decode, &step, &sets).unwrap();
        let together = bits(&session);
        for (s, p) in segments.iter_mut().zip(prompts) {
            (s.past, s.len) = (p.len() as u32, 1);
        }
        let next = [7, 7, 7, 7, 7, 7, 7];
        let step = Step { tokens: &next, token_types: &[], segments: &segments, outputs: &[0, 1, 2, 3, 4, 5, 6] };
        session.run_with(EntryKind::Decode, &step, &sets).unwrap();
        let after = bits(&session);
        let mut different = std::collections::BTreeSet::new();
        for (i, set) in sets.iter().enumerate() {
            let [first, second] = alone(model, *set, &Inline, prompts[i], 7);
            assert_eq!(together[i], first, "{} on {}: prompt of sequence {i}", factors.name(), base.name());
            assert_eq!(after[i], second, "{} on {}: next token of sequence {i}", factors.name(), base.name());
            different.insert(alone(model, *set, &Inline, &[3, 7, 3, 9], 7));
        }
        assert_eq!(different.len(), sets.len(), "every set has an effect of its own");
    }
}

/// In a 4-bit pack the values are a tensor of their own, but share the stack of A with queries and keys.
#[test]
fn slots_in_several_tensors_take_their_part_of_a_stack() {
    for (base, factors) in [
        (WeightFormat::F32, WeightFormat::F32),
        (WeightFormat::Q4, WeightFormat::F32),
        (WeightFormat::Q4, WeightFormat::Q8),
        (WeightFormat::Q8, WeightFormat::Q8),
    ] {
        let file = aligned(&tiny_llama(base));
        let model = Model::open(file.bytes()).unwrap();
        let files = [(0, 3), (0, 2), (2, 3)].map(|(from, to)| adapter(Kind::Attention(from, to), 5, factors));
        let [all, first, rest] = files.each_ref().map(|f| Adapter::attach(&model, f.bytes()).unwrap());
        assert_eq!((all.needs().rank, first.needs().rank, rest.needs().rank), (64, 48, 32));
        let together = Set::new(&[Active::new(&all)]).unwrap();
        let apart = Set::new(&[Active::new(&first), Active::new(&rest)]).unwrap();
        let run = |set| alone(model, set, &Inline, &[4, 40, 3, 7, 2, 47, 8], 7);
        assert_eq!(run(together), run(apart), "{} on {}", factors.name(), base.name());
        assert_ne!(run(together), run(Set::new(&[Active::new(&first)]).unwrap()));
        assert_ne!(run(together), run(Set::BASE));
    }
}

#[test]
fn an_activated_adapter_shares_the_base_up_to_its_invocation() {
    let file = aligned(&tiny_llama(WeightFormat::Q8));
    let model = Model::open(file.bytes()).unwrap();
    let own = adapter(Kind::Activated, 1, WeightFormat::Q8);
    let other = adapter(Kind::Plain, 2, WeightFormat::Q8);
    let (own, other) = (Adapter::attach(&model, own.bytes()).unwrap(), Adapter::attach(&model, other.bytes()).unwrap());
    assert_eq!(own.invocation(), [5, 6]);
    assert_eq!(own.acts_from(&[5, 6, 1, 5, 6, 2]), Some(3));
    assert_eq!((own.acts_from(&[5, 1, 6]), own.acts_from(&[])), (None, None));
    let prompt = [1, 9, 4, 5, 6, 2];
    let set = Set::new(&[Active::new(&own)]).unwrap().for_prompt(&prompt);
    let [expected, _] = alone(model, set, &Inline, &prompt, 7);

    let config = config(1, 16, own.needs().or(other.needs()));
    let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
    let mut session = Session::new(model, config, Kernels::best(), &Inline, arena.as_mut_slice()).unwrap();
    let mut run = |set, past: u32, tokens: &[u32]| {
        let segments = [Segment { sequence: 0, past, len: tokens.len() as u32 }];
        let outputs = [tokens.len() as u32 - 1];
        let step = Step { tokens, token_types: &[], segments: &segments, outputs: &outputs };
        session.run_with(EntryKind::Decode, &step, &[set]).map(|()| bits(&session).remove(0)).map_err(|e| e.kind)
    };
    // The base reads the prefix, the adapter goes on.
    run(Set::BASE, 0, &prompt[..3]).unwrap();
    assert_eq!(run(set, 3, &prompt[3..]).unwrap(), expected);
    // Back to the end of the base's part, and on with the base or another text.
    let base = run(Set::BASE, 2, &[4, 5]).unwrap();
    assert_ne!(base, expected);
    assert_eq!(run(set, 3, &prompt[3..]).unwrap(), expected);
    // What the adapter computed is nobody else's.
    let plain = Set::new(&[Active::new(&other)]).unwrap();
    for set in [Set::BASE, plain, Set::new(&[Active { weight: 0.5, ..Active::new(&own) }]).unwrap()] {
        assert_eq!(run(set, 6, &[7]), Err(ErrorKind::Mismatch));
    }
    assert_eq!(run(plain, 2, &[7]), Err(ErrorKind::Mismatch), "a base's past is not the other adapter's");
    run(set, 6, &[7]).unwrap();
    run(plain, 0, &[7]).unwrap();
}

#[test]
fn a_head_of_its_own_takes_the_place_of_the_base_s() {
    let file = aligned(&tiny_llama(WeightFormat::Q8));
    let base = Model::open(file.bytes()).unwrap();
    let (own, plain) = (adapter(Kind::Classifier, 1, WeightFormat::F32), adapter(Kind::Plain, 2, WeightFormat::Q8));
    let (own, plain) = (Adapter::attach(&base, own.bytes()).unwrap(), Adapter::attach(&base, plain.bytes()).unwrap());
    let model = base.with_adapter(&own);
    let entry = model.entry(EntryKind::Decode).unwrap();
    let outputs: Vec<_> = model.outputs(entry).iter().map(|o| (model.output_name(entry, o), o.width)).collect();
    assert_eq!(outputs, [("logits", 5)]);
    assert_eq!(model.task().name(), "SEQ_CLS");
    let config = config(2, 8, own.needs().or(plain.needs()));
    let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
    let mut session = Session::new(model, config, Kernels::best(), &Inline, arena.as_mut_slice()).unwrap();
    session.select(Set::new(&[Active::new(&own)]).unwrap()).unwrap();
    let segments = [Segment { sequence: 0, past: 0, len: 3 }];
    let step = Step { tokens: &[1, 2, 3], token_types: &[], segments: &segments, outputs: &[2] };
    session.run(EntryKind::Decode, &step).unwrap();
    assert_eq!(bits(&session)[0].len(), 5);
    session.run_with(EntryKind::Decode, &step, &[Set::BASE]).unwrap();
    assert_eq!(bits(&session)[0].len(), 48);
    let both = [Segment { sequence: 0, past: 0, len: 2 }, Segment { sequence: 1, past: 0, len: 1 }];
    let step = Step { tokens: &[1, 2, 3], token_types: &[], segments: &both, outputs: &[2] };
    let sets = [Set::new(&[Active::new(&own)]).unwrap(), Set::new(&[Active::new(&plain)]).unwrap()];
    assert_eq!(session.run_with(EntryKind::Decode, &step, &sets).unwrap_err().kind, ErrorKind::Mismatch);
    let clash = Set::new(&[Active::new(&own), Active::new(&plain)]).err().unwrap();
    assert_eq!(clash.kind, ErrorKind::Mismatch);
}

#[test]
fn what_does_not_fit_is_refused() {
    let file = aligned(&tiny_llama(WeightFormat::F32));
    let model = Model::open(file.bytes()).unwrap();
    let (plain, dora) = (adapter(Kind::Plain, 1, WeightFormat::F32), adapter(Kind::Dora, 1, WeightFormat::F32));
    let attached = Adapter::attach(&model, plain.bytes()).unwrap();
    assert_eq!(Adapter::attach(&model, file.bytes()).err().unwrap().kind, ErrorKind::Mismatch);
    assert_eq!(Model::open(plain.bytes()).err().unwrap().kind, ErrorKind::Mismatch);
    // Another base: one bit of the fingerprint.
    let mut other = aligned(plain.bytes());
    other.bytes_mut()[72] ^= 1;
    assert_eq!(Adapter::attach(&model, other.bytes()).err().unwrap().kind, ErrorKind::Mismatch);
    // Weights.
    let dora = Adapter::attach(&model, dora.bytes()).unwrap();
    let weighted = |a, weight| Set::new(&[Active { weight, ..Active::new(a) }]).err().map(|e| e.kind);
    assert_eq!(weighted(&attached, 0.3), None);
    assert_eq!(weighted(&attached, f32::NAN), Some(ErrorKind::Invalid));
    assert_eq!(weighted(&dora, 0.3), Some(ErrorKind::Mismatch));
    assert_eq!(Set::new(&[Active::new(&attached); 5]).err().unwrap().kind, ErrorKind::Capacity);
    // A session that was planned for less, and an arena that is one byte short.
    let set = Set::new(&[Active::new(&attached)]).unwrap();
    for needs in [AdapterNeeds::NONE, AdapterNeeds { rank: set.needs().rank - 16, ..set.needs() }] {
        let config = config(1, 4, needs);
        let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
        let mut session = Session::new(model, config, Kernels::best(), &Inline, arena.as_mut_slice()).unwrap();
        assert_eq!(session.select(set).unwrap_err().kind, ErrorKind::Capacity);
    }
    let config = config(1, 4, set.needs());
    let need = model.plan(&config).arena_bytes as usize;
    let mut arena = ArenaBox::new(need);
    let short = &mut arena.as_mut_slice()[..need - 1];
    assert_eq!(Session::new(model, config, Kernels::best(), &Inline, short).err().unwrap().kind, ErrorKind::TooSmall);
}

#[test]
fn a_hundred_adapters_switch_without_an_allocation() {
    let file = aligned(&tiny_llama(WeightFormat::Q4));
    let model = Model::open(file.bytes()).unwrap();
    let files: Vec<Aligned> = (0..100).map(|i| adapter(Kind::Plain, i, WeightFormat::Q8)).collect();
    let list: Vec<Adapter<'_>> = files.iter().map(|f| Adapter::attach(&model, f.bytes()).unwrap()).collect();
    let needs = list.iter().fold(AdapterNeeds::NONE, |n, a| n.or(a.needs()));
    let config = config(1, 4, needs);
    let mut arena = ArenaBox::new(model.plan(&config).arena_bytes as usize);
    let mut session = Session::new(model, config, Kernels::best(), &Inline, arena.as_mut_slice()).unwrap();
    let before = ALLOCATIONS.with(Cell::get);
    let mut last = [0_u32; 4];
    for (i, a) in list.iter().enumerate() {
        session.select(Set::new(&[Active::new(a)]).unwrap()).unwrap();
        let segments = [Segment { sequence: 0, past: 0, len: 2 }];
        let step = Step { tokens: &[1, 2], token_types: &[], segments: &segments, outputs: &[1] };
        session.run(EntryKind::Decode, &step).unwrap();
        let rows = session.output(EntryKind::Decode, "logits").unwrap();
        let now = [0, 1, 2, 3].map(|j| rows.row(0)[j].to_bits());
        assert_ne!(now, last, "adapter {i} has an effect of its own");
        last = now;
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), before);
}

/// Attaches and, if that works, runs a step. Gives whether it attached.
fn attach_and_run(model: Model<'_>, bytes: &[u8], arena: &mut ArenaBox) -> bool {
    let Ok(a) = Adapter::attach(&model, bytes) else { return false };
    let Ok(set) = Set::new(&[Active::new(&a)]) else { return true };
    let (_, _) = (a.name().len(), a.acts_from(&[1, 5, 6]));
    let config = config(1, 3, a.needs());
    let need = model.plan(&config).arena_bytes as usize;
    if need > arena.as_mut_slice().len() {
        return true;
    }
    let seen = model.with_adapter(&a);
    let memory = &mut arena.as_mut_slice()[..need];
    let Ok(mut session) = Session::new(seen, config, Kernels::best(), &Inline, memory) else { return true };
    let segments = [Segment { sequence: 0, past: 0, len: 3 }];
    let step = Step { tokens: &[1, 3, 7], token_types: &[], segments: &segments, outputs: &[2] };
    if session.select(set.for_prompt(&[5, 6, 7])).is_ok() && session.run(EntryKind::Decode, &step).is_ok() {
        let entry = seen.entry(EntryKind::Decode).unwrap();
        for o in seen.outputs(entry) {
            let _ = session.output(EntryKind::Decode, seen.output_name(entry, o)).map(|rows| rows.len());
        }
    }
    true
}

#[test]
fn every_damaged_adapter_is_an_error_or_another_number() {
    let file = aligned(&tiny_llama(WeightFormat::Q8));
    let model = Model::open(file.bytes()).unwrap();
    let mut arena = ArenaBox::new(1 << 20);
    for (kind, format) in KINDS.into_iter().zip([WeightFormat::Q8, WeightFormat::F16].into_iter().cycle()) {
        let mut buffer = adapter(kind, 1, format);
        assert!(attach_and_run(model, buffer.bytes(), &mut arena));
        let (mut refused, mut ran) = (0, 0);
        let tables = common::tables_start(buffer.bytes());
        let len = buffer.bytes().len();
        for i in 0..len {
            if (4096..tables).contains(&i) && i % 97 != 0 {
                continue;
            }
            for mask in [0x01_u8, 0x80, 0xff] {
                buffer.bytes_mut()[i] ^= mask;
                if attach_and_run(model, buffer.bytes(), &mut arena) {
                    ran += 1
                } else {
                    refused += 1
                }
                buffer.bytes_mut()[i] ^= mask;
            }
        }
        eprintln!("{kind:?}: {refused} damaged files refused, {ran} gave numbers");
        assert!(refused > 1000, "the verifier notices damage to the tables");
        for cut in (0..len).step_by(7) {
            assert!(Adapter::attach(&model, &buffer.bytes()[..cut]).is_err(), "{cut}");
        }
    }
}

#[test]
fn a_bundle_holds_its_files_and_survives_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("base.lpk"), tiny_llama(WeightFormat::Q8)).unwrap();
    for (name, kind) in [("b", Kind::Plain), ("a", Kind::Classifier)] {
        std::fs::write(path(&format!("{name}.lpk")), adapter(kind, 1, WeightFormat::Q8).bytes()).unwrap();
    }
    let adapters = [path("b.lpk"), path("a.lpk")];
    lora_pack::bundle::bundle(&path("base.lpk"), &adapters, &path("all.lpk")).unwrap();
    let twice = [path("b.lpk"), path("b.lpk")];
    assert!(lora_pack::bundle::bundle(&path("base.lpk"), &twice, &path("x.lpk")).is_err() && !path("x.lpk").exists());
    let mut buffer = aligned(&std::fs::read(path("all.lpk")).unwrap());
    let bundle = Bundle::open(buffer.bytes()).unwrap();
    let names: Vec<&str> = bundle.adapters().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((bundle.adapter("c"), bundle.base()), (None, &tiny_llama(WeightFormat::Q8)[..]));
    let model = Model::open(buffer.bytes()).unwrap();
    Adapter::attach(&model, bundle.adapter("b").unwrap()).unwrap();
    lora_pack::bundle::unbundle(&path("all.lpk"), &path("parts")).unwrap();
    for name in ["base.lpk", "a.lpk", "b.lpk"] {
        assert_eq!(std::fs::read(path("parts").join(name)).unwrap(), std::fs::read(path(name)).unwrap());
    }
    assert!(lora_pack::bundle::unbundle(&path("all.lpk"), &path("parts")).is_err());

    let tables = common::tables_start(buffer.bytes());
    for i in (0..4096).chain(tables..buffer.bytes().len()) {
        for mask in [0x01_u8, 0x80, 0xff] {
            buffer.bytes_mut()[i] ^= mask;
            if let (Ok(bundle), Ok(model)) = (Bundle::open(buffer.bytes()), Model::open(buffer.bytes())) {
                for (_, bytes) in bundle.adapters() {
                    let _ = Adapter::attach(&model, bytes).map(|a| a.needs());
                }
            }
            buffer.bytes_mut()[i] ^= mask;
        }
    }
    for cut in (0..buffer.bytes().len()).step_by(31) {
        assert!(Bundle::open(&buffer.bytes()[..cut]).is_err());
    }
}
