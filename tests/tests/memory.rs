//! What the tools promise about memory: opening a model allocates next to nothing, and a run takes the file, the planned
//! arena and little more.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use conformance::data;
use conformance::desk::Desk;
use conformance::real::pack;
use lora_runtime::Model;
use lora_runtime::map::Mapping;

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

/// Beyond file and arena: the program itself, its stacks, the answer.
const OVERHEAD: u64 = 8 << 20;

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

        let plan = desk.pack("plan").arg(&lpk).args(["--ctx", "256", "--batch", "128", "--json"]);
        let plan = desk.json_object(&plan).unwrap_or_else(|miss| panic!("{miss:?}"));
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
