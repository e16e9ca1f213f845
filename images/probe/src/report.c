/* The report: what this guest sees of its machine, read from the kernel each time it is asked for. */
#include "probe.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#define CPU_DIR "/sys/devices/system/cpu"
#define NODE_DIR "/sys/devices/system/node"

static int by_length_then_name(const void *a, const void *b)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    size_t m = strlen(x), n = strlen(y);
    return m != n ? (m < n ? -1 : 1) : strcmp(x, y);
}

int list_dir(const char *path, char ***names)
{
    int count = 0, room = 0;
    *names = NULL;
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        if (count == room) {
            room = room ? room * 2 : 16;
            *names = realloc(*names, (size_t)room * sizeof **names);
            if (!*names)
                die("out of memory");
        }
        (*names)[count++] = strdup(e->d_name);
    }
    closedir(dir);
    if (count)
        qsort(*names, (size_t)count, sizeof **names, by_length_then_name);
    return count;
}

void free_names(char **names, int count)
{
    for (int i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* The number after a prefix, as in cpu12 or node0; -1 when the name is not of that kind. */
static int numbered(const char *name, const char *prefix)
{
    size_t n = strlen(prefix);
    uint64_t value;
    return !strncmp(name, prefix, n) && parse_u64(name + n, 1 << 16, &value) ? (int)value : -1;
}

static int node_of_cpu(int cpu)
{
    char path[64], **names;
    snprintf(path, sizeof path, CPU_DIR "/cpu%d", cpu);
    int count = list_dir(path, &names), node = -1;
    for (int i = 0; i < count && node < 0; i++)
        node = numbered(names[i], "node");
    free_names(names, count);
    return node;
}

static void proc_field(const char *path, const char *field, char *out, size_t size)
{
    struct buf text = {0};
    out[0] = 0;
    if (read_file(&text, 1 << 20, "%s", path)) {
        char *at = strstr(text.data, field);
        if (at) {
            at += strlen(field);
            at += strspn(at, " \t:");
            snprintf(out, size, "%.*s", (int)strcspn(at, "\n"), at);
        }
    }
    buf_free(&text);
}

struct cpu {
    int cpu, package, core;
};

/* Counts packages, cores of the first package and threads of its first core; Bulkhead gives each VM a regular
 * shape. */
static void cpu_shape(const struct cpu *cpus, int count, int *sockets, int *cores, int *threads)
{
    *sockets = *cores = *threads = 0;
    for (int i = 0; i < count; i++) {
        bool new_package = true, new_core = true;
        for (int j = 0; j < i; j++) {
            new_package &= cpus[j].package != cpus[i].package;
            new_core &= cpus[j].package != cpus[i].package || cpus[j].core != cpus[i].core;
        }
        *sockets += new_package;
        *cores += new_core && cpus[i].package == cpus[0].package;
        *threads += cpus[i].package == cpus[0].package && cpus[i].core == cpus[0].core;
    }
}

static void report_cpus(struct buf *b)
{
    char **names, model[128];
    int dirs = list_dir(CPU_DIR, &names), count = 0, sockets, cores, threads;
    struct cpu *cpus = xcalloc((size_t)dirs + 1, sizeof *cpus);
    for (int i = 0; i < dirs; i++) {
        int n = numbered(names[i], "cpu");
        /* cpu0 often has no `online` file: it cannot be taken away. */
        if (n < 0 || read_number(1, CPU_DIR "/cpu%d/online", n) != 1)
            continue;
        cpus[count++] = (struct cpu){
            n,
            (int)read_number(-1, CPU_DIR "/cpu%d/topology/physical_package_id", n),
            (int)read_number(-1, CPU_DIR "/cpu%d/topology/core_id", n),
        };
    }
    free_names(names, dirs);
    cpu_shape(cpus, count, &sockets, &cores, &threads);
    proc_field("/proc/cpuinfo", "model name", model, sizeof model);
    buf_printf(b, "{\"online\":%d,\"sockets\":%d,\"cores_per_socket\":%d,\"threads_per_core\":%d,\"model\":",
               count, sockets, cores, threads);
    buf_json(b, model);
    buf_str(b, ",\"per_cpu\":[");
    for (int i = 0; i < count; i++)
        buf_printf(b, "%s{\"cpu\":%d,\"package\":%d,\"core\":%d,\"node\":%d}", i ? "," : "", cpus[i].cpu,
                   cpus[i].package, cpus[i].core, node_of_cpu(cpus[i].cpu));
    buf_str(b, "]}");
    free(cpus);
}

static void report_nodes(struct buf *b)
{
    char **names, cpus[256], memory[64], path[64];
    int dirs = list_dir(NODE_DIR, &names), shown = 0;
    buf_str(b, "[");
    for (int i = 0; i < dirs; i++) {
        int n = numbered(names[i], "node");
        if (n < 0)
            continue;
        read_line(cpus, sizeof cpus, NODE_DIR "/node%d/cpulist", n);
        snprintf(path, sizeof path, NODE_DIR "/node%d/meminfo", n);
        proc_field(path, "MemTotal", memory, sizeof memory);
        buf_printf(b, "%s{\"node\":%d,\"cpus\":", shown++ ? "," : "", n);
        buf_json(b, cpus);
        buf_printf(b, ",\"memory_kib\":%lld}", atoll(memory));
    }
    buf_str(b, "]");
    free_names(names, dirs);
}

static void report_seed(struct buf *b)
{
    struct buf state = {0};
    const char *why;
    struct json *seed =
        read_file(&state, 1 << 21, SEED_STATE) ? json_parse(state.data, state.len, &why) : NULL;
    const char *id = json_text(seed, "instance_id");
    buf_str(b, ",\"instance_id\":");
    if (id)
        buf_json(b, id);
    else
        buf_str(b, "null");
    buf_str(b, ",\"seed\":");
    if (seed)
        json_write(b, seed);
    else
        buf_str(b, "{\"found\":false,\"network\":[],\"errors\":[\"init has left no record\"]}");
    json_free(seed);
    buf_free(&state);
}

void report_write(struct buf *b, double ready_s)
{
    struct utsname name;
    char memory[64];
    uname(&name);
    proc_field("/proc/meminfo", "MemTotal", memory, sizeof memory);
    buf_str(b, "{\"hostname\":");
    buf_json(b, name.nodename);
    report_seed(b);
    buf_str(b, ",\"cpus\":");
    report_cpus(b);
    buf_str(b, ",\"numa_nodes\":");
    report_nodes(b);
    buf_printf(b, ",\"memory_kib\":%lld,\"pci\":", atoll(memory));
    report_pci(b);
    buf_str(b, ",\"disks\":");
    report_disks(b);
    buf_str(b, ",\"network\":");
    report_network(b);
    buf_str(b, ",\"kernel\":");
    buf_json(b, name.release);
    buf_printf(b, ",\"boot_s\":%.2f}", ready_s);
}
