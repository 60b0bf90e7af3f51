#!/usr/bin/env python3
"""Our models beside llama.cpp.

    pip install xllamacpp numpy      # llama.cpp as a Python module
    tests/llama/beside.py text MODEL.gguf [-n 48]
    tests/llama/beside.py kit KIT [CASE...] [--type f32,f16,q8_0,q4_0]

`text` packs a GGUF file and continues 20 prompts greedily in both programs. Both multiply the same weights by activations of 8
bits, rounded by rules of their own (keys and values are cached as float32), so each has noise: its distance from our float run of the same file. Where the two part, the
margins between both tokens are printed (llama.cpp's, ours, the float run's); a margin of llama.cpp within three standard deviations
of the noise is a near tie. Failures: another parting, a prompt that the two tokenize differently, and a mean divergence of ours
from the float run that is above llama.cpp's by more than three standard errors of their difference at the same positions.

`kit` exports the merged model of every recorded language model, encoder-decoder and plain encoder, loads the file in llama.cpp and
compares logits (hidden states) at all positions. With floats: with what transformers recorded. With blocks: with the same,
within the kit's bars for 8 and 4 bits; and with our own float run of the same file, within the kit's bar for 8-bit activations,
because that is all that llama.cpp does differently. Printed are the root of the mean square of the difference over the standard
deviation, and the mean KL divergence of logits. A model that GGUF has no words for is written with --force and compared with our
float run of that file alone; one that cannot be written is listed with the reason.

Exits with 1 when anything fails.
"""
import argparse, json, os, struct, subprocess, sys, tempfile

import numpy as np

from llama import Llama

PROMPTS = [
    "The capital of France is", "Once upon a time there was a small robot", "To boil an egg, first",
    "The three primary colors are", "Water freezes at", "def fibonacci(n):", "The largest planet in the solar system is",
    "A good breakfast consists of", "Dear Sir or Madam,", "In 1969, the first humans", "The opposite of cold is",
    "My favourite season is autumn because", "List the days of the week:", "The quick brown fox", "Photosynthesis is the process",
    "Roses are red,", "If it rains tomorrow, we", "The recipe needs two cups of", "She opened the door and", "1, 2, 3, 4,",
]


