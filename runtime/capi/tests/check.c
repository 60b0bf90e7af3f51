/* check MODEL.lpk TEXT: uses every function of the header, with good and with bad arguments. Prints the continuation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora_runtime.h"

#define CHECK(what) do { if (!(what)) { printf("line %d: %s\n", __LINE__, #what); return 1; } } while (0)

_Static_assert(sizeof(lora_token) == 20, "tokens are packed");

struct sink { lora_decoder decoder; char text[1024]; size_t len; uint32_t ids[256]; size_t count; };

static int32_t collect(void *user, uint32_t id) {
    struct sink *s = user;
    size_t n;
    s->ids[s->count++] = id;
    if (lora_decoder_push(&s->decoder, id, s->text + s->len, sizeof s->text - s->len, &n, NULL)) return 1;
    s->len += n;
    return 0;
}

static int bad_arguments(const lora_model *model, lora_session *session) {
    lora_error e;
    lora_model other;
    lora_info info;
    lora_config config;
    lora_text text;
    lora_rows rows;
    lora_decoder decoder;
    size_t n;
    uint32_t id = 0, far = UINT32_MAX;
    const float *f;
    char message[128], c;
    _Alignas(64) static const char junk[128] = "not a model";
    CHECK(lora_model_open(NULL, junk, 128, &e) == LORA_NOT_LPK);
    CHECK(lora_model_open(&other, NULL, 128, &e) == LORA_NULL && e.status == LORA_NULL);
    CHECK(lora_error_message(&e, message, sizeof message) == strlen("null pointer: bytes"));
    CHECK(!strcmp(message, "null pointer: bytes"));
    CHECK(lora_error_message(&e, message, 5) == strlen("null pointer: bytes") && !strcmp(message, "null"));
    CHECK(lora_error_message(&e, NULL, 0) == strlen("null pointer: bytes") && lora_error_message(NULL, message, 9) == 0);
    CHECK(lora_model_open(&other, junk + 1, 100, &e) == LORA_NOT_LPK && lora_model_open(&other, junk, 0, NULL) != LORA_OK);
    CHECK(lora_model_open_file(&other, NULL, &e) == LORA_NULL && lora_model_open_file(NULL, "/", NULL) != LORA_OK);
    CHECK(lora_model_open_file(&other, "/no/such/file", &e) == LORA_IO && e.found == 2);
    lora_model_close(NULL);
    lora_session_close(NULL);
    CHECK(lora_model_info(NULL, &info, &e) == LORA_NULL && lora_model_info(model, NULL, &e) == LORA_NULL);
    CHECK(lora_model_label(NULL, 0, &text, &e) == LORA_NULL && lora_model_label(model, 0, NULL, &e) == LORA_NULL);
    CHECK(lora_model_label(model, UINT32_MAX, &text, &e) == LORA_OK && text.len == 0);
    CHECK(lora_config_init(NULL, 1, 1, &config, &e) == LORA_NULL && lora_config_init(model, 1, 1, NULL, &e) == LORA_NULL);
    CHECK(lora_config_init(model, 64, 8, &config, &e) == LORA_OK);
    CHECK(lora_session_bytes(NULL, &config, &n, &e) == LORA_NULL && lora_session_bytes(model, NULL, &n, &e) == LORA_NULL);
    CHECK(lora_session_bytes(model, &config, NULL, &e) == LORA_NULL);
    config.kv = 77;
    CHECK(lora_session_bytes(model, &config, &n, &e) == LORA_INVALID && e.found == 77);
    CHECK(lora_session_feed(NULL, LORA_DECODE, &id, NULL, 1, 0, &e) == LORA_NULL);
    CHECK(lora_session_feed(session, LORA_DECODE, NULL, NULL, 1, 0, &e) == LORA_NULL);
    CHECK(lora_session_feed(session, LORA_DECODE, NULL, NULL, 0, 0, &e) == LORA_CAPACITY);
    CHECK(lora_session_feed(session, LORA_DECODE, &far, NULL, 1, 0, &e) == LORA_CAPACITY && e.found == UINT32_MAX);
    CHECK(lora_session_feed(session, 3, &id, NULL, 1, 0, &e) == LORA_INVALID);
    CHECK(lora_session_feed(session, LORA_DECODE, &id, NULL, 1, UINT32_MAX, NULL) == LORA_CAPACITY);
    lora_step step = {.tokens = &id, .count = 1, .segment_count = 1};
    CHECK(lora_session_run(session, LORA_DECODE, &step, &e) == LORA_NULL && !strncmp(e.what, "step.segments", e.what_len));
    step.segment_count = 65;
    step.segments = (const lora_segment[65]){{0, 0, 1}};
    CHECK(lora_session_run(session, LORA_DECODE, &step, &e) == LORA_CAPACITY && e.found == 65 && e.expected == 64);
    CHECK(lora_session_run(NULL, LORA_DECODE, &step, &e) == LORA_NULL && lora_session_run(session, LORA_DECODE, NULL, &e) == LORA_NULL);
    CHECK(lora_config_selftest(NULL, 1, &config, &e) == LORA_NULL && lora_config_selftest(model, 1, NULL, &e) == LORA_NULL);
    CHECK(lora_selftest(NULL, NULL, &e) == LORA_NULL);
    CHECK(lora_session_output(session, LORA_DECODE, NULL, &rows, &e) == LORA_NULL);
    CHECK(lora_session_output(session, LORA_DECODE, "logits", NULL, &e) == LORA_NULL);
    CHECK(lora_session_output(session, LORA_DECODE, "nothing", &rows, &e) == LORA_MISMATCH);
    CHECK(lora_session_output(session, LORA_ENCODE, "logits", &rows, &e) == LORA_MISMATCH);
    CHECK(lora_encode_words(NULL, 5, 5) == 0);
    CHECK(lora_encode(model, NULL, 3, 0, &id, 1, NULL, NULL, NULL, 0, &n, &e) == LORA_NULL);
    CHECK(lora_encode(model, "x", 1, 0, &id, 1, NULL, NULL, NULL, 0, NULL, &e) == LORA_NULL);
    CHECK(lora_encode(model, "x", 1, 0, &id, 1, NULL, NULL, NULL, 4, &n, &e) == LORA_TOO_SMALL);
    CHECK(lora_encode(model, "\xff", 1, 0, &id, 1, NULL, NULL, NULL, 0, &n, &e) == LORA_INVALID);
    CHECK(lora_decoder_init(NULL, model, 1, &e) == LORA_NULL && lora_decoder_init(&decoder, NULL, 1, &e) == LORA_NULL);
    CHECK(lora_decoder_init(&decoder, model, 1, &e) == LORA_OK);
    CHECK(lora_decoder_push(NULL, 0, &c, 1, &n, &e) == LORA_NULL && lora_decoder_push(&decoder, 0, &c, 1, NULL, &e) == LORA_NULL);
    CHECK(lora_decoder_finish(&decoder, NULL, 1, &n, &e) == LORA_NULL);
    CHECK(lora_choose(NULL, NULL, NULL, &id, &e) == LORA_NULL && lora_generate(NULL, &id, 1, 1, NULL, NULL, NULL, NULL, NULL, &e) == LORA_NULL);
    CHECK(lora_classify(session, &id, NULL, 1, &id, &f, &n, &e) == LORA_MISMATCH);
    CHECK(lora_tag(session, &id, NULL, 1, &id, NULL, &e) == LORA_NULL);
    CHECK(lora_embed(session, &id, NULL, 1, NULL, &n, &e) != LORA_OK);
    return 0;
}

int main(int argc, char **argv) {
    static struct sink sink;
    lora_model model;
    lora_error e;
    lora_info info;
    lora_config config;
    lora_session *session = NULL;
    lora_rows rows;
    uint32_t ids[96], types[96], id;
    lora_token tokens[96];
    size_t n, bytes, words;
    int32_t ending = -1;
    CHECK(argc == 3);
    CHECK(lora_model_open_file(&model, argv[1], &e) == LORA_OK);
    CHECK(lora_model_info(&model, &info, NULL) == LORA_OK && info.task == LORA_TASK_CAUSAL_LM && info.vocab > 100);
    CHECK(lora_config_init(&model, 96, 8, &config, &e) == LORA_OK && config.context == 96 && config.tokens == 8);
    CHECK(lora_session_bytes(&model, &config, &bytes, &e) == LORA_OK);
    char *memory = aligned_alloc(64, bytes + 64);
    CHECK(memory);
    CHECK(lora_session_open(&model, &config, 1, memory, bytes - 1, &session, &e) == LORA_TOO_SMALL && e.expected == bytes);
    CHECK(!session);
    CHECK(lora_session_open(&model, &config, 1, memory + 8, bytes, &session, &e) == LORA_MISALIGNED);
    CHECK(lora_session_open(&model, &config, 1, NULL, bytes, &session, &e) == LORA_NULL);
    CHECK(lora_session_open(&model, &config, 1, memory, bytes, NULL, &e) == LORA_NULL);
    CHECK(lora_session_open(&model, &config, 1, memory, bytes, &session, &e) == LORA_OK && session);
    if (bad_arguments(&model, session)) return 1;

    words = lora_encode_words(&model, strlen(argv[2]), 96);
    uint32_t *scratch = malloc(words * sizeof *scratch);
    CHECK(words && scratch);
    CHECK(lora_encode(&model, argv[2], strlen(argv[2]), 0, scratch, words, ids, types, tokens, 96, &n, &e) == LORA_OK && n > 3);
    CHECK(tokens[n - 1].id == ids[n - 1] && tokens[n - 1].end == strlen(argv[2]) && types[0] == 0);
    CHECK(lora_decoder_init(&sink.decoder, &model, 1, &e) == LORA_OK);
    CHECK(lora_generate(session, ids, n, 48, NULL, NULL, collect, &sink, &ending, &e) == LORA_OK && ending == LORA_END_EOS);
    CHECK(lora_decoder_finish(&sink.decoder, sink.text + sink.len, sizeof sink.text - sink.len, &bytes, &e) == LORA_OK);
    sink.len += bytes;

    /* The packer's bits, in steps of three tokens; the session above has room for them too. */
    uint64_t digest = 0, other = 1;
    CHECK(lora_selftest(session, &digest, &e) == LORA_OK && digest);
    lora_session_close(session);
    CHECK(lora_config_selftest(&model, 3, &config, &e) == LORA_OK && config.tokens == 3);
    CHECK(lora_session_bytes(&model, &config, &bytes, &e) == LORA_OK);
    void *small = aligned_alloc(64, (bytes + 63) / 64 * 64);
    CHECK(small && lora_session_open(&model, &config, 1, small, bytes, &session, &e) == LORA_OK);
    CHECK(lora_selftest(session, &other, &e) == LORA_OK && other == digest && lora_selftest(session, NULL, &e) == LORA_OK);
    lora_session_close(session);
    free(small);
    CHECK(lora_config_init(&model, 96, 8, &config, &e) == LORA_OK);

    /* The same by hand, with two threads, and the last step through the general function. */
    CHECK(lora_session_bytes(&model, &config, &bytes, &e) == LORA_OK);
    CHECK(lora_session_open(&model, &config, 2, memory, bytes, &session, &e) == LORA_OK);
    CHECK(lora_session_feed(session, LORA_DECODE, ids, NULL, n - 1, 0, &e) == LORA_OK);
    lora_segment segment = {0, (uint32_t)n - 1, 1};
    uint32_t row = 0;
    lora_step step = {.tokens = ids + n - 1, .count = 1, .segments = &segment, .segment_count = 1, .outputs = &row, .output_count = 1};
    CHECK(lora_session_run(session, LORA_DECODE, &step, &e) == LORA_OK);
    CHECK(lora_session_output(session, LORA_DECODE, "logits", &rows, &e) == LORA_OK && rows.rows == 1 && rows.width == info.vocab);
    uint32_t best = 0;
    for (uint32_t i = 1; i < rows.width; i++) if (rows.data[i] > rows.data[best]) best = i;
    CHECK(best == sink.ids[0]);
    CHECK(lora_choose(session, NULL, NULL, &id, &e) == LORA_OK && id == best);
    lora_sampling sampling = {1.0f, 0.9f, 0.0f, 5};
    uint64_t seed = 7, same = 7;
    uint32_t first, second;
    CHECK(lora_session_feed(session, LORA_DECODE, ids, NULL, n, 0, &e) == LORA_OK && lora_choose(session, &sampling, &seed, &first, &e) == LORA_OK);
    CHECK(lora_session_feed(session, LORA_DECODE, ids, NULL, n, 0, &e) == LORA_OK && lora_choose(session, &sampling, &same, &second, &e) == LORA_OK);
    CHECK(first == second && seed == same && seed != 7);
    lora_session_close(session);
    free(scratch);
    free(memory);
    lora_model_close(&model);
    printf("%.*s\n", (int)sink.len, sink.text);
    return 0;
}
