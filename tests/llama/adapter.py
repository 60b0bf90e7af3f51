#!/usr/bin/env python3
"""What an adapter costs in llama.cpp, to stand beside `lora-bench adapter`.

    pip install xllamacpp numpy gguf
    tests/llama/adapter.py MODEL.gguf ADAPTER [--rounds 64]

Writes the PEFT adapter (plain LoRA on linears of a Llama) as a GGUF file and times a prompt of 128 tokens and single tokens at depth
128 with and without it, step by step in turn, one thread, CPU time. q and k are not permuted: the times are right, the answers not.
"""
import argparse, ctypes as C, json, os, struct, tempfile, time

import gguf
import numpy as np

import llama
from llama import POINTER, Llama, function

adapter_load = function("llama_adapter_lora_init", POINTER, POINTER, C.c_char_p)
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
PROMPT = 128


def select(context, adapter):
    """Lets the adapter act, or none."""
    if hasattr(llama.LIB, "llama_set_adapters_lora"):
        call = function("llama_set_adapters_lora", C.c_int32, POINTER, C.POINTER(POINTER), C.c_size_t, C.POINTER(C.c_float))
        n = int(adapter is not None)
        failed = call(context, (POINTER * 1)(adapter), n, (C.c_float * 1)(1.0))
    elif adapter is not None:
        failed = function("llama_set_adapter_lora", C.c_int32, POINTER, POINTER, C.c_float)(context, adapter, 1.0)
    else:
        failed = function("llama_clear_adapter_lora", None, POINTER)(context) or 0
    assert failed == 0, "the adapter was not taken"


def convert(folder, out):
    config = json.load(open(os.path.join(folder, "adapter_config.json")))
    with open(os.path.join(folder, "adapter_model.safetensors"), "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, t in header.items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        raw = np.frombuffer(data[a:b], {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[t["dtype"]])
        values = (raw.astype(np.uint32) << 16).view(np.float32) if t["dtype"] == "BF16" else raw.astype(np.float32)
        layer, rest = name.split(".layers.")[1].split(".", 1)
        module, part = rest.split(".lora_")
        writer.add_tensor(f"blk.{layer}.{NAMES[module]}.weight.lora_{part[0].lower()}", values.reshape(t["shape"]).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config["r"]


def step(model, ids, start):
    batch = llama.batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
        batch.logits[i] = i == len(ids) - 1
    begin = time.thread_time()
    failed = llama.decode(model.context, batch)
    took = time.thread_time() - begin
    llama.batch_free(batch)
    assert failed == 0, f"llama.cpp returned {failed}"
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("--rounds", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "adapter.gguf")
        rank = convert(args.adapter, path)
        sides = [Llama(args.model, 256), Llama(args.model, 256)]
        adapter = adapter_load(sides[1].model, path.encode())
        assert adapter, "; ".join(llama.MESSAGES[-2:])
        select(sides[1].context, adapter)
    ids = [i % 97 + 3 for i in range(PROMPT)]
    times = {"prompt of 128": ([], []), "one token at 128": ([], [])}
    for round in range(args.rounds):
        for i in range(2):
            side = (round + i) % 2
            if round % 8 == 0:
                sides[side].forget()
                times["prompt of 128"][side].append(step(sides[side], ids, 0))
            # Every token stands at the same depth: what the last round wrote there goes first.
            sides[side].cut(PROMPT)
            times["one token at 128"][side].append(step(sides[side], ids[:1], PROMPT))
    for what, (without, own) in times.items():
        low, middle, high = np.quantile(np.array(without) / np.array(own), [0.25, 0.5, 0.75])
        print(f"{what}: {np.median(without) * 1e3:.3f} ms without, {np.median(own) * 1e3:.3f} ms with rank {rank}: "
              f"speed {middle:.3f} ({low:.3f}…{high:.3f})")


if __name__ == "__main__":
    main()
