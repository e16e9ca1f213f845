/* Runs one script in a session of its own and collects what it prints. Ends it, with all its children, when
 * its time is over. Called by probed for the op "run". */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

#define OUTPUT_MAX (128 * 1024)
#define SCRIPT_FILE STATE_DIR "/script"
#define EXIT_TIMED_OUT 124 /* as timeout(1) has it */

static pid_t start(int out)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    setsid();
    int in = open("/dev/null", O_RDONLY);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    if (chdir("/tmp") == 0)
        execl("/bin/sh", "sh", SCRIPT_FILE, (char *)NULL);
    _exit(127);
}

/* Takes what is there; what is over the cap is read and dropped, so that the script never blocks on us. */
static bool drain(int fd, struct buf *out, bool *truncated)
{
    char chunk[16384];
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 && errno == EAGAIN;
        size_t room = OUTPUT_MAX - out->len, take = (size_t)n < room ? (size_t)n : room;
        buf_add(out, chunk, take);
        *truncated |= take < (size_t)n;
    }
}

/* The script's wait status; *timed_out when it had to be killed. Output is over when the shell ends: a child
 * left in the background keeps running, but no longer belongs to this answer. */
static int attend(pid_t pid, int fd, int64_t deadline_ms, struct buf *out, bool *truncated, bool *timed_out)
{
    int status = 0;
    bool open_end = true;
    for (;;) {
        struct pollfd p = {.fd = open_end ? fd : -1, .events = POLLIN};
        poll(&p, 1, open_end ? 20 : 5);
        if (open_end)
            open_end = drain(fd, out, truncated);
        if (waitpid(pid, &status, WNOHANG) == pid)
            break;
        if (monotonic_ms() >= deadline_ms && !*timed_out) {
            *timed_out = true;
            kill(-pid, SIGKILL);
        }
    }
    if (open_end)
        drain(fd, out, truncated);
    return status;
}

void run_script(struct buf *b, const char *script, long long timeout_s)
{
    int ends[2];
    struct buf out = {0};
    bool truncated = false, timed_out = false;
    /* A file, not an argument: one argument holds at most 128 KiB. */
    if (!write_file(SCRIPT_FILE, script) || pipe2(ends, O_CLOEXEC)) {
        buf_str(b, "\"ok\":false,\"error\":\"the script cannot be started\"");
        return;
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    pid_t pid = start(ends[1]);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        buf_str(b, "\"ok\":false,\"error\":\"no process can be made\"");
        return;
    }
    int status = attend(pid, ends[0], monotonic_ms() + timeout_s * 1000, &out, &truncated, &timed_out);
    close(ends[0]);
    int code = timed_out             ? EXIT_TIMED_OUT
               : WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                                     : WEXITSTATUS(status);
    buf_printf(b, "\"ok\":true,\"exit_code\":%d,\"timed_out\":%s,\"truncated\":%s,\"output_b64\":\"", code,
               timed_out ? "true" : "false", truncated ? "true" : "false");
    buf_base64(b, (unsigned char *)out.data, out.len);
    buf_str(b, "\"");
    buf_free(&out);
}
