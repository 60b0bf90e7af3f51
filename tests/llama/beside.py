#!/usr/bin/env python3
"""Our models beside llama.cpp, greedily, token by token.

    pip install xllamacpp            # llama.cpp as a Python module
    tests/llama/beside.py text MODEL.gguf     # a GGUF file, packed as it is, 20 prompts
    tests/llama/beside.py kit KIT [CASE...]   # recorded models, exported as GGUF, loaded by llama.cpp

`text` packs the file with `--quant keep`, continues every prompt in both, and reports where they part and how far apart
llama.cpp's two best tokens were there (in nats): a near tie may fall either way, anything else is a failure. `kit` exports the
merged model of each case as float and compares llama.cpp's continuation with the one that transformers recorded, under the
same rule. Exits with 1 when anything parts at a clear choice. The kit's models are untrained and full of tokens inside of
characters, which the server leaves out of its answer: a failure right after such tokens may be the server's.
"""
import argparse, json, os, subprocess, sys, tempfile

NEAR = 0.15     # nats between the best two tokens that we call a near tie
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


class Llama:
    def __init__(self, path, context):
        import xllamacpp
        p = xllamacpp.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.warmup = path, context, 1, False
        self.server = xllamacpp.Server(p)

    def greedy(self, ids, n):
        """The n most likely tokens, and the distance to the second best at each step."""
        answer = self.server.handle_completions({
            "prompt": ids, "n_predict": n, "temperature": 0, "n_probs": 2, "ignore_eos": False, "cache_prompt": False,
            "repeat_penalty": 1.0, "samplers": ["temperature"]})
        steps = answer["choices"][0]["logprobs"]["content"]
        top = [s["top_logprobs"] for s in steps]
        return [s["id"] for s in steps], [t[0]["logprob"] - t[1]["logprob"] for t in top]


def parting(ours, theirs, margins, lpk):
    """How many tokens agree, and the margin where they part (None: nowhere). llama.cpp's server reports no probabilities for
    tokens that end inside of a character, nor for the one that follows; such tokens of ours are passed over."""
    agreed, i, j, after = 0, 0, 0, False
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            agreed, i, j, after = agreed + 1, i + 1, j + 1, False
        elif "\ufffd" in run("lora-run", "detokenize", lpk, "--ids", str(ours[i])):
            i, after = i + 1, True
        elif after:
            i, after = i + 1, False
        else:
            return agreed, margins[j]
    return agreed, None


def text(args):
    failures, agreed, ties = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        lpk = os.path.join(folder, "model.lpk")
        packed = json.loads(run("lora-pack", "merge", "--base", args.model, "--quant", args.quant, "-o", lpk, "--json"))
        print(f"{os.path.basename(args.model)}: {os.path.getsize(args.model)} bytes as GGUF, {packed['file_bytes']} packed, "
              f"{packed['bits_per_weight']:.2f} bits per weight")
        llama = Llama(args.model, 512)
        for prompt in PROMPTS:
            ids = json.loads(run("lora-run", "tokenize", lpk, prompt, "--json"))["ids"]
            theirs, margins = llama.greedy(ids, args.n)
            done = json.loads(run("lora-run", "generate", lpk, "--ids", ",".join(map(str, ids)), "-n", str(args.n),
                                  "--temp", "0", "--ignore-eos", "--json"))
            n, margin = parting(done["ids"], theirs, margins, lpk)
            agreed += n
            if margin is None:
                verdict = "the same"
            else:
                tie = margin < NEAR
                ties, failures = ties + tie, failures + (not tie)
                verdict = f"parts at a margin of {margin:.3f}" + (" (near tie)" if tie else " FAILED")
            print(f"{n:3} of {len(theirs)}  {verdict:42}  {prompt}")
    print(f"{len(PROMPTS)} prompts: {agreed} tokens agree, {ties} near ties, {failures} failures")
    return failures


def kit(args):
    failures = 0
    cases = args.cases or sorted(os.listdir(args.kit))
    for name in cases:
        path = os.path.join(args.kit, name, "case.json")
        case = json.load(open(path)) if os.path.exists(path) else {}
        if case.get("kind") != "model" or case["task"] != "causal_lm":
            continue
        base = os.path.join(args.kit, name, case["base"].get("file") or case["base"]["dir"])
        for mode in [m for m in case["modes"] if m["kind"] in ("base", "adapter")]:
            adapters = [os.path.join(args.kit, name, a["dir"]) for a in case["adapters"] if a["name"] in mode.get("adapters", [])]
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, "model.gguf")
                flags = [f for a in adapters for f in ("--adapter", a)]
                try:
                    run("lora-pack", "export", "--base", base, *flags, "--to", "gguf", "--type", args.type, "-o", out)
                except RuntimeError as refusal:
                    print(f"{name:28} {mode['id']:10} not covered: {str(refusal)[:150]}")
                    continue
                lpk = os.path.join(folder, "model.lpk")
                run("lora-pack", "merge", "--base", out, "--quant", "f32", "-o", lpk)
                try:
                    llama, tokens, words = Llama(out, 256), 0, []
                except RuntimeError as refusal:
                    failures += 1
                    print(f"{name:28} {mode['id']:10} llama.cpp does not load it: {refusal} FAILED")
                    continue
                for result in case["runs"]:
                    recorded = case["results"].get(result["id"], {}).get(mode["id"], {}).get("greedy")
                    if not recorded:
                        continue
                    theirs, margins = llama.greedy(result["input_ids"], len(recorded["ids"]))
                    if not theirs:
                        failures += 1
                        words.append(f"{result['id']}: llama.cpp ends at once FAILED")
                        continue
                    n, margin = parting(recorded["ids"], theirs, margins, lpk)
                    tokens += n
                    if margin is not None and margin >= NEAR:
                        failures += 1
                        words.append(f"{result['id']}: parts at {n}, margin {margin:.3f} FAILED")
                    elif margin is not None:
                        words.append(f"{result['id']}: near tie at {n} ({margin:.3f})")
                print(f"{name:28} {mode['id']:10} {tokens} tokens agree{'; ' if words else ''}{'; '.join(words)}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("text")
    one.add_argument("model")
    one.add_argument("-n", type=int, default=48)
    one.add_argument("--quant", default="keep")
    many = verbs.add_parser("kit")
    many.add_argument("kit")
    many.add_argument("cases", nargs="*")
    many.add_argument("--type", default="f32")
    args = parser.parse_args()
    sys.exit(1 if (text if args.verb == "text" else kit)(args) else 0)


main()
