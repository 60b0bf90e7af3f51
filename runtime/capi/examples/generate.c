/* generate MODEL.lpk PROMPT: continues a prompt. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora_runtime.h"

static lora_decoder decoder;

static int32_t print(void *user, uint32_t id) {
    char piece[512];
    size_t len;
    (void)user;
    return lora_decoder_push(&decoder, id, piece, sizeof piece, &len, NULL) || fwrite(piece, 1, len, stdout) != len;
}

static int answer(const lora_model *model, const char *prompt, lora_error *error) {
    uint32_t ids[256], *scratch;
    size_t count, bytes, words = lora_encode_words(model, strlen(prompt), 256);
    lora_config config;
    lora_session *session = NULL;
    void *memory = NULL;
    int status = lora_config_init(model, 256, 32, &config, error) || lora_session_bytes(model, &config, &bytes, error);
    if (status) return status;
    memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    scratch = malloc(words * sizeof *scratch + 1);
    if (!memory || !scratch) return puts("out of memory");
    status = lora_encode(model, prompt, strlen(prompt), 0, scratch, words, ids, NULL, NULL, 256, &count, error) ||
             lora_session_open(model, &config, 2, memory, bytes, &session, error) ||
             lora_decoder_init(&decoder, model, 1, error) ||
             lora_generate(session, ids, count, 64, NULL, NULL, print, NULL, NULL, error);
    lora_session_close(session);
    free(memory);
    free(scratch);
    return status;
}

int main(int argc, char **argv) {
    lora_model model;
    lora_error error;
    char message[256];
    if (argc != 3) return fprintf(stderr, "usage: generate MODEL.lpk PROMPT\n"), 2;
    int status = lora_model_open_file(&model, argv[1], &error);
    if (!status) {
        status = answer(&model, argv[2], &error);
        lora_model_close(&model);
    }
    puts("");
    if (status) {
        lora_error_message(&error, message, sizeof message);
        fprintf(stderr, "error: %s\n", message);
    }
    return status != 0;
}
