/* Reads the NoCloud seed (an ISO9660 volume labelled cidata) and applies it. The seed's bytes come from the
 * host, which the guest has to trust anyway; a seed that is wrong is reported, never fatal. Called once by
 * init. */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include <stdio.h>

#include "probe.h"

#define SEED_DIR "/run/seed"
#define SEED_MAX (1 << 20)
/* ECMA-119 8.4: the primary volume descriptor is sector 16 of 2048 bytes, its volume identifier 32 bytes from
 * byte 40. */
#define PVD_OFFSET 32768

static bool is_cidata(const char *device)
{
    char path[80], pvd[80] = {0};
    snprintf(path, sizeof path, "/dev/%.60s", device);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    ssize_t n = pread(fd, pvd, 72, PVD_OFFSET);
    close(fd);
    if (n != 72 || memcmp(pvd, "\001CD001\001", 7))
        return false;
    for (int i = 71; i >= 40 && pvd[i] == ' '; i--)
        pvd[i] = 0;
    return !strcasecmp(pvd + 40, "cidata");
}

static bool find_seed(char device[32])
{
    static const char *const kinds[] = {"vd", "sr", "sd", "nvme"};
    char **names;
    int count = list_dir("/sys/block", &names);
    bool found = false;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds && !found; k++)
        for (int i = 0; i < count && !found; i++)
            if (!strncmp(names[i], kinds[k], strlen(kinds[k])) && is_cidata(names[i])) {
                snprintf(device, 32, "%.31s", names[i]);
                found = true;
            }
    free_names(names, count);
    return found;
}

bool seed_present(void)
{
    char device[32];
    return find_seed(device);
}

void add_error(struct buf *errors, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (errors->len)
        buf_str(errors, ",");
    buf_json(errors, text);
    fprintf(stderr, "probe: seed: %s\n", text);
}

/* `key: value` lines, the other form meta-data comes in. Anything deeper is not understood and said to be so.
 */
static struct json *simple_yaml(char *text, struct buf *errors)
{
    struct json *object = xcalloc(1, sizeof *object), **tail = &object->child;
    object->kind = JSON_OBJECT;
    for (char *line = strtok(text, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        char *colon = strchr(line, ':');
        if (*line == '#' || !strcmp(line, "---") || !*line)
            continue;
        if (!colon || *line == ' ' || (colon[1] && colon[1] != ' ')) {
            add_error(errors, "meta-data: a line is no `key: value`");
            continue;
        }
        *colon++ = 0;
        colon += strspn(colon, " ");
        size_t n = strlen(colon);
        while (n && colon[n - 1] == ' ')
            colon[--n] = 0;
        if (n >= 2 && (*colon == '"' || *colon == '\'') && colon[n - 1] == *colon) {
            colon[n - 1] = 0;
            colon++;
        }
        struct json *v = xcalloc(1, sizeof *v);
        v->kind = JSON_STRING;
        v->text = strdup(colon);
        v->key = strdup(line);
        *tail = v;
        tail = &v->next;
    }
    return object;
}

static struct json *load(const char *name, bool yaml_lines, struct buf *errors)
{
    struct buf text = {0};
    struct json *v = NULL;
    const char *why = "";
    if (!read_file(&text, SEED_MAX, SEED_DIR "/%s", name)) {
        add_error(errors, "%s: missing", name);
    } else if (yaml_lines && text.data[strspn(text.data, " \t\r\n")] != '{') {
        v = simple_yaml(text.data, errors);
    } else if (!(v = json_parse(text.data, text.len, &why))) {
        add_error(errors, "%s: %s", name, why);
    }
    buf_free(&text);
    return v;
}

static void apply_hostname(const struct json *meta, struct buf *errors)
{
    const char *name = json_text(meta, "local-hostname");
    if (!name)
        name = json_text(meta, "hostname");
    if (name && sethostname(name, strlen(name)))
        add_error(errors, "meta-data: the host name cannot be set");
}

static void read_seed(struct buf *state, struct buf *network, struct buf *errors)
{
    struct json *meta = load("meta-data", true, errors);
    if (meta) {
        apply_hostname(meta, errors);
        buf_str(state, ",\"meta_data\":");
        json_write(state, meta);
        const char *id = json_text(meta, "instance-id");
        if (id) {
            buf_str(state, ",\"instance_id\":");
            buf_json(state, id);
        }
        json_free(meta);
    }
    struct buf user = {0};
    if (read_file(&user, SEED_MAX, SEED_DIR "/user-data"))
        buf_printf(state, ",\"user_data\":{\"bytes\":%zu,\"crc32\":\"%08x\",\"cloud_config\":%s}", user.len,
                   crc32_of(0, user.data, user.len),
                   strncmp(user.data, "#cloud-config", 13) ? "false" : "true");
    else
        add_error(errors, "user-data: missing");
    buf_free(&user);
    if (access(SEED_DIR "/network-config", F_OK) == 0) {
        struct json *config = load("network-config", false, errors);
        if (config)
            network_apply(config, network, errors);
        json_free(config);
    }
}

void seed_apply(void)
{
    char device[32] = "", path[64];
    struct buf state = {0}, network = {0}, errors = {0};
    bool found = find_seed(device);
    buf_printf(&state, "{\"found\":%s", found ? "true" : "false");
    if (found) {
        buf_printf(&state, ",\"device\":\"%s\"", device);
        snprintf(path, sizeof path, "/dev/%s", device);
        mkdir(SEED_DIR, 0700);
        if (mount(path, SEED_DIR, "iso9660", MS_RDONLY | MS_NOEXEC | MS_NODEV, "") == 0) {
            read_seed(&state, &network, &errors);
            /* Let go of the device: the host may want to take it away. */
            umount(SEED_DIR);
        } else {
            add_error(&errors, "%s cannot be mounted", device);
        }
    }
    buf_printf(&state, ",\"network\":[%s],\"errors\":[%s]}", network.len ? network.data : "",
               errors.len ? errors.data : "");
    mkdir(STATE_DIR, 0700);
    write_file(SEED_STATE, state.data);
    buf_free(&state);
    buf_free(&network);
    buf_free(&errors);
}
