/* lora_runtime.h: runs .lpk models. C interface, version 0. (Its declarations are generated: tests/header.rs.)
 *
 * Memory. Nothing is allocated but for files and threads: models, sessions and decoders live in memory that you give. A
 * model in memory must be 64-byte aligned, stay where it is and stay unchanged while it is used.
 *
 * Errors. Functions that can fail return LORA_OK or another lora_status, and fill in the last argument where it is not
 * NULL; lora_error_message() puts it into words. After a failure the results are as before or undefined, and the
 * objects can still be used. Null pointers are refused with LORA_NULL, unless a function says what they mean.
 *
 * Threads. An open lora_model and an attached lora_adapter may be used from several threads at once: nothing changes
 * them but their closing. A lora_session and a lora_decoder belong to one thread at a time, different ones to any.
 * Nothing else is shared, and nothing is kept per thread. Opened things stay where they are: do not copy or move them.
 *
 * No panic or exception leaves the library. Where a callback does not return normally (longjmp, C++ exceptions), the
 * behaviour is undefined.
 */
#ifndef LORA_RUNTIME_H
#define LORA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ---- */

typedef int32_t lora_status;
enum {
    LORA_OK = 0,
    LORA_NOT_LPK = 1,       /* not an .lpk file at all */
    LORA_TOO_NEW = 2,       /* the file needs a newer runtime */
    LORA_TRUNCATED = 3,     /* the file ends too early */
    LORA_OUT_OF_BOUNDS = 4, /* something points outside of what it refers to */
    LORA_MISALIGNED = 5,    /* memory or data is not aligned */
    LORA_INVALID = 6,       /* a value that is not allowed */
    LORA_HASH = 7,          /* the content hash differs */
    LORA_TOO_SMALL = 8,     /* your buffer: error.found is its size, error.expected the need */
    LORA_CAPACITY = 9,      /* more than the session was opened for */
    LORA_MISMATCH = 10,     /* the request does not fit this model */
    LORA_UNSUPPORTED = 11,  /* not in this build or on this processor */
    LORA_IO = 12,           /* the system refused; error.found is its error number */
    LORA_OTHER = 99,        /* a class of errors that this header does not know */
    LORA_NULL = 100,        /* a pointer is null */
    LORA_INTERNAL = 101     /* a defect of the library */
};

typedef struct lora_error {
    lora_status status;
    int32_t reserved;
    uint64_t index;    /* number of the record, UINT64_MAX where there is none */
    uint64_t found;    /* the value found */
    uint64_t expected; /* the value, bound or size expected */
    const char *what;  /* field, table or argument; not ended by a zero */
    size_t what_len;
} lora_error;

/* Writes the error in words, ended by a zero, as far as size goes. Returns the length of the whole text. */
size_t lora_error_message(const lora_error *error, char *buffer, size_t size);

/* ---- models ---- */

#define LORA_MODEL_BYTES 2048
typedef struct lora_model {
    uint64_t opaque[LORA_MODEL_BYTES / 8];
} lora_model;

/* Text of the file: not ended by a zero, valid as long as the model. */
typedef struct lora_text {
    const char *data;
    size_t len;
} lora_text;

enum { /* lora_info.task */
    LORA_TASK_CAUSAL_LM = 1,
    LORA_TASK_SEQ_2_SEQ_LM = 2,
    LORA_TASK_SEQ_CLS = 3,
    LORA_TASK_TOKEN_CLS = 4,
    LORA_TASK_QUESTION_ANSWERING = 5,
    LORA_TASK_FEATURE_EXTRACTION = 6,
    LORA_TASK_OTHER = 7
};

enum { LORA_KV_F32 = 0, LORA_KV_F16 = 1, LORA_KV_I8 = 2 }; /* element type of the key/value cache */

typedef struct lora_info {
    uint32_t task;
    uint32_t problem;     /* how label scores are read: 0 one label, 1 several, 2 values */
    uint32_t vocab;       /* token ids are below */
    uint32_t max_positions;
    uint32_t hidden;
    uint32_t labels;
    uint32_t token_types; /* 0: the model has none */
    uint32_t kv;
    uint32_t bos;         /* UINT32_MAX: none */
    uint32_t eos_count;
    uint32_t eos[8];      /* tokens that end a text */
    lora_text architecture;
    lora_text chat_template;
} lora_info;

/* Opens a model in memory (64-byte aligned), in place. The time does not depend on the size of the weights. */
lora_status lora_model_open(lora_model *model, const void *bytes, size_t len, lora_error *error);
/* Maps a file and opens it. Not in builds without an operating system. */
lora_status lora_model_open_file(lora_model *model, const char *path, lora_error *error);
/* Ends a model, after its sessions and decoders. NULL is allowed. */
void lora_model_close(lora_model *model);
lora_status lora_model_info(const lora_model *model, lora_info *info, lora_error *error);
/* The name of a label, empty where the file names none. */
lora_status lora_model_label(const lora_model *model, uint32_t label, lora_text *name, lora_error *error);

/* ---- sessions ---- */

