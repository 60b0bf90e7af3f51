/* The classifier in C: start code, semihosting, and what matters (classify, run). Linked with
 * liblora_runtime.a (built without std), a model and two adapters made into object files by `lora-pack embed`, and link/board.x. */
#include <stddef.h>
#include <stdint.h>

#include "lora_runtime.h"

extern const unsigned char model[], first[], second[];
extern const size_t model_len, first_len, second_len;

static _Alignas(64) unsigned char memory[MEMORY_BYTES];

static void print(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        register size_t operation __asm__("r0") = 0x03; /* SYS_WRITEC */
        register const char *argument __asm__("r1") = text + i;
        __asm__ volatile("bkpt 0xab" : "+r"(operation) : "r"(argument) : "memory");
    }
}

static void print_bits(float value) {
    union { float f; uint32_t u; } bits = {value};
    char text[9] = " ";
    for (int i = 0; i < 8; i++) text[1 + i] = "0123456789abcdef"[bits.u >> (28 - 4 * i) & 15];
    print(text, 9);
}

static void end(size_t reason) {
    register size_t operation __asm__("r0") = 0x18; /* SYS_EXIT */
    register size_t argument __asm__("r1") = reason;
    __asm__ volatile("bkpt 0xab" : "+r"(operation) : "r"(argument) : "memory");
    for (;;) {}
}

/* Where the library ends when it finds a defect in itself. */
void abort(void) { end(0x20023); __builtin_unreachable(); }

/* Says what the texts are, by one adapter. */
static lora_status classify(lora_session *session, const lora_model *base, const lora_adapter *adapter, lora_error *error) {
    static const char texts[] = TEXTS "\n";
    static uint32_t scratch[1400], ids[48], types[48];
    static lora_model seen;
    const lora_active active = {adapter, 1.0f, 0};
    size_t count, scores_len, start = 0;
    const float *scores;
    uint32_t best;
    lora_text name;
    lora_status status;
    if ((status = lora_model_with_adapter(&seen, base, adapter, error))) return status;
    if ((status = lora_session_select(session, &active, 1, error))) return status;
    for (size_t at = 0; texts[at]; at++) {
        if (texts[at] != '\n') continue;
        if ((status = lora_encode(&seen, texts + start, at - start, 0, scratch, 1400, ids, types, NULL, 48, &count, error))) return status;
        if ((status = lora_classify(session, ids, types, count, &best, &scores, &scores_len, error))) return status;
        if ((status = lora_model_label(&seen, best, &name, error))) return status;
        print(name.data, name.len);
        for (size_t i = 0; i < scores_len; i++) print_bits(scores[i]);
        print("\n", 1);
        start = at + 1;
    }
    return LORA_OK;
}

static lora_status run(lora_error *error) {
    static lora_model opened;
    static lora_adapter adapters[2];
    const void *files[2] = {first, second};
    const size_t lens[2] = {first_len, second_len};
    lora_config config;
    lora_session *session;
    lora_status status;
    size_t bytes;
    if ((status = lora_model_open(&opened, model, model_len, error))) return status;
    if ((status = lora_config_init(&opened, 48, 48, &config, error))) return status;
    for (int i = 0; i < 2; i++) {
        if ((status = lora_adapter_attach(&adapters[i], &opened, files[i], lens[i], error))) return status;
        const lora_active active = {&adapters[i], 1.0f, 0};
        if ((status = lora_config_allow(&config, &active, 1, error))) return status;
    }
    if ((status = lora_session_bytes(&opened, &config, &bytes, error))) return status;
    if (lora_session_open(&opened, &config, 1, memory, bytes - 1, &session, error) != LORA_TOO_SMALL) return LORA_OTHER;
    if ((status = lora_session_open(&opened, &config, 1, memory, bytes, &session, error))) return status;
    for (int i = 0; i < 2; i++)
        if ((status = classify(session, &opened, &adapters[i], error))) return status;
    return LORA_OK;
}

static int start(void) {
    lora_error error;
    if (!run(&error)) return 0;
    char message[160];
    size_t len = lora_error_message(&error, message, sizeof message);
    print(message, len < sizeof message ? len : sizeof message - 1);
    return 1;
}

extern uint32_t data_start[], data_end[], data_load[], bss_start[], bss_end[], stack_top[];

__attribute__((used)) void reset(void) {
    *(volatile uint32_t *)0xe000ed88 |= 0xf00000; /* CPACR: the floating-point unit on */
    __asm__ volatile("dsb\n isb" ::: "memory");
    for (uint32_t *to = data_start, *from = data_load; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;) *to++ = 0;
    end(start() ? 0x20023 : 0x20026);
}

static void fault(void) {
    print("fault\n", 6);
    end(0x20023);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))(uintptr_t)stack_top, reset, fault, fault, fault, fault, fault, fault,
    fault, fault, fault, fault, fault, fault, fault, fault,
};
