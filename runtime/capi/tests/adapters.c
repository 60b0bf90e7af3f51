/* Adapters through the C interface: attach, select, weigh, mix in one step, refuse. Arguments: base, adapter, an adapter
 * of another base, prompt. Prints what the base's adapter answers. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora_runtime.h"

#define CHECK(condition) do { if (!(condition)) { \
    fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); return 1; } } while (0)

static uint32_t prompt[96];
static size_t prompt_len;
static lora_model model;
static lora_adapter adapter;
static lora_config config;

struct answer { uint32_t ids[48]; size_t n; int failed; };

static int32_t collect(void *user, uint32_t id) {
    struct answer *answer = user;
    answer->ids[answer->n++] = id;
    return 0;
}

static int same(const struct answer *a, const struct answer *b) {
    return a->n == b->n && !memcmp(a->ids, b->ids, a->n * sizeof a->ids[0]);
}

static lora_session *open_session(lora_status *status) {
    size_t bytes;
    lora_session *session = NULL;
    if ((*status = lora_session_bytes(&model, &config, &bytes, NULL))) return NULL;
    *status = lora_session_open(&model, &config, 1, aligned_alloc(64, (bytes + 63) / 64 * 64), bytes, &session, NULL);
    return session;
}

/* One thread: a session of its own, model and adapter shared. */
static void *serve(void *user) {
    struct answer *answer = user;
    lora_active active = {&adapter, 1.0f, 0};
    lora_status status;
    lora_session *session = open_session(&status);
    answer->failed = status != LORA_OK || lora_session_select(session, &active, 1, NULL) != LORA_OK
        || lora_generate(session, prompt, prompt_len, 48, NULL, NULL, collect, answer, NULL, NULL) != LORA_OK;
    lora_session_close(session);
    free(session);
    return NULL;
}

static int copy_logits(lora_session *session, size_t row, float *to, size_t n) {
    lora_rows rows;
    CHECK(lora_session_output(session, LORA_DECODE, "logits", &rows, NULL) == LORA_OK && rows.width == n && row < rows.rows);
    memcpy(to, rows.data + row * rows.stride, n * sizeof(float));
    return 0;
}