typedef struct lora_config {
    uint32_t context;   /* positions of a sequence that the cache holds; 0 for models that only encode */
    uint32_t tokens;    /* most tokens of one step; encoders need the whole input */
    uint32_t outputs;   /* most output rows of one step */
    uint32_t source;    /* longest encoder input that a decoder attends to, else 0 */
    uint32_t sequences; /* sequences in one session */
    uint32_t kv;        /* LORA_KV_… */
    /* Room for adapters, filled in by lora_config_allow(); all 0 without. */
    uint32_t adapters;
    uint32_t adapter_rank;
    uint32_t adapter_token_bytes;
    uint32_t adapter_output_bytes;
} lora_config;

/* One sequence of so many positions, at most step tokens at once where the model allows steps. */
lora_status lora_config_init(const lora_model *model, uint32_t positions, uint32_t step, lora_config *config,
                             lora_error *error);

typedef struct lora_session lora_session;

/* Exactly the bytes that lora_session_open() wants: one less is refused. */
lora_status lora_session_bytes(const lora_model *model, const lora_config *config, size_t *bytes, lora_error *error);
/* Opens a session in your memory (64-byte aligned), which is the session's alone until it is closed. threads counts
 * the calling thread; more than 1 only with an operating system. */
lora_status lora_session_open(const lora_model *model, const lora_config *config, uint32_t threads, void *memory,
                              size_t bytes, lora_session **session, lora_error *error);
/* Ends a session. NULL is allowed. */
void lora_session_close(lora_session *session);

enum { LORA_DECODE = 1, LORA_ENCODE = 2 }; /* which program of the model */

/* Reads tokens behind the first `past` positions of sequence 0, in steps as long as the session allows; lora_choose()
 * and lora_session_output() then see the last step. types: NULL where all are zero. */
lora_status lora_session_feed(lora_session *session, uint32_t entry, const uint32_t *tokens, const uint32_t *types,
                              size_t count, uint32_t past, lora_error *error);

typedef struct lora_segment { /* consecutive tokens of one sequence */
    uint32_t sequence;
    uint32_t past; /* positions that are in its cache already */
    uint32_t len;
} lora_segment;

typedef struct lora_set lora_set; /* below: adapters */

typedef struct lora_step { /* tokens of several sequences, one sequence after the other */
    const uint32_t *tokens;
    const uint32_t *types;        /* NULL: all zero */
    size_t count;
    const lora_segment *segments; /* how the tokens are cut into sequences: at most 64 */
    const lora_set *sets;         /* NULL: all with what lora_session_select() chose; else a set for each segment */
    size_t segment_count;
    const uint32_t *outputs;      /* the rows of `tokens` whose results are wanted */
    size_t output_count;
} lora_step;

/* Runs one step. Each sequence gets the bits that it gets alone. */
lora_status lora_session_run(lora_session *session, uint32_t entry, const lora_step *step, lora_error *error);

typedef struct lora_rows {
    const float *data;
    size_t rows;
    size_t width;
    size_t stride; /* floats from row to row */
} lora_rows;

/* A named result of the last step ("logits", "last_hidden_state", …), valid until the next call with this session. */
lora_status lora_session_output(lora_session *session, uint32_t entry, const char *name, lora_rows *rows,
                                lora_error *error);

/* A session for lora_selftest(), which reads the tokens in steps of at most `step`. */
lora_status lora_config_selftest(const lora_model *model, uint32_t step, lora_config *config, lora_error *error);
/* Whether this processor computes, to the last bit, what the packer's computed: runs the tokens that the file holds for it
 * from the start of sequence 0, and digests the results. LORA_MISMATCH where the file has another digest. digest: gets the
 * one that was computed; may be NULL. */
lora_status lora_selftest(lora_session *session, uint64_t *digest, lora_error *error);

/* ---- adapters: files beside a base, chosen for every request ---- */

#define LORA_ADAPTER_BYTES 2048
typedef struct lora_adapter {
    uint64_t opaque[LORA_ADAPTER_BYTES / 8];
} lora_adapter;

/* Checks an adapter file in memory (64-byte aligned) against its base, once. Nothing is copied. LORA_MISMATCH for an
 * adapter of another base. */
lora_status lora_adapter_attach(lora_adapter *adapter, const lora_model *model, const void *bytes, size_t len,
                                lora_error *error);
/* Maps a file and attaches it. Not in builds without an operating system. */
lora_status lora_adapter_attach_file(lora_adapter *adapter, const lora_model *model, const char *path,
                                     lora_error *error);
/* Ends an adapter. No session may have it selected any more, but to be closed. NULL is allowed. */
void lora_adapter_detach(lora_adapter *adapter);
/* The name it was packed under. */
lora_status lora_adapter_name(const lora_adapter *adapter, lora_text *name, lora_error *error);
/* The model as it is while the adapter acts, for lora_model_info(), lora_model_label() and lora_encode(): its task,
 * labels, template, tokenizer. Valid as long as both. */
lora_status lora_model_with_adapter(lora_model *seen, const lora_model *model, const lora_adapter *adapter,
                                    lora_error *error);

