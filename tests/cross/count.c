/* QEMU plugin: how many guest instructions ran, in all and by function. For programs and for boards (QEMU 7.2, API 1).
 *   cc -O2 -shared -fPIC -o count.so tests/cross/count.c
 *   qemu-system-arm … -plugin ./count.so,top=10 -d plugin     (qemu-aarch64 and others alike)
 * One program and one input give one number, on any machine. Debian has no header for this interface: what is used of it
 * stands here. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*f)(uint64_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_atexit_cb(uint64_t id, void (*f)(uint64_t id, void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, int add, void *counter, uint64_t by);
void qemu_plugin_outs(const char *text);

#define PUBLIC __attribute__((visibility("default")))
PUBLIC int qemu_plugin_version = 1;

enum { MOST = 4096 };
static struct { const char *name; uint64_t count; } functions[MOST];
static size_t known;
static int top = 0;

/* One processor translates at a time on the boards and programs this is for: no lock. */
static uint64_t *counter(const char *name) {
    for (size_t i = 0; i < known; i++)
        if (!strcmp(functions[i].name, name)) return &functions[i].count;
    if (known == MOST) return &functions[0].count;
    functions[known].name = strdup(name);
    return &functions[known++].count;
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        const char *name = qemu_plugin_insn_symbol(insn);
        qemu_plugin_register_vcpu_insn_exec_inline(insn, 0, counter(name && *name ? name : "(no symbol)"), 1);
    }
}

static int by_count(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)((const char *)a + sizeof(char *)), y = *(const uint64_t *)((const char *)b + sizeof(char *));
    return x < y ? 1 : x > y ? -1 : 0;
}

static void ended(uint64_t id, void *data) {
    char line[512];
    uint64_t sum = 0;
    (void)id, (void)data;
    for (size_t i = 0; i < known; i++) sum += functions[i].count;
    snprintf(line, sizeof line, "instructions %llu\n", (unsigned long long)sum);
    qemu_plugin_outs(line);
    qsort(functions, known, sizeof functions[0], by_count);
    for (size_t i = 0; i < known && (int)i < top; i++) {
        snprintf(line, sizeof line, "  %14llu %s\n", (unsigned long long)functions[i].count, functions[i].name);
        qemu_plugin_outs(line);
    }
}

PUBLIC int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "top=", 4)) top = atoi(argv[i] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
