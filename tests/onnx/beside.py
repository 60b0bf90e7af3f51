#!/usr/bin/env python3
"""A sentence encoder of BERT's architecture beside ONNX Runtime's int8: sentences per second, one thread, turn by turn.

    pip install onnxruntime onnx numpy safetensors sympy
    lora-pack merge --base all-MiniLM-L6-v2 --quant q8 -o minilm-q8.lpk
    tests/onnx/beside.py all-MiniLM-L6-v2 minilm-q8.lpk [--lengths 32,128] [--rounds 7] [--run target/release/lora-run]

The ONNX model is made here from the folder's config.json and model.safetensors, as an exporter writes it; ONNX Runtime's own optimizer fuses
attention, GELU and norms, and `quantize_dynamic` makes the weights int8, one scale per channel. Both sides run one sentence at a time,
all positions in use, and stop at the hidden states. First they are compared: the mean cosine of the hidden states with the float model's is
printed for both, and one below 0.98 is a failure. Times are CPU times.
"""
import argparse, json, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

RUNS = 40  # sentences of a turn
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


class Graph:
    """Nodes and constants, named in order."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def add(self, op, *inputs, **attributes):
        out = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"n{len(self.nodes)}", **attributes))
        return out

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def bert(folder):
    """The encoder as an ONNX model: ids and mask to hidden states."""
    config = json.loads((folder / "config.json").read_text())
    w = load_file(folder / "model.safetensors")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    g = Graph()

    def linear(x, name):
        product = g.add("MatMul", x, g.constant(f"{name}.weight_t", w[f"{name}.weight"].T.astype(np.float32)))
        return g.add("Add", g.constant(f"{name}.bias", w[f"{name}.bias"].astype(np.float32)), product)

    def norm(x, name):
        scale = g.constant(f"{name}.weight", w[f"{name}.weight"].astype(np.float32))
        bias = g.constant(f"{name}.bias", w[f"{name}.bias"].astype(np.float32))
        return g.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=config["layer_norm_eps"])

    def number(name, value):
        return g.constant(name, np.array(value, np.float32))

    split = g.constant("split", np.array([0, 0, heads, hidden // heads], np.int64))
    join = g.constant("join", np.array([0, 0, hidden], np.int64))
    zero, one, axis = (g.constant(n, np.array(v, np.int64)) for n, v in [("zero", 0), ("one", 1), ("axis", [0])])
    root_two, unit, half = number("root_two", 2**0.5), number("unit", 1), number("half", 0.5)
    scale, least = number("scale", (hidden // heads) ** 0.5), number("least", -10000)

    length = g.add("Gather", g.add("Shape", "input_ids"), one, axis=0)
    positions = g.add("Unsqueeze", g.add("Range", zero, length, one), axis)
    table = lambda name: g.constant(name, w[f"embeddings.{name}.weight"].astype(np.float32))
    words = g.add("Gather", table("word_embeddings"), "input_ids", axis=0)
    types = g.add("Gather", table("token_type_embeddings"), "token_type_ids", axis=0)
    x = g.add("Add", g.add("Add", words, types), g.add("Gather", table("position_embeddings"), positions, axis=0))
    x = norm(x, "embeddings.LayerNorm")
    # In two steps, as exporters have it, or the optimizer does not see attention.
    mask = g.add("Unsqueeze", "attention_mask", g.constant("axis_1", np.array([1], np.int64)))
    mask = g.add("Cast", g.add("Unsqueeze", mask, g.constant("axis_2", np.array([2], np.int64))), to=FLOAT)
    mask = g.add("Mul", g.add("Sub", unit, mask), least)
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (g.add("Reshape", linear(x, f"{at}.attention.self.{n}"), split) for n in ("query", "key", "value"))
        q, v = (g.add("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = g.add("Div", g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 3, 1])), scale)
        weights = g.add("Softmax", g.add("Add", scores, mask), axis=-1)
        mixed = g.add("Transpose", g.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        out = linear(g.add("Reshape", mixed, join), f"{at}.attention.output.dense")
        x = norm(g.add("Add", out, x), f"{at}.attention.output.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        bent = g.add("Add", g.add("Erf", g.add("Div", inner, root_two)), unit)
        inner = g.add("Mul", g.add("Mul", inner, bent), half)
        x = norm(g.add("Add", linear(inner, f"{at}.output.dense"), x), f"{at}.output.LayerNorm")
    g.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    inputs = [helper.make_tensor_value_info(n, INT, ["batch", "length"])
              for n in ("input_ids", "attention_mask", "token_type_ids")]
    outputs = [helper.make_tensor_value_info("last_hidden_state", FLOAT, ["batch", "length", hidden])]
    graph = helper.make_graph(g.nodes, "bert", inputs, outputs, g.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model, config


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(ids):
    ids = np.array([ids], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} ({low:.2f}…{high:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--lengths", default="32,128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run", default="target/release/lora-run")
    parser.add_argument("--isa", help="instruction set of our kernels")
    args = parser.parse_args()
    lengths = [int(n) for n in args.lengths.split(",")]
    isa = ["--isa", args.isa] if args.isa else []
    with tempfile.TemporaryDirectory() as folder:
        plain, fused, int8 = (Path(folder) / f"{name}.onnx" for name in ("plain", "fused", "int8"))
        model, config = bert(args.base)
        onnx.save(model, plain)
        from onnxruntime.transformers import optimizer

        optimized = optimizer.optimize_model(
            str(plain), model_type="bert", num_heads=config["num_attention_heads"], hidden_size=config["hidden_size"],
            opt_level=0)
        optimized.save_model_to_file(str(fused))
        print("fused by ONNX Runtime's optimizer:",
              ", ".join(f"{n} {op}" for op, n in optimized.get_fused_operator_statistics().items() if n))
        quantize_dynamic(str(fused), str(int8), per_channel=True, weight_type=QuantType.QInt8,
                         extra_options={"DefaultTensorType": FLOAT})
        exact, theirs = session(plain), session(int8)

        rng = np.random.default_rng(1)
        ids = {n: rng.integers(1000, config["vocab_size"], n).tolist() for n in lengths}
        for n in lengths:
            wanted = exact.run(None, feeds(ids[n]))[0][0]
            out = Path(folder) / "ours.safetensors"
            raw = [args.run, "raw", args.pack, "--ids", ",".join(map(str, ids[n])), "--out", out, *isa]
            subprocess.run(raw, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            ours = next(t for t in load_file(out).values() if t.shape[-2:] == wanted.shape).reshape(wanted.shape)
            cosine = lambda a: float(np.mean(np.sum(a * wanted, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(wanted, axis=-1)))
            both = cosine(ours), cosine(theirs.run(None, feeds(ids[n]))[0][0])
            print(f"{n} tokens: cosine with the float model: ours {both[0]:.4f}, ONNX Runtime int8 {both[1]:.4f}")
            if min(both) < 0.98:
                sys.exit("not the same model")

        def cpu_of_ours(n, runs):
            command = [args.run, "bench", args.pack, "-p", str(n), "-n", "0", "-t", "1", "-r", str(runs), *isa]
            used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            before = used()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return used() - before

        def speed_of_ours(n):
            # What starting takes is in both.
            return RUNS / (cpu_of_ours(n, 1 + RUNS) - cpu_of_ours(n, 1))

        def speed_of_theirs(n):
            start = time.process_time()
            for _ in range(RUNS):
                theirs.run(None, feeds(ids[n]))
            return RUNS / (time.process_time() - start)

        print(f"| tokens | ours, sentences/s | ONNX Runtime {ort.__version__} int8 | ratio (quartiles) |\n|---|---|---|---|")
        for n in lengths:
            pairs = [(speed_of_ours(n), speed_of_theirs(n)) for _ in range(args.rounds)]
            ours, other = (statistics.median(side) for side in zip(*pairs))
            print(f"| {n} | {ours:.1f} | {other:.1f} | {spread([a / b for a, b in pairs])} |")


if __name__ == "__main__":
    main()
