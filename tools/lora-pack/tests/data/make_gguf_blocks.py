"""Random blocks of every GGUF type that lora-pack reads, and what gguf-py makes of them, as gguf_blocks.bin.

    pip install gguf==0.19.0 numpy && python make_gguf_blocks.py

For each type: its name (8 bytes, padded), the number of blocks, the bytes of a block, the elements of a block (u32 each),
the blocks, their elements (f32). Everything little-endian.
"""
import struct, sys
import numpy as np, gguf

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
# Offsets of the binary16 fields.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0]}
rng = np.random.default_rng(7)
out = b""
for name in TYPES:
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = 12 if elements == 32 else 4
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[name]:
        blocks[:, at:at + 2] = rng.normal(0, 0.02, count).astype(np.float16).view(np.uint8).reshape(count, 2)
    values = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    out += struct.pack("<8sIII", name.encode(), count, size, elements) + blocks.tobytes() + values.tobytes()
open(sys.argv[1] if len(sys.argv) > 1 else "gguf_blocks.bin", "wb").write(out)
