"""Merges random PEFT adapters over tiny random models with PEFT and with lora-pack, and compares every weight.

    python tests/peft/random_configs.py LORA_PACK [COUNT [SEED]]

LORA_PACK is the program. Needs torch, transformers and peft (written against 2.15, 5.23 and 0.21.2). Prints one line per
disagreement or refusal and a table of counts, with the largest difference as a share of the largest weight of its tensor; exit
code 1 if any weight differs.
"""

import collections
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings

import torch
import transformers
from peft import (AdaLoraConfig, BOFTConfig, FourierFTConfig, HRAConfig, IA3Config, LNTuningConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig,
                  PeftModel, TrainableTokensConfig, VeraConfig, get_peft_model)
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

CLASSES = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
DECODER = dict(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, head_dim=4)
FAMILIES = {
    "llama": (dict(DECODER, attention_bias=True, mlp_bias=True), ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"],
              ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "embed_tokens", "norm"),
    "qwen2": (DECODER, ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"], ["q_proj", "v_proj", "o_proj", "down_proj"], "embed_tokens", "norm"),
    "gpt2": (dict(vocab_size=41, n_embd=16, n_layer=3, n_head=4, n_positions=32, pad_token_id=0),
             ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"], ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"], "wte", "ln_f"),
    "bert": (dict(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
                  max_position_embeddings=32), ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"],
             ["query", "key", "value", "attention.output.dense", "intermediate.dense"], "word_embeddings", "LayerNorm"),
    "t5": (dict(vocab_size=41, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0),
           ["SEQ_2_SEQ_LM"], ["q", "k", "v", "o", "wi", "wo"], None, "final_layer_norm"),
}


def some(rng, items):
    return rng.sample(items, rng.randint(1, len(items)))


def lora(rng, family, task, tied):
    """A random LoraConfig and its features."""
    _, _, linears, embedding, norm = FAMILIES[family]
    r = rng.choice([1, 2, 4, 5])
    config = dict(task_type=task, r=r, lora_alpha=rng.choice([1, 8, 16, 0.5, 7.25, -4, 0]), lora_dropout=0.1,
                  use_rslora=rng.random() < 0.3, use_dora=rng.random() < 0.25)
    targets = some(rng, linears)
    form = rng.random()
    if form < 0.6:
        if embedding and not tied and rng.random() < 0.2:
            targets = targets + [embedding]
        config["target_modules"] = targets
        if rng.random() < 0.3:
            config["layers_to_transform"] = rng.choice([0, 1, [0, 1], [1]])
    elif form < 0.8:
        config["target_modules"] = r".*(?<!x)\.(?:" + "|".join(t.replace(".", r"\.") for t in targets) + ")"
    else:
        config["target_modules"] = "all-linear"
    if rng.random() < 0.2:
        config["exclude_modules"] = rng.choice([some(rng, linears)[:1], r".*\.0\..*"])
    if rng.random() < 0.3:
        # In the order in which PEFT writes them: it forgets the author's.
        config["rank_pattern"] = dict(sorted({rng.choice(linears): 3, r"^.*\.1\..*": 2}.items()))
    if rng.random() < 0.3:
        config["alpha_pattern"] = {rng.choice(linears): 5}
    if rng.random() < 0.2 and not config["use_dora"] and family in ("llama", "bert", "gpt2") and embedding not in targets:
        config["lora_bias"] = True
    elif rng.random() < 0.3:
        config["bias"] = rng.choice(["all", "lora_only"])
    if rng.random() < 0.2:
        config["modules_to_save"] = [norm]
    if embedding and rng.random() < 0.2 and embedding not in str(config["target_modules"]):
        config["trainable_token_indices"] = rng.sample(range(41), 4)
    start = 1 if "lora_bias" in config else rng.random()
    if start < 0.1 and family != "gpt2" and embedding not in targets and not config["use_dora"]:
        config["init_lora_weights"] = "olora"
    elif start < 0.2 and embedding not in targets and not config["use_dora"]:
        config["init_lora_weights"] = "pissa"
    elif start < 0.3:
        config["init_lora_weights"] = rng.choice([False, "gaussian", "orthogonal"])
    return LoraConfig(**config)