def run(program, *args):
    path = os.path.join(os.environ.get("LORA_PACK_BIN_DIR", "target/release"), program)
    done = subprocess.run([path, *args], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
    return done.stdout


def safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    out = {}
    for name, t in header.items():
        if name != "__metadata__":
            assert t["dtype"] == "F32", f"{name}: {t['dtype']}"
            a, b = t["data_offsets"]
            out[name] = np.frombuffer(data[a:b], np.float32).reshape(t["shape"])
    return out


def our_outputs(lpk, inputs):
    """What `lora-run raw` gives for every input: {"0.logits": …}."""
    with tempfile.TemporaryDirectory() as folder:
        ids, out = os.path.join(folder, "ids.json"), os.path.join(folder, "out.safetensors")
        with open(ids, "w") as file:
            json.dump(inputs, file)
        run("lora-run", "raw", lpk, "--ids-file", ids, "--kv", "f32", "--out", out)
        return safetensors(out)


def log_softmax(x):
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(want, got):
    """KL divergence of each row, in nats."""
    p, q = log_softmax(want), log_softmax(got)
    return (np.exp(p) * (p - q)).sum(-1)


def distance(want, got):
    """Root of the mean square of the difference over the standard deviation, and the mean KL divergence in nats."""
    rms = float(np.sqrt(((want.astype(np.float64) - got) ** 2).mean()) / want.std())
    return rms, float(divergence(want, got).mean())


def text(args):
    failures, agreed, ties = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        kept, floats = os.path.join(folder, "kept.lpk"), os.path.join(folder, "floats.lpk")
        packed = json.loads(run("lora-pack", "merge", "--base", args.model, "--quant", "keep", "-o", kept, "--json"))
        run("lora-pack", "merge", "--base", args.model, "--quant", "f32", "-o", floats)
        print(f"{os.path.basename(args.model)}: {os.path.getsize(args.model)} bytes as GGUF, {packed['file_bytes']} packed, "
              f"{packed['bits_per_weight']:.2f} bits per weight")
        llama = Llama(args.model, 256)
        prompts = []
        for prompt in PROMPTS:
            ids = json.loads(run("lora-run", "tokenize", kept, prompt, "--json"))["ids"]
            if ids != llama.tokenize(prompt):
                failures += 1
                print(f"FAILED: ours tokenizes {ids}, llama.cpp {llama.tokenize(prompt)}: {prompt}")
                continue
            theirs, logits = llama.greedy(ids, args.n)
            ours = json.loads(run("lora-run", "generate", kept, "--ids", ",".join(map(str, ids)), "-n", str(args.n),
                                  "--temp", "0", "--ignore-eos", "--kv", "f32", "--json"))["ids"]
            prompts.append((prompt, ids, theirs, logits, ours))
        llama.close()
        # llama.cpp's tokens, forced on our quantized and float runs.
        forced = [{"ids": ids + theirs[:-1]} for _, ids, theirs, _, _ in prompts]
        rows = lambda lpk: [our_outputs(lpk, [f])["0.logits"][len(p[1]) - 1:] for p, f in zip(prompts, forced)]
        exact, own = rows(floats), rows(kept)
        stack = lambda runs: np.concatenate(runs)
        noise = lambda runs: float((stack(runs) - stack(exact)).std(-1).mean())
        all_theirs = [p[3] for p in prompts]
        there, here = noise(all_theirs), noise(own)
        limit = 3 * np.sqrt(2 * (there ** 2 + here ** 2))
        for (prompt, ids, theirs, logits, ours), float_rows, own_rows in zip(prompts, exact, own):
            n = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
            agreed += n
            verdict = "the same"
            if n < args.n:
                a, b = theirs[n], ours[n]
                gap = logits[n][a] - logits[n][b]
                tie = gap <= limit
                ties, failures = ties + tie, failures + (not tie)
                verdict = (f"parts: margin {gap:.3f} there, {own_rows[n][b] - own_rows[n][a]:.3f} here, "
                           f"{abs(float_rows[n][a] - float_rows[n][b]):.3f} in floats" + (" (near tie)" if tie else " FAILED"))
            print(f"{n:3} of {args.n}  {prompt:42}  {verdict}")
        kl = lambda runs: divergence(stack(exact), stack(runs))
        more = kl(own) - kl(all_theirs)
        worse = more.mean() > 3 * more.std() / np.sqrt(len(more))
        failures += worse
        print(f"distance from the float run: llama.cpp {there:.4f} (standard deviation of a logit), KL {kl(all_theirs).mean():.2e}; "
              f"ours {here:.4f}, KL {kl(own).mean():.2e}{' FAILED' if worse else ''}; near ties: up to {limit:.3f}")
    print(f"{len(PROMPTS)} prompts: {agreed} of {len(PROMPTS) * args.n} tokens before a parting, {ties} near ties, {failures} failures")
    return failures


NO_BAR = (float("inf"), float("inf"))


def bars(kind, case):
    """The largest (rms, KL) from what was recorded, and from our float run of the same file: the kit's bars."""
    floats = {"f32": (1e-3, 1e-4), "f16": (5e-3, 1e-4)}
    if kind in floats:
        return floats[kind], floats[kind]
    if "moe" in case["arch"] or case["arch"] == "mixtral":
        # The kit's are for experts whose inputs stay floats, and another choice of experts throws positions far off.
        return NO_BAR, NO_BAR
    sim = lambda name, by: tuple(by * case["quant_sim"][name].get(key, 1.0) + 1e-4 for key in ("rms_err_over_std", "kl_mean"))
    return sim("w8a8", 2) if kind == "q8_0" else sim("w4", 1.5), sim("w8a8", 2)


OUTPUTS = {"causal_lm": "logits", "seq2seq_lm": "logits", "feature_extraction": "last_hidden_state"}


def by_llama(path, task, runs):
    llama = Llama(path, 256)
    call = {"causal_lm": lambda r: llama.logits(r["input_ids"]),
            "seq2seq_lm": lambda r: llama.seq2seq_logits(r["input_ids"], r["decoder_input_ids"]),
            "feature_extraction": lambda r: llama.hidden_states(r["input_ids"])}[task]
    try:
        return [call(r) for r in runs]
    finally:
        llama.close()


def by_us(path, output, runs, folder):
    lpk = os.path.join(folder, "model.lpk")
    run("lora-pack", "merge", "--base", path, "--quant", "f32", "-o", lpk)
    names = {"ids": "input_ids", "token_type_ids": "token_type_ids", "decoder_ids": "decoder_input_ids"}
    ours = our_outputs(lpk, [{ours: r[kit] for ours, kit in names.items() if kit in r} for r in runs])
    return [ours[f"{i}.{output}"] for i in range(len(runs))]


def known_limits(base, runs):
    """What llama.cpp does not do: the runs, the positions of each that can be compared, and why the others cannot."""
    path = os.path.join(base, "config.json")
    config = json.load(open(path)) if os.path.exists(path) else {}
    if config.get("model_type") != "phi3":
        return runs, None, ""
    original, window = config.get("original_max_position_embeddings", 0), config.get("sliding_window")
    if config.get("rope_scaling"):
        return [r for r in runs if len(r["input_ids"]) > original], None, (
            f" (texts above {original} tokens: llama.cpp takes LongRoPE's factors by the size of the context, not of the text)")
    return runs, window, f" (the first {window} tokens: llama.cpp has no sliding window for phi3)" if window else ""


def one_file(case, folder, mode, kind, scratch):
    """Words about one exported model, whether they are good, and whether llama.cpp was asked."""
    output = OUTPUTS[case["task"]]
    expected = safetensors(os.path.join(folder, case["expected"]))
    base = os.path.join(folder, case["base"].get("file") or case["base"]["dir"])
    key = lambda r: case["results"].get(r["id"], {}).get(mode["id"], {}).get("tensors", {}).get(output)
    runs, rows, why = known_limits(base, [r for r in case["runs"] if key(r)])
    if not runs:
        return f"nothing to compare{why}", True, False
    flags = [f for a in case["adapters"] if a["name"] in mode.get("adapters", [])
             for f in ("--adapter", os.path.join(folder, a["dir"]))]
    file = os.path.join(scratch, "model.gguf")
    export = ["export", "--base", base, *flags, "--to", "gguf", "--type", kind, "-o", file]
    refusal = None
    try:
        run("lora-pack", *export)
    except RuntimeError as why_not:
        refusal = str(why_not).removeprefix("error: ")
        try:
            # What is dropped is dropped for both then.
            run("lora-pack", *export, "--force")
        except RuntimeError:
            return f"not exported: {refusal[:160]}", True, False
    try:
        theirs = by_llama(file, case["task"], runs)
    except RuntimeError as why_not:
        if refusal:
            return f"not exported: {refusal[:160]}", True, False
        return f"FAILED: {why_not}", False, True
    cut = lambda list_: np.concatenate([x[:rows] for x in list_])
    recorded, own = bars(kind, case)
    pairs = [] if refusal else [("recorded", distance(cut([expected[key(r)] for r in runs]), cut(theirs)), recorded)]
    pairs.append(("our float run", distance(cut(by_us(file, output, runs, scratch)), cut(theirs)), own))
    good = all(d <= bar for _, measured, limits in pairs for d, bar in zip(measured, limits))
    bar = lambda b: "no bar" if b == float("inf") else f"{b:.1e}"
    words = "; ".join(f"{what}: rms {d[0]:.1e} ({bar(b[0])}), KL {d[1]:.1e} ({bar(b[1])})" for what, d, b in pairs)
    forced = f"forced ({refusal.split(': ', 1)[-1].removesuffix(' (--force writes it nevertheless)')}); " if refusal else ""
    return forced + words + why + ("" if good else " FAILED"), good, True


def kit(args):
    files, failures, types = 0, 0, args.type.split(",")
    for name in args.cases or sorted(os.listdir(args.kit)):
        folder = os.path.join(args.kit, name)
        path = os.path.join(folder, "case.json")
        case = json.load(open(path)) if os.path.exists(path) else {}
        if case.get("kind") != "model" or case["task"] not in OUTPUTS:
            continue
        for mode in [m for m in case["modes"] if m["kind"] in ("base", "adapter")]:
            # The kit's bars for blocks are about one mode.
            barred = (case["quant_sim"] or {}).get("mode") == mode["id"]
            for kind in [t for t in types if barred or t[0] == "f"]:
                with tempfile.TemporaryDirectory() as scratch:
                    words, good, loaded = one_file(case, folder, mode, kind, scratch)
                files, failures = files + loaded, failures + (not good)
                print(f"{name:26} {mode['id']:9} {kind:4}  {words}", flush=True)
                if not loaded:
                    break
    print(f"{files} files loaded in llama.cpp, {failures} failures; in brackets the bars")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("text")
    one.add_argument("model")
    one.add_argument("-n", type=int, default=48, help="tokens after each prompt")
    many = verbs.add_parser("kit")
    many.add_argument("kit")
    many.add_argument("cases", nargs="*")
    many.add_argument("--type", default="f32,f16,q8_0,q4_0")
    args = parser.parse_args()
    sys.exit(1 if (text if args.verb == "text" else kit)(args) else 0)


main()
