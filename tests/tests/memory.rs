//! What the tools promise about memory: opening a model and generating tokens allocate nothing, generating makes no system
//! call, and a run takes the file, the planned arena and little more.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use conformance::data;
use conformance::desk::Desk;
use conformance::real::pack;
use lora_runtime::format::EntryKind;
use lora_runtime::kernels::Kernels;
use lora_runtime::map::Mapping;
use lora_runtime::program::{AdapterNeeds, SessionConfig};
use lora_runtime::session::workers::Workers;
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Model, Segment, Session, Step};

/// Counts every byte that is asked for.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's, with the caller's arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's conditions are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whatever thread asks, nothing is allocated between the first tokens and the last.
fn generating_allocates_nothing(model: Model<'_>, threads: usize) {
    let config = SessionConfig {
        context: 64,
        tokens: 8,
        outputs: 1,
        source: 0,
        sequences: 1,
        adapters: AdapterNeeds::NONE,
        kv: model.kv_type(),
    };
    let pool = Pool::new(threads).expect("threads");
    // A thread that starts late allocates its name: one task for each, none of which ends before all have begun.
    let begun = Barrier::new(threads);
    pool.run(threads, &|_| {
        begun.wait();
    });
    let mut arena = ArenaBox::new(usize::try_from(model.plan(&config).arena_bytes).expect("fits"));
    let mut session = Session::new(model, config, Kernels::best(), &pool, arena.as_mut_slice()).expect("a session");
    let mut step = |past: u32, tokens: &[u32]| {
        let len = tokens.len() as u32;
        let segments = [Segment { sequence: 0, past, len }];
        let step = Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
        session.run(EntryKind::Decode, &step).expect("runs");
    };
    step(0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    step(8, &[9]);
    let before = ALLOCATED.load(Ordering::Relaxed);
    step(9, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for past in 17..64 {
        step(past, &[past]);
    }
    assert_eq!(ALLOCATED.load(Ordering::Relaxed) - before, 0, "{threads} threads: generating allocated");
}

/// As many system calls for 16 tokens as for 112.
fn generating_makes_no_system_call(desk: &Desk, lpk: &Path) {
    let calls = |tokens: &str| -> Option<u64> {
        let log = desk.path("strace.txt");
        let bench = desk.run("bench", lpk).args(["-p", "0", "-n", tokens, "-r", "1", "--threads", "1"]);
        let traced = bench.under("strace", &["-c", "-U", "calls,name", "-o", &log.to_string_lossy()]).run();
        if !traced.is_ok_and(|finished| finished.code == Some(0)) {
            return None;
        }
        let text = std::fs::read_to_string(log).ok()?;
        text.lines().rfind(|l| l.ends_with("total"))?.split_whitespace().next()?.parse().ok()
    };
    match (calls("16"), calls("112")) {
        (Some(few), Some(many)) => assert_eq!(few, many, "system calls of 16 and of 112 tokens"),
        _ => conformance::say("SKIP system calls: no strace that may trace"),
    }
}

/// Beyond file and arena: the program itself, its stacks, the answer.
const OVERHEAD: u64 = 8 << 20;

/// `plan --target` adds to the plan a speed and, for firmware, what code and stack take.
fn speed_is_estimated(desk: &Desk, lpk: &Path, plan: &serde_json::Value, quant: &str) {
    let call = |options: &[&str]| {
        let call = desk.pack("plan").arg(lpk).args(["--ctx", "256", "--batch", "128", "--json"]).args(options);
        desk.json_object(&call).unwrap_or_else(|miss| panic!("{miss:?}"))
    };
    let number = |plan: &serde_json::Value, key: &str| plan[key].as_f64().unwrap_or_else(|| panic!("{key}: {plan}"));
    let board = call(&["--target", "cortex-m4", "--clock", "200"]);
    assert_eq!(board["arena_bytes"], plan["arena_bytes"]);
    assert!(number(&board, "code_bytes") > 0.0 && number(&board, "stack_bytes") > 0.0);
    let (cycles, speed) = (number(&board, "cycles_per_token"), number(&board, "tokens_per_second"));
    assert_eq!(number(&board, "instructions_per_token"), cycles);
    // 5.8 million weights.
    assert!((1e7..5e8).contains(&cycles), "{board}");
    assert!((speed * cycles / 2e8 - 1.0).abs() < 1e-6, "{board}");

    let [old, new] = ["cortex-a53", "cortex-a76"].map(|cpu| call(&["--target", cpu, "--clock", "1500"]));
    assert!(old.get("code_bytes").is_none(), "{old}");
    assert!(number(&new, "cycles_per_token") < number(&old, "cycles_per_token"), "{quant}: {new}");
    assert!(number(&old, "cycles_per_token") < cycles, "{quant}: {old}");
    // All matrices once, and no faster than memory.
    let bytes = number(&new, "weight_bytes_per_token");
    assert!((0.5..1.0).contains(&(bytes / number(plan, "flash_bytes"))), "{new}");
    let slow = call(&["--target", "cortex-a76", "--clock", "1500", "--bandwidth", "0.001"]);
    assert!((number(&slow, "tokens_per_second") * bytes / 1e6 - 1.0).abs() < 1e-6, "{slow}");
    let fast = call(&["--target", "cortex-a76", "--clock", "1500", "--bandwidth", "1000"]);
    assert_eq!(fast["tokens_per_second"], new["tokens_per_second"]);
}

#[test]
fn opening_allocates_nothing_and_a_run_takes_what_was_planned() {
    let demo = data::workspace().join("models/demo");
    let desk = Desk::new(&demo).expect("a temporary folder");
    for quant in ["f32", "q4"] {
        let options = ["--quant".to_owned(), quant.to_owned()];
        let lpk = pack(&desk, &demo.join("tiny-base"), Some(&demo.join("tiny-home-control")), &options)
            .unwrap_or_else(|miss| panic!("{quant}: {miss:?}"));

        let mapping = Mapping::open(&lpk).expect("the pack opens");
        let before = ALLOCATED.load(Ordering::Relaxed);
        let model = Model::open(&mapping).expect("the pack is sound");
        let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
        assert_eq!(allocated, 0, "{quant}: opening allocated");
        assert!(model.tokenizer().is_ok());
        for threads in [1, 3] {
            generating_allocates_nothing(model, threads);
        }
        generating_makes_no_system_call(&desk, &lpk);

        let plan = desk.pack("plan").arg(&lpk).args(["--ctx", "256", "--batch", "128", "--json"]);
        let plan = desk.json_object(&plan).unwrap_or_else(|miss| panic!("{miss:?}"));
        speed_is_estimated(&desk, &lpk, &plan, quant);
        let planned = plan["flash_bytes"].as_u64().unwrap() + plan["arena_bytes"].as_u64().unwrap();
        for threads in ["1", "2"] {
            let call =
                desk.run("generate", &lpk).args(["-p", "<|user|>turn on the light<|end|><|assistant|>", "-n", "16"]);
            let call = call.args(["--temp", "0", "--ctx", "256", "--threads", threads, "--json"]);
            let answer = desk.json_object(&call).unwrap_or_else(|miss| panic!("{miss:?}"));
            let peak = answer["rss_bytes"].as_u64().expect("rss_bytes");
            conformance::say(&format!(
                "{quant}, {threads} threads: peak {:.1} MB, file and plan {:.1} MB",
                peak as f64 / 1e6,
                planned as f64 / 1e6
            ));
            assert!(peak <= planned + OVERHEAD, "{quant}: peak {peak}, file and plan {planned}");
        }
    }
}