typedef struct lora_active { /* an adapter that acts */
    const lora_adapter *adapter;
    float weight;  /* factor of its update; other than 1 is refused for adapters with magnitudes or biases */
    uint32_t from; /* first position at which it acts: 0, or as lora_adapter_acts_from() says */
} lora_active;

/* For adapters that act from certain tokens of the prompt on (activated LoRA): from where; 0 for all others,
 * UINT32_MAX where the tokens do not occur. */
lora_status lora_adapter_acts_from(const lora_adapter *adapter, const uint32_t *tokens, size_t count, uint32_t *from,
                                   lora_error *error);

/* Makes room in a configuration for requests with these adapters at once (at most 4). Call it for each set that the
 * session will use: switching between them then needs no further memory. */
lora_status lora_config_allow(lora_config *config, const lora_active *active, size_t count, lora_error *error);
/* From here on the session answers with these adapters, and with the first one's task and labels; count 0: with the
 * base alone. LORA_CAPACITY where the configuration has no room for them. A past that other adapters computed is not
 * read: start the sequence anew, or LORA_MISMATCH. */
lora_status lora_session_select(lora_session *session, const lora_active *active, size_t count, lora_error *error);

struct lora_set {
    const lora_active *active;
    size_t count; /* 0: the base */
};

/* ---- text ---- */

typedef struct lora_token {
    uint32_t id;
    uint32_t start;   /* bytes of the text */
    uint32_t end;
    uint32_t word;    /* UINT32_MAX: none */
    uint8_t sequence; /* 255: added by the model's template */
    uint8_t type_id;
    uint8_t special;
    uint8_t reserved;
} lora_token;

enum {
    LORA_NO_SPECIAL = 1,   /* add no special tokens around the text */
    LORA_PLAIN_SPECIAL = 2 /* special tokens spelled out in the text are ordinary text: for text from strangers */
};

/* Scratch words for lora_encode(); 0 for a model without a tokenizer. Texts that grow under the model's normalization
 * may need more: LORA_TOO_SMALL. */
size_t lora_encode_words(const lora_model *model, size_t text_bytes, size_t capacity);
/* Encodes UTF-8 text into at most `capacity` tokens. ids, types and tokens may each be NULL where they are not wanted. */
lora_status lora_encode(const lora_model *model, const char *text, size_t len, uint32_t flags, uint32_t *scratch,
                        size_t words, uint32_t *ids, uint32_t *types, lora_token *tokens, size_t capacity,
                        size_t *count, lora_error *error);

#define LORA_DECODER_BYTES 1536
typedef struct lora_decoder {
    uint64_t opaque[LORA_DECODER_BYTES / 8];
} lora_decoder;

/* Turns tokens into text, as soon as each piece of it is certain. A decoder needs no closing. */
lora_status lora_decoder_init(lora_decoder *decoder, const lora_model *model, int32_t skip_special, lora_error *error);
/* Writes len bytes without a final zero. Where they do not fit, LORA_TOO_SMALL, and the token was not taken. */
lora_status lora_decoder_push(lora_decoder *decoder, uint32_t id, char *buffer, size_t size, size_t *len,
                              lora_error *error);
/* Writes what was held back, and starts over. */
lora_status lora_decoder_finish(lora_decoder *decoder, char *buffer, size_t size, size_t *len, lora_error *error);

/* ---- tasks, on sequence 0 ---- */

typedef struct lora_sampling {
    float temperature; /* 0: the most likely token */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    uint32_t top_k;    /* 0: off */
} lora_sampling;

/* Chooses a token from the last step's logits, which are used up. sampling NULL: the most likely one. seed: state of
 * the random numbers, advanced by each call; the same state gives the same token everywhere. */
lora_status lora_choose(lora_session *session, const lora_sampling *sampling, uint64_t *seed, uint32_t *id,
                        lora_error *error);

/* Gets each new token; other than 0 ends the text. */
typedef int32_t (*lora_token_fn)(void *user, uint32_t id);

enum { LORA_END_EOS = 0, LORA_END_LENGTH = 1, LORA_END_CONTEXT = 2, LORA_END_STOPPED = 3 };

/* Continues a prompt (the input of the encoder, where there is one). ending, each and seed may be NULL. */
lora_status lora_generate(lora_session *session, const uint32_t *tokens, size_t count, size_t max_new,
                          const lora_sampling *sampling, uint64_t *seed, lora_token_fn each, void *user,
                          int32_t *ending, lora_error *error);
/* The best label, and the scores of all of them, valid until the next call with this session. */
lora_status lora_classify(lora_session *session, const uint32_t *tokens, const uint32_t *types, size_t count,
                          uint32_t *best, const float **scores, size_t *score_count, lora_error *error);
/* Each token's best label and its probability. */
lora_status lora_tag(lora_session *session, const uint32_t *tokens, const uint32_t *types, size_t count,
                     uint32_t *labels, float *probabilities, lora_error *error);
/* The input's vector, pooled as the model says, valid until the next call with this session. */
lora_status lora_embed(lora_session *session, const uint32_t *tokens, const uint32_t *types, size_t count,
                       const float **vector, size_t *width, lora_error *error);

#ifdef __cplusplus
}
#endif
#endif