def other(rng, family, task):
    """A random config of another method."""
    _, _, linears, embedding, norm = FAMILIES[family]
    common = dict(task_type=task, target_modules=some(rng, linears))
    kinds = ["loha", "lokr", "ia3", "adalora", "oft", "boft", "fourierft", "hra", "vera", "ln", "tokens"]
    kind = rng.choice(kinds if family != "gpt2" else ["ia3"])
    if kind == "loha":
        return LoHaConfig(r=rng.choice([1, 3]), alpha=rng.choice([4, 7]), **common)
    if kind == "lokr":
        return LoKrConfig(r=rng.choice([1, 2, 4]), alpha=4, decompose_both=rng.random() < 0.5, **common)
    if kind == "ia3":
        return IA3Config(feedforward_modules=common["target_modules"][:rng.randint(0, 1)], **common)
    if kind == "adalora":
        return AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=10, tinit=1, tfinal=1, **common)
    if kind == "oft":
        return OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=rng.random() < 0.5, block_share=rng.random() < 0.3, **common)
    if kind == "boft":
        size = rng.choice([{"boft_block_size": 4}, {"boft_block_size": 0, "boft_block_num": 4}])
        return BOFTConfig(**size, **common)
    if kind == "fourierft":
        return FourierFTConfig(n_frequency=rng.choice([1, 20, 60]), scaling=rng.choice([20.0, 150.0]),
                               random_loc_seed=rng.choice([777, 5]), **common)
    if kind == "hra":
        return HRAConfig(r=2, apply_GS=rng.random() < 0.5, **common)
    if kind == "vera":
        common["target_modules"] = common["target_modules"][:1]
        return VeraConfig(r=3, **common)
    if kind == "ln":
        return LNTuningConfig(task_type=task, target_modules=[norm])
    return TrainableTokensConfig(task_type=task, target_modules=[embedding or "shared"], token_indices=[1, 7, 3])


def combined(rng, folder, family, load):
    """Two LoRA adapters, combined by PEFT and by lora-pack."""
    linears = FAMILIES[family][2]
    kind = rng.choice(["linear", "cat", "svd", "ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd", "stack"])
    weights, density = [rng.choice([0.7, -0.4, 1.0, 1.5]), rng.choice([0.5, 1.3, -0.2])], rng.choice([0.3, 0.5, 0.8])
    free = kind in ("cat", "svd", "stack")
    same = [rng.choice(linears)]
    paths = []
    for name in "ab":
        config = LoraConfig(task_type=None, r=rng.choice([2, 3]) if free else 2, lora_alpha=rng.choice([1, 4, 6]),
                            target_modules=some(rng, linears) if kind == "stack" else same)
        model = get_peft_model(load(), config)
        randomize(model, rng)
        model.save_pretrained(folder / name)
        paths.append(folder / name)
    merged = PeftModel.from_pretrained(load(), paths[0], adapter_name="a")
    merged.load_adapter(paths[1], adapter_name="b")
    options = []
    for path, weight in zip(paths, weights if kind != "stack" else [1, 1]):
        options += ["--adapter", f"{path}={weight}"]
    if kind == "stack":
        return kind, options, merged.merge_and_unload(adapter_names=["a", "b"]).state_dict()
    settings = {}
    if "ties" in kind or "prune" in kind:
        settings["density"] = density
        options += ["--density", str(density)]
    if kind.endswith("svd"):
        settings["svd_rank"] = 3
        options += ["--svd-rank", "3"]
    merged.add_weighted_adapter(["a", "b"], weights, "c", combination_type=kind, **settings)
    merged.set_adapter("c")
    return kind, options + ["--combine", kind], merged.merge_and_unload(adapter_names=["c"]).state_dict()


def randomize(model, rng):
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and p.is_floating_point():
                noise = torch.randn(p.shape, generator=generator)
                p.copy_(noise.abs() + 0.5 if "magnitude" in name or "ia3" in name else noise * 0.3)


