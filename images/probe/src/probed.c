/* Answers the host's requests on the virtio-serial port, one JSON object per line, one after the other.
 * Whatever comes in, it goes on: garbage is answered with an error, a host that goes away is waited for. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "probe.h"

#define LINE_MAX_BYTES (256 * 1024)
#define RUN_TIMEOUT_S 30
#define RUN_TIMEOUT_MAX_S 3600
#define RETRY_MS 100
#define NEWS_MS 2000

struct port {
    int fd;
    double ready_s;
    struct buf line;
    bool overlong; /* the line being read is already too long: skip to its end */
};

static int open_port(void)
{
    char **names, name[64], path[96];
    int count = list_dir("/sys/class/virtio-ports", &names), fd = -1;
    for (int i = 0; i < count && fd < 0; i++) {
        read_line(name, sizeof name, "/sys/class/virtio-ports/%s/name", names[i]);
        if (strcmp(name, PORT_NAME))
            continue;
        snprintf(path, sizeof path, "/dev/%.60s", names[i]);
        fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    }
    free_names(names, count);
    return fd;
}

/* False when the host is gone before all of it was taken. A write while nobody listens would wait for ever.
 *
 * A request can be read before the kernel has heard that somebody connected: bytes and the news of the connection
 * come by queues of their own. So nobody there counts only when nobody comes for a moment.
 */
static bool send_all(int fd, const char *data, size_t len)
{
    int waited_ms = 0;
    while (len) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        poll(&p, 1, -1);
        if ((p.revents & POLLHUP) && waited_ms < NEWS_MS) {
            usleep(RETRY_MS * 1000);
            waited_ms += RETRY_MS;
            continue;
        }
        if (p.revents & (POLLHUP | POLLERR | POLLNVAL))
            return false;
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        }
    }
    return true;
}

static void op_run(struct buf *b, const struct json *request)
{
    const char *script = json_text(request, "script");
    long long timeout_s = RUN_TIMEOUT_S;
    if (!script)
        buf_str(b, "\"ok\":false,\"error\":\"script is missing\"");
    else if (json_get(request, "timeout_s") &&
             !json_int(request, "timeout_s", 1, RUN_TIMEOUT_MAX_S, &timeout_s))
        buf_str(b, "\"ok\":false,\"error\":\"timeout_s is no whole number from 1 to 3600\"");
    else
        run_script(b, script, timeout_s);
}

static void answer(struct port *port, const char *text, size_t len)
{
    const char *error = "";
    struct buf b = {0};
    struct json *request = json_parse(text, len, &error);
    const struct json *id = json_get(request, "id");
    const char *op = json_text(request, "op");
    buf_str(&b, "{\"id\":");
    if (id && (id->kind == JSON_NUMBER || id->kind == JSON_STRING))
        json_write(&b, id);
    else
        buf_str(&b, "null");
    buf_str(&b, ",");
    if (!request) {
        buf_printf(&b, "\"ok\":false,\"error\":\"not JSON: %s\"", error);
    } else if (!op) {
        buf_str(&b, "\"ok\":false,\"error\":\"op is missing\"");
    } else if (!strcmp(op, "run")) {
        op_run(&b, request);
    } else if (!strcmp(op, "report")) {
        buf_str(&b, "\"ok\":true,\"report\":");
        report_write(&b, port->ready_s);
    } else if (!strcmp(op, "ping")) {
        buf_str(&b, "\"ok\":true");
    } else {
        buf_str(&b, "\"ok\":false,\"error\":\"no such op\"");
    }
    buf_str(&b, "}\n");
    send_all(port->fd, b.data, b.len);
    buf_free(&b);
    json_free(request);
}

static void take(struct port *port, const char *data, size_t len)
{
    while (len) {
        const char *end = memchr(data, '\n', len);
        size_t n = end ? (size_t)(end - data) : len;
        if (port->line.len + n > LINE_MAX_BYTES)
            port->overlong = true;
        if (!port->overlong)
            buf_add(&port->line, data, n);
        if (!end)
            return;
        if (port->overlong) {
            static const char reply[] = "{\"id\":null,\"ok\":false,\"error\":\"the line is too long\"}\n";
            send_all(port->fd, reply, sizeof reply - 1);
        } else if (port->line.len) {
            answer(port, port->line.data, port->line.len);
        }
        port->line.len = 0;
        port->overlong = false;
        data += n + 1;
        len -= n + 1;
    }
}

static void serve(struct port *port)
{
    char chunk[32768];
    for (;;) {
        struct pollfd p = {.fd = port->fd, .events = POLLIN};
        poll(&p, 1, -1);
        ssize_t n = read(port->fd, chunk, sizeof chunk);
        if (n > 0) {
            take(port, chunk, (size_t)n);
            continue;
        }
        if (n < 0 && errno == ENODEV)
            return; /* the port was unplugged */
        if (n == 0 || (p.revents & POLLHUP)) {
            /* Nobody is at the other end: half a line will never be completed. */
            port->line.len = 0;
            port->overlong = false;
            usleep(RETRY_MS * 1000);
        }
    }
}

int probed_main(int argc, char **argv)
{
    (void)argc, (void)argv;
    struct port port = {.fd = -1};
    signal(SIGPIPE, SIG_IGN);
    mkdir(STATE_DIR, 0700);
    for (;;) {
        while ((port.fd = open_port()) < 0)
            usleep(RETRY_MS * 500);
        if (port.ready_s == 0.0) {
            port.ready_s = uptime_s();
            fprintf(stderr, "probe: ready after %.1f s\n", port.ready_s);
        }
        serve(&port);
        close(port.fd);
    }
}
