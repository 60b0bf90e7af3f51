//! `plan`: flash and RAM, exactly as a session will take them.

use anyhow::{Result, bail};
use lora_runtime::Model;
use lora_runtime::format::{CacheKind, EntryKind};
use lora_runtime::kernels::KvType;
use lora_runtime::program::{AdapterNeeds, Plan, SessionConfig};
use serde_json::json;

use super::{human, map};
use crate::cli::PlanArgs;
use crate::target::Target;

/// What a target is expected to need and to do.
fn estimate(target: &Target, model: &Model<'_>, args: &PlanArgs) {
    if let Some(firmware) = target.firmware {
        println!(
            "code   {:>12}  beside the file, as the classifier of tests/firmware has it",
            human(firmware.code_bytes)
        );
        println!("stack  {:>12}  at most, in the programs of tests/firmware", human(firmware.stack_bytes));
    }
    let work = target.work(model);
    let speed = work.tokens_per_second(args.clock, args.bandwidth);
    let memory = match args.bandwidth {
        Some(bandwidth) => format!("memory at {bandwidth} GB/s"),
        None => "memory that keeps up (--bandwidth bounds it)".into(),
    };
    println!(
        "speed  {speed:>6.2} tok/s  estimated: {:.1} million instructions in {:.1} million cycles per token, one core at \
         {} MHz; reads {} of matrices, {memory}",
        work.instructions / 1e6,
        work.cycles / 1e6,
        args.clock,
        human(work.bytes)
    );
}

/// Context lengths of the table without `--ctx`.
const TABLE: [u32; 6] = [128, 256, 512, 1024, 2048, 8192];

/// Runs the verb.
///
/// # Errors
/// The file is not sound, or the context is beyond the model's positions.
pub fn run(args: &PlanArgs) -> Result<()> {
    let bytes = map(&args.file)?;
    let model = Model::open(&bytes)?;
    let info = model.file.info;
    let kv = match args.kv.as_deref() {
        None => model.kv_type(),
        Some(name) => match KvType::from_name(name) {
            Some(kv) => kv,
            None => bail!("--kv {name}: expected f32, f16 or i8"),
        },
    };
    let encoder_only = model.entry(EntryKind::Decode).is_err();
    let has_source = model.file.caches.iter().any(|c| c.kind == CacheKind::Source as u32);
    let config = |ctx: u32| SessionConfig {
        context: if encoder_only { 0 } else { ctx },
        tokens: if encoder_only { ctx.max(1) } else { args.batch.max(1) },
        outputs: 1,
        source: if has_source { ctx } else { 0 },
        sequences: 1,
        kv,
        adapters: AdapterNeeds::NONE,
    };
    if args.batch == 0 {
        bail!("--batch 0: at least one token per step");
    }
    let row = |ctx: u32| -> Plan { model.plan(&config(ctx)) };
    if let Some(ctx) = args.ctx {
        if ctx == 0 || ctx > info.max_positions {
            bail!("--ctx {ctx}: the model has positions for 1 to {}", info.max_positions);
        }
        let p = row(ctx);
        if args.json {
            let mut plan = json!({"flash_bytes": bytes.len(), "arena_bytes": p.arena_bytes, "kv_bytes": p.kv_bytes,
                       "activation_bytes": p.activation_bytes, "ctx": ctx, "batch": config(ctx).tokens,
                       "kv": kv.name(), "per_token_bytes": info.per_token, "per_output_bytes": info.per_output});
            if let Some(target) = args.target {
                let work = target.work(&model);
                plan["target"] = target.name.into();
                if let Some(firmware) = target.firmware {
                    plan["code_bytes"] = firmware.code_bytes.into();
                    plan["stack_bytes"] = firmware.stack_bytes.into();
                }
                plan["instructions_per_token"] = work.instructions.round().into();
                plan["cycles_per_token"] = work.cycles.round().into();
                plan["weight_bytes_per_token"] = work.bytes.into();
                plan["clock_mhz"] = args.clock.into();
                plan["bandwidth_gbs"] = args.bandwidth.into();
                plan["tokens_per_second"] = work.tokens_per_second(args.clock, args.bandwidth).into();
            }
            println!("{plan}");
        } else {
            println!("flash  {:>12}  the file, used in place", human(bytes.len() as u64));
            println!(
                "RAM    {:>12}  arena: {} KV cache ({}) + {} activations",
                human(p.arena_bytes),
                human(p.kv_bytes),
                kv.name(),
                human(p.activation_bytes)
            );
            if let Some(target) = &args.target {
                estimate(target, &model, args);
            }
        }
        return Ok(());
    }
    let rows: Vec<(u32, Plan)> = TABLE.into_iter().filter(|c| *c <= info.max_positions).map(|c| (c, row(c))).collect();
    if args.json {
        let rows: Vec<_> =
            rows.iter().map(|(c, p)| json!({"ctx": c, "arena_bytes": p.arena_bytes, "kv_bytes": p.kv_bytes})).collect();
        println!("{}", json!({"flash_bytes": bytes.len(), "batch": args.batch, "kv": kv.name(), "rows": rows}));
        return Ok(());
    }
    println!("flash: {} (the file, used in place)", human(bytes.len() as u64));
    println!("{:>8}  {:>12}  {:>12}  {:>12}", "ctx", "RAM", "KV cache", "activations");
    for (ctx, p) in rows {
        println!(
            "{ctx:>8}  {:>12}  {:>12}  {:>12}",
            human(p.arena_bytes),
            human(p.kv_bytes),
            human(p.activation_bytes)
        );
    }
    Ok(())
}
