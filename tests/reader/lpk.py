#!/usr/bin/env python3
"""A second reader of .lpk files, written from docs/format.md and docs/tokenizer-format.md alone, with nothing but Python.

    lpk.py FILE         prints one JSON object: kind, hash, metadata, digests of all tensors, what the tokenizer holds

The test `reader` compares it with the runtime: what the documents say is what the files hold.
"""
import hashlib, json, struct, sys

SECTIONS = {1: "strings", 2: "meta", 3: "info", 4: "entries", 5: "ops", 6: "buffers", 7: "caches", 8: "outputs",
            9: "tensors", 10: "slots", 11: "labels", 12: "tokenizer", 13: "weights",
            14: "patches", 15: "indices", 16: "members"}
FORMATS = ["f32", "f16", "q8", "q8r", "q4", "q4l", "q5", "q6"]
CODE_BYTES = {"q8": 512, "q8r": 512, "q4": 256, "q4l": 256, "q5": 256, "q6": 256}  # of a group's 16 rows
PLANE_BYTES = {"q5": 64, "q6": 128}
MULTIPLIER = {"q8": 2, "q8r": 0}
SLOTS = [0, 1, 4, 5, 2, 3, 6, 7]
PLACE = [0, 2, 1, 3]


def up(n, unit=64):
    return -(-n // unit) * unit


class File:
    def __init__(self, data):
        self.data = data
        magic, version, self.kind, required, length, count, at = struct.unpack_from("<8sIIQQII", data)
        assert magic == b"\x89LPK\r\n\x1a\n" and version == 1 and required == 0 and length == len(data)
        self.hash, self.codebook = data[40:72].hex(), data[104:120]
        blank = hashlib.sha256(data[:40] + bytes(32) + data[72:]).hexdigest()
        assert blank == self.hash, "content hash"
        self.sections, self.counts = {}, {}
        for i in range(count):
            ident, size, offset, n, records = struct.unpack_from("<IIQQQ", data, at + 32 * i)
            assert n == size * records and offset % (4096 if ident == 13 else 64) == 0
            name = SECTIONS.get(ident, str(ident))
            self.sections[name], self.counts[name] = data[offset:offset + n], records

    def text(self, offset, length):
        return self.sections["strings"][offset:offset + length].decode()

    def meta(self):
        return {self.text(a, b): self.text(c, d) for a, b, c, d in struct.iter_unpack("<IIII", self.sections["meta"])}

    def tensors(self):
        for a, b, kind, form, rows, cols, slot, offset, n in struct.iter_unpack("<IIHHIIIQQ", self.sections["tensors"]):
            assert (kind < 2 or slot == 0xFFFFFFFF) and offset % 64 == 0
            data = self.sections["weights"][offset:offset + n]
            if kind == 1:
                yield self.text(a, b), "vector", rows, cols, struct.unpack("<%df" % (rows * cols), data)
            else:
                yield self.text(a, b), FORMATS[form], rows, cols, self.matrix(FORMATS[form], data, rows, cols)

    def matrix(self, form, data, rows, cols):
        """The values, row by row."""
        panels = -(-rows // 16)
        size = len(data) // panels
        assert size * panels == len(data) and size % 64 == 0
        for row in range(rows):
            panel = data[row // 16 * size:(row // 16 + 1) * size]
            if form in ("f32", "f16"):
                kind, step = ("f", 4) if form == "f32" else ("e", 2)
                for k in range(cols):
                    yield struct.unpack_from("<" + kind, panel, step * (16 * k + row % 16))[0]
            else:
                yield from self.codes(form, panel, row % 16, cols)

    def codes(self, form, panel, row, cols):
        half, slot = row // 8, SLOTS.index(row % 8)
        scale = 1.0 if form == "q8" else struct.unpack_from("<f", panel, len(panel) - 64 + 4 * row)[0]
        width, codes, planes = MULTIPLIER.get(form, 1), CODE_BYTES[form], PLANE_BYTES.get(form, 0)
        groups, at = -(-cols // 32), 0
        for first in range(0, groups, 4):
            block = min(4, groups - first)
            multipliers = at
            at += up(16 * block * width)
            for g in range(block):
                m = multipliers + (16 * g + row) * width
                s = 1 if width == 0 else struct.unpack_from("<e" if width == 2 else "<b", panel, m)[0]
                for k in range(min(32, cols - 32 * (first + g))):
                    part, b = k // 8, k % 8
                    if codes == 512:
                        q = panel[at + half * 256 + part * 64 + 8 * slot + b]
                        c = q - 256 if q > 127 else q
                    else:
                        q = panel[at + half * 128 + part % 2 * 64 + 8 * slot + b] >> 4 * (part // 2) & 15
                        if form == "q6":
                            q |= (panel[at + codes + 64 * half + 8 * slot + b] >> 2 * PLACE[part] & 3) << 4
                        elif form == "q5":
                            q |= (panel[at + codes + 8 * slot + b] >> 4 * half + PLACE[part] & 1) << 4
                        c = self.codebook[q] - 64 if form == "q4" else q - {"q4l": 8, "q5": 16, "q6": 32}[form]
                    yield scale * s * c
                at += codes + planes


class Tokenizer:
    def __init__(self, blob):
        self.blob, self.head = blob, struct.unpack_from("<32I", blob)
        assert blob[:4] == b"LTOK" and self.head[1] == 1 and self.head[2] == len(blob)

    def section(self, i):
        at, n = struct.unpack_from("<II", self.blob, 128 + 8 * i)
        return self.blob[at:at + n]

    def words(self, i):
        part = self.section(i)
        return struct.unpack("<%dI" % (len(part) // 4), part)

    def tokens(self):
        offsets, data = self.words(1), self.section(2)
        return [data[a:b] for a, b in zip(offsets, offsets[1:])]

    def look_up(self, units, text):
        unit = units[0]
        for byte in text:
            if unit & 256 or (unit >> 10) ^ byte >= len(units):
                return None
            unit = units[(unit >> 10) ^ byte]
            if unit == 0xFFFFFFFF or unit & 255 != byte:
                return None
        if unit & 256:
            return unit >> 10
        return units[(unit >> 10) ^ 256] if unit & 512 else None

    def merge(self, pilots, merges, left, right):
        mask, half = 2**64 - 1, 2**32 - 1
        h = (left << 32 | right) * 0x9E3779B97F4A7C15 & mask
        h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9 & mask
        h ^= h >> 32
        pilot = pilots[(h >> 32) * len(pilots) >> 32]
        low = (h & half ^ pilot * 0x85EBCA6B & half) * 0xC2B2AE35 & half
        slot = merges[4 * ((low ^ low >> 15) * (len(merges) // 4) >> 32):][:4]
        return slot[2:] if slot[:2] == (left, right) else None

    def digest(self):
        tokens, flags, trie = self.tokens(), self.section(3), self.words(4)
        found = sum(1 for i, t in enumerate(tokens) if t and self.look_up(trie, t) == i)
        part = self.section(6)
        pilots, merges = struct.unpack("<%dH" % (len(part) // 2), part), self.words(7)
        pairs = [merges[i:i + 4] for i in range(0, len(merges), 4) if merges[i] != 0xFFFFFFFF]
        good = sum(1 for l, r, rank, to in pairs
                   if tuple(self.merge(pilots, merges, l, r)) == (rank, to) and tokens[to] == tokens[l] + tokens[r])
        return {"ids": self.head[3], "present": sum(f & 1 for f in flags), "in_trie": found, "merges": len(pairs),
                "merges_found": good, "bytes": hashlib.sha256(b"".join(tokens)).hexdigest()}


def main():
    file = File(open(sys.argv[1], "rb").read())
    tensors = []
    for name, form, rows, cols, values in file.tensors():
        total = square = 0.0
        for v in values:
            total, square = total + v, square + v * v
        tensors.append({"name": name, "format": form, "rows": rows, "cols": cols, "sum": total, "square": square})
    tokenizer = file.sections.get("tokenizer")
    print(json.dumps({"kind": file.kind, "hash": file.hash, "sections": file.counts, "meta": file.meta(),
                      "tensors": tensors, "tokenizer": Tokenizer(tokenizer).digest() if tokenizer else None}))


main()