int main(int argc, char **argv) {
    static struct answer base, adapted, threads[2];
    static char text[1024];
    lora_error e;
    lora_model seen;
    lora_adapter other;
    lora_info info;
    lora_text name;
    lora_status status;
    lora_decoder decoder;
    size_t words, len, used = 0;
    uint32_t from = 1;
    CHECK(argc == 5);
    CHECK(lora_model_open_file(&model, argv[1], &e) == LORA_OK && lora_model_info(&model, &info, &e) == LORA_OK);
    CHECK(lora_adapter_attach_file(&adapter, &model, "/no/such/file", &e) == LORA_IO);
    CHECK(lora_adapter_attach_file(&adapter, &model, argv[1], &e) == LORA_MISMATCH);
    CHECK(lora_adapter_attach_file(&other, &model, argv[3], &e) == LORA_MISMATCH && strstr(e.what, "another base"));
    CHECK(lora_adapter_attach_file(&adapter, &model, argv[2], &e) == LORA_OK);
    CHECK(lora_adapter_attach(&other, &model, NULL, 1, &e) == LORA_NULL);
    CHECK(lora_adapter_attach(NULL, &model, NULL, 0, &e) != LORA_OK && lora_adapter_attach(&other, NULL, NULL, 0, &e) == LORA_NULL);
    CHECK(lora_adapter_name(&adapter, &name, &e) == LORA_OK && name.len > 0 && lora_adapter_name(NULL, &name, &e) == LORA_NULL);
    CHECK(lora_model_with_adapter(&seen, &model, &adapter, &e) == LORA_OK);

    words = lora_encode_words(&seen, strlen(argv[4]), 96);
    uint32_t *scratch = malloc(words * sizeof *scratch);
    CHECK(scratch && lora_encode(&seen, argv[4], strlen(argv[4]), 0, scratch, words, prompt, NULL, NULL, 96, &prompt_len, &e) == LORA_OK);
    CHECK(lora_adapter_acts_from(&adapter, prompt, prompt_len, &from, &e) == LORA_OK && from == 0);

    /* Without room in the plan the session refuses. */
    lora_active active = {&adapter, 1.0f, 0}, half = {&adapter, 0.5f, 0}, nothing = {NULL, 1.0f, 0};
    CHECK(lora_config_init(&model, 96, 8, &config, &e) == LORA_OK && config.adapters == 0);
    lora_session *session = open_session(&status);
    CHECK(status == LORA_OK && lora_session_select(session, &active, 1, &e) == LORA_CAPACITY);
    CHECK(lora_generate(session, prompt, prompt_len, 48, NULL, NULL, collect, &base, NULL, &e) == LORA_OK);
    lora_session_close(session);
    free(session);

    lora_active many[5] = {active, active, active, active, active};
    CHECK(lora_config_allow(&config, &nothing, 1, &e) == LORA_NULL && lora_config_allow(NULL, &active, 1, &e) == LORA_NULL);
    CHECK(lora_config_allow(&config, many, 5, &e) == LORA_CAPACITY && lora_config_allow(&config, &active, 1, &e) == LORA_OK);
    config.sequences = 2;
    config.outputs = 2;
    session = open_session(&status);
    CHECK(status == LORA_OK && lora_session_select(session, NULL, 1, &e) == LORA_NULL);
    CHECK(lora_session_select(session, &active, 1, &e) == LORA_OK);
    CHECK(lora_generate(session, prompt, prompt_len, 48, NULL, NULL, collect, &adapted, NULL, &e) == LORA_OK);
    CHECK(!same(&base, &adapted));
    /* The past is the adapter's: the base does not read it. */
    CHECK(lora_session_select(session, NULL, 0, &e) == LORA_OK);
    CHECK(lora_session_feed(session, LORA_DECODE, prompt, NULL, 1, 2, &e) == LORA_MISMATCH);
    struct answer again = {.n = 0};
    CHECK(lora_generate(session, prompt, prompt_len, 48, NULL, NULL, collect, &again, NULL, &e) == LORA_OK && same(&base, &again));

    /* One step with two sequences, adapter and base: the bits of each alone; half the weight is something else. */
    size_t n = info.vocab;
    float *alone = malloc(2 * n * sizeof(float)), *mixed = malloc(2 * n * sizeof(float));
    uint32_t tokens[8], rows[2] = {3, 7};
    lora_segment segments[2] = {{0, 0, 4}, {1, 0, 4}};
    lora_set sets[2] = {{&active, 1}, {NULL, 0}};
    const lora_step one = {.tokens = tokens, .count = 4, .segments = segments, .segment_count = 1, .outputs = rows, .output_count = 1};
    const lora_step both = {.tokens = tokens, .count = 8, .segments = segments, .sets = sets, .segment_count = 2, .outputs = rows, .output_count = 2};
    CHECK(alone && mixed && prompt_len >= 4);
    memcpy(tokens, prompt, 4 * sizeof *tokens);
    memcpy(tokens + 4, prompt, 4 * sizeof *tokens);
    CHECK(lora_session_select(session, &active, 1, &e) == LORA_OK);
    CHECK(lora_session_run(session, LORA_DECODE, &one, &e) == LORA_OK && !copy_logits(session, 0, alone, n));
    CHECK(lora_session_select(session, NULL, 0, &e) == LORA_OK);
    CHECK(lora_session_run(session, LORA_DECODE, &one, &e) == LORA_OK && !copy_logits(session, 0, alone + n, n));
    CHECK(lora_session_run(session, LORA_DECODE, &both, &e) == LORA_OK);
    CHECK(!copy_logits(session, 0, mixed, n) && !copy_logits(session, 1, mixed + n, n));
    CHECK(!memcmp(alone, mixed, 2 * n * sizeof(float)) && memcmp(alone, alone + n, n * sizeof(float)));
    CHECK(lora_session_select(session, &half, 1, &e) == LORA_OK);
    CHECK(lora_session_run(session, LORA_DECODE, &one, &e) == LORA_OK && !copy_logits(session, 0, mixed, n));
    CHECK(memcmp(mixed, alone, n * sizeof(float)) && memcmp(mixed, alone + n, n * sizeof(float)));
    lora_session_close(session);
    free(session);

    /* Two threads share model and adapter. */
    pthread_t thread[2];
    for (int i = 0; i < 2; i++) CHECK(!pthread_create(&thread[i], NULL, serve, &threads[i]));
    for (int i = 0; i < 2; i++) CHECK(!pthread_join(thread[i], NULL));
    for (int i = 0; i < 2; i++) CHECK(!threads[i].failed && same(&threads[i], &adapted));

    CHECK(lora_decoder_init(&decoder, &seen, 1, &e) == LORA_OK);
    for (size_t i = 0; i < adapted.n; i++, used += len)
        CHECK(lora_decoder_push(&decoder, adapted.ids[i], text + used, sizeof text - used, &len, &e) == LORA_OK);
    CHECK(lora_decoder_finish(&decoder, text + used, sizeof text - used, &len, &e) == LORA_OK);
    printf("%.*s\n", (int)(used + len), text);
    free(scratch);
    free(alone);
    free(mixed);
    lora_adapter_detach(&adapter);
    lora_adapter_detach(NULL);
    lora_model_close(&model);
    return 0;
}
