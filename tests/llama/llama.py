"""llama.cpp's C interface, as the Python module xllamacpp carries it, called through ctypes.

The module's own interface is a server that leaves tokens inside of characters out of its answers; the C functions give the
logits themselves. Parameter structs are passed as the defaults that the library fills in, as memory with room to spare; only
fields whose place has never changed are set, and what they did is asked for afterwards.
"""
import ctypes as C

import numpy as np
import xllamacpp.xllamacpp as module

LIB = C.CDLL(module.__file__)
QUIET = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)


class Params(C.Structure):
    """Any parameter struct, and room for what later versions append."""
    _fields_ = [("words", C.c_uint32 * 256)]


class Batch(C.Structure):
    _fields_ = [("n_tokens", C.c_int32), ("token", C.POINTER(C.c_int32)), ("embd", C.c_void_p), ("pos", C.POINTER(C.c_int32)),
                ("n_seq_id", C.POINTER(C.c_int32)), ("seq_id", C.POINTER(C.POINTER(C.c_int32))), ("logits", C.POINTER(C.c_int8))]


def function(name, result, *arguments):
    f = getattr(LIB, name)
    f.restype, f.argtypes = result, arguments
    return f


POINTER = C.c_void_p
backend_init = function("llama_backend_init", None)
log_set = function("llama_log_set", None, QUIET, POINTER)
model_defaults = function("llama_model_default_params", Params)
context_defaults = function("llama_context_default_params", Params)
model_load = function("llama_model_load_from_file", POINTER, C.c_char_p, Params)
model_free = function("llama_model_free", None, POINTER)
context_new = function("llama_init_from_model", POINTER, POINTER, Params)
context_free = function("llama_free", None, POINTER)
context_size = function("llama_n_ctx", C.c_uint32, POINTER)
set_threads = function("llama_set_n_threads", None, POINTER, C.c_int32, C.c_int32)
model_vocab = function("llama_model_get_vocab", POINTER, POINTER)
vocab_size = function("llama_vocab_n_tokens", C.c_int32, POINTER)
embedding_size = function("llama_model_n_embd", C.c_int32, POINTER)
set_embeddings = function("llama_set_embeddings", None, POINTER, C.c_bool)
set_causal = function("llama_set_causal_attn", None, POINTER, C.c_bool)
memory = function("llama_get_memory", POINTER, POINTER)
memory_cut = function("llama_memory_seq_rm", C.c_bool, POINTER, C.c_int32, C.c_int32, C.c_int32)
memory_clear = function("llama_memory_clear", None, POINTER, C.c_bool)
batch_init = function("llama_batch_init", Batch, C.c_int32, C.c_int32, C.c_int32)
batch_free = function("llama_batch_free", None, Batch)
encode = function("llama_encode", C.c_int32, POINTER, Batch)
decode = function("llama_decode", C.c_int32, POINTER, Batch)
logits_of = function("llama_get_logits_ith", C.POINTER(C.c_float), POINTER, C.c_int32)
embeddings_of = function("llama_get_embeddings_ith", C.POINTER(C.c_float), POINTER, C.c_int32)
tokenize = function("llama_tokenize", C.c_int32, POINTER, C.c_char_p, C.c_int32, C.POINTER(C.c_int32), C.c_int32, C.c_bool, C.c_bool)

MESSAGES = []
KEEP = QUIET(lambda level, text, data: MESSAGES.append(text.decode(errors="replace").strip()) if level >= 3 else None)
log_set(KEEP, None)
backend_init()


class Llama:
    """A GGUF file in llama.cpp: plain attention, keys and values cached as float32."""

    def __init__(self, path, context, threads=1):
        MESSAGES.clear()
        self.model = model_load(path.encode(), model_defaults())
        if not self.model:
            raise RuntimeError("; ".join(MESSAGES[-2:]) or "not loaded")
        params = context_defaults()
        # n_ctx, n_batch and n_ubatch come first. Four enumerations are "by the model" (-1), flash attention, which is less
        # exact, the last. The types of keys and values are the two adjacent ones (F16) behind the floats; 0 is F32.
        params.words[0] = params.words[1] = params.words[2] = context
        words = list(params.words[:40])
        enums = next(i for i in range(37) if words[i:i + 4] == [0xffffffff] * 4)
        params.words[enums + 3] = 0
        floats = max(i for i, w in enumerate(words) if w == 0xbf800000)
        types = next(i for i in range(floats, 39) if words[i:i + 2] == [1, 1])
        params.words[types] = params.words[types + 1] = 0
        self.context = context_new(self.model, params)
        if not self.context or context_size(self.context) != context:
            raise RuntimeError("no context of the size asked for: " + "; ".join(MESSAGES[-2:]))
        set_threads(self.context, threads, threads)
        self.vocab = model_vocab(self.model)
        self.tokens, self.hidden = vocab_size(self.vocab), embedding_size(self.model)

    def close(self):
        context_free(self.context)
        model_free(self.model)

    def forget(self):
        if memory(self.context):
            memory_clear(memory(self.context), True)

    def cut(self, position):
        """Forgets the positions from one on."""
        assert memory_cut(memory(self.context), 0, position, -1), "not forgotten"

    def _run(self, ids, start, call, read, width):
        batch = batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, start + i, 1, 0, 1
        failed = call(self.context, batch)
        batch_free(batch)
        if failed:
            raise RuntimeError(f"llama.cpp returned {failed}: " + "; ".join(MESSAGES[-2:]))
        return np.array([np.ctypeslib.as_array(read(self.context, i), (width,)).copy() for i in range(len(ids))]) if read else None

    def logits(self, ids, start=0):
        """[tokens, vocabulary] of ids at the positions from start on, after whatever stands before."""
        if start == 0:
            self.forget()
        return self._run(ids, start, decode, logits_of, self.tokens)

    def seq2seq_logits(self, ids, decoder_ids):
        """[decoder tokens, vocabulary]."""
        self.forget()
        self._run(ids, 0, encode, None, 0)
        return self._run(decoder_ids, 0, decode, logits_of, self.tokens)

    def hidden_states(self, ids):
        """[tokens, hidden] of an encoder."""
        set_embeddings(self.context, True)
        return self._run(ids, 0, encode, embeddings_of, self.hidden)

    def greedy(self, ids, n):
        """The n most likely tokens, and at each step the logits."""
        out, rows, feed, start = [], [], ids, 0
        for _ in range(n):
            rows.append(self.logits(feed, start)[-1])
            start += len(feed)
            out.append(int(rows[-1].argmax()))
            feed = out[-1:]
        return out, np.array(rows)

    def tokenize(self, text, special=True):
        """Token ids of a text, with the tokens that stand around it."""
        raw = text.encode()
        room = (C.c_int32 * (len(raw) + 16))()
        n = tokenize(self.vocab, raw, len(raw), room, len(room), special, False)
        return list(room[:n])