def saved_and_merged(rng, adapter, config, start, load):
    """Writes a random adapter of this config, and gives the weights that PEFT merges it to."""
    trained = get_peft_model(load(), config)
    if start in ("pissa", "olora"):  # training moves the factors from where the start put them
        with torch.no_grad():
            for p in trained.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape) * 0.05)
    else:
        randomize(trained, rng)
    trained.save_pretrained(adapter)
    half = rng.choice([None, None, torch.bfloat16, torch.float16])
    if half:
        path = adapter / "adapter_model.safetensors"
        halves = {k: v.to(half) if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(halves, path, {"format": "pt"})
    merged = PeftModel.from_pretrained(load(), adapter).merge_and_unload().state_dict()
    # Some methods leave saved modules wrapped.
    return {k.replace(".modules_to_save.default.", "."): v for k, v in merged.items()}


def one(rng, folder, program):
    """One comparison: (label, outcome, detail or, where all agrees, the largest difference)."""
    family = rng.choice(list(FAMILIES))
    settings, tasks, *_ = FAMILIES[family]
    task = rng.choice(tasks)
    tied = task == "CAUSAL_LM" and rng.random() < 0.3
    torch.manual_seed(rng.randrange(1 << 30))
    config = transformers.AutoConfig.for_model(family, **settings, tie_word_embeddings=tied, num_labels=3)
    base, adapter, out = folder / "base", folder / "adapter", folder / "out"
    label = f"{family} {task}"
    model = CLASSES[task].from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    model.to(dtype).save_pretrained(base)
    load = lambda: CLASSES[task].from_pretrained(base, dtype=torch.float32)
    options, start = ["--adapter", adapter], None
    try:
        if rng.random() < 0.2:
            kind, options, wanted = combined(rng, folder, family, load)
            label, start = f"{kind} {label}", "svd"
        else:
            peft_config = lora(rng, family, task, tied) if rng.random() < 0.75 else other(rng, family, task)
            label = f"{peft_config.peft_type.value} {label}"
            start = getattr(peft_config, "init_lora_weights", True)
            if start in ("pissa", "olora"):
                label = f"{start} {label}"
            wanted = saved_and_merged(rng, adapter, peft_config, start, load)
    except Exception as e:  # noqa: BLE001 - whatever PEFT does not do is not compared
        return label, "PEFT refuses", f"{type(e).__name__}: {e}".splitlines()[0][:150]
    done = subprocess.run([program, "export", "--base", base, *options, "-o", out], capture_output=True, text=True)
    own = adapter / "adapter_config.json"
    about = json.dumps({k: v for k, v in json.load(open(own)).items() if v}) if own.exists() else str(options)
    if done.returncode != 0:
        return label, "lora-pack refuses", done.stderr.strip().splitlines()[-1][:300] + "\n      " + about[:600]
    got = load_file(out / "model.safetensors")
    tolerance = 1e-4 if start in ("pissa", "olora", "svd") else 1e-5
    worst = 0.0
    for name, have in got.items():
        want = wanted.get(name)
        if want is None or want.shape != have.shape:
            return label, "DIFFERS", f"{name}: PEFT has {None if want is None else tuple(want.shape)}\n      {about}"
        error = (have.double() - want.double()).abs() / (want.double().abs() + 0.05)
        if not error.max().item() <= tolerance:
            return label, "DIFFERS", f"{name}: off by {error.max().item():.2e}\n      {about}"
        worst = max(worst, ((have - want).abs().max() / want.abs().max().clamp(min=1e-30)).item())
    return label, "agrees", worst


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    torch.set_num_threads(1)
    table, worst = collections.Counter(), collections.defaultdict(float)
    for i in range(count):
        folder = pathlib.Path(tempfile.mkdtemp())
        label, outcome, detail = one(random.Random(seed * 1_000_003 + i), folder, program)
        table[label.split()[0], outcome] += 1
        if outcome == "agrees":
            worst[label.split()[0]] = max(worst[label.split()[0]], detail)
        else:
            print(f"{i}: {label}: {outcome}: {detail}", flush=True)
        shutil.rmtree(folder)
    for (method, outcome), n in sorted(table.items()):
        print(f"{method:20} {outcome:18} {n:4}" + (f"   {worst[method]:.1e}" if outcome == "agrees" else ""))
    sys.exit(any(outcome == "DIFFERS" for _, outcome in table))


if __name__ == "__main__":
    main()
