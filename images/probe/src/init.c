/* The guest's first process: mounts, modules, seed, then probed, which it keeps running. It turns the machine
 * off when the power button is pressed. It never fails on what a device or a seed says: the report tells what
 * is missing. */
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net.h"
#include "probe.h"

#define MAX_BUTTONS 4
#define RESPAWN_MS 200

/* Loads the modules a list names, in its order (the image's builder has sorted it by dependency). */
static void load_modules(const char *list)
{
    struct buf text = {0};
    if (!read_file(&text, 1 << 16, "/lib/modules/%s", list)) {
        fprintf(stderr, "probe: no module list %s\n", list);
        return;
    }
    for (char *name = strtok(text.data, "\n"); name; name = strtok(NULL, "\n")) {
        char path[160];
        snprintf(path, sizeof path, "/lib/modules/%s", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            fprintf(stderr, "probe: module %s: %s\n", name, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    buf_free(&text);
}

static void mounts(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mkdir("/run", 0755);
    mkdir("/tmp", 01777);
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    int fd = open("/dev/console", O_RDWR);
    for (int i = 0; fd >= 0 && i < 3; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
}

/* True when there is a virtio-scsi controller, the only one whose modules the image has. */
static bool has_scsi_host(void)
{
    char **names;
    int count = list_dir("/sys/bus/pci/devices", &names);
    bool found = false;
    for (int i = 0; i < count; i++) {
        long long vendor = read_number(0, "/sys/bus/pci/devices/%s/vendor", names[i]);
        long long device = read_number(0, "/sys/bus/pci/devices/%s/device", names[i]);
        /* virtio-scsi, transitional and modern (virtio 1.2, 4.1.2.1). */
        found |= vendor == 0x1af4 && (device == 0x1004 || device == 0x1048);
    }
    free_names(names, count);
    return found;
}

static void wait_for_seed(int64_t ms)
{
    for (int64_t end = monotonic_ms() + ms; !seed_present() && monotonic_ms() < end;)
        usleep(50000);
}

static int open_buttons(struct pollfd *fds)
{
    char **names, name[64];
    int count = list_dir("/dev/input", &names), found = 0;
    for (int i = 0; i < count && found < MAX_BUTTONS; i++) {
        char path[96];
        if (strncmp(names[i], "event", 5))
            continue;
        snprintf(path, sizeof path, "/dev/input/%.60s", names[i]);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (ioctl(fd, EVIOCGNAME(sizeof name), name) > 0 && !strcmp(name, "Power Button"))
            fds[found++] = (struct pollfd){.fd = fd, .events = POLLIN};
        else
            close(fd);
    }
    free_names(names, count);
    return found;
}

static bool button_pressed(int fd)
{
    struct input_event e;
    bool pressed = false;
    while (read(fd, &e, sizeof e) == (ssize_t)sizeof e)
        pressed |= e.type == EV_KEY && e.code == KEY_POWER && e.value == 1;
    return pressed;
}

static void stop_machine(int how)
{
    fprintf(stderr, "probe: %s\n", how == RB_POWER_OFF ? "power off" : "restart");
    sync();
    reboot(how);
}

static pid_t start_probed(void)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execl("/probe/bin/probed", "probed", (char *)NULL);
    _exit(127);
}

static int watch_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGINT);  /* the kernel's way to tell of ctrl-alt-del */
    sigaddset(&set, SIGTERM); /* busybox reboot */
    sigaddset(&set, SIGUSR2); /* busybox poweroff */
    sigaddset(&set, SIGUSR1); /* busybox halt */
    sigprocmask(SIG_BLOCK, &set, NULL);
    reboot(RB_DISABLE_CAD);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void supervise(void)
{
    struct pollfd fds[MAX_BUTTONS + 1];
    int signals = watch_signals();
    int buttons = open_buttons(fds + 1);
    fds[0] = (struct pollfd){.fd = signals, .events = POLLIN};
    pid_t probed = start_probed();
    for (;;) {
        poll(fds, (nfds_t)(buttons + 1), -1);
        for (int i = 1; i <= buttons; i++)
            if (fds[i].revents && button_pressed(fds[i].fd))
                stop_machine(RB_POWER_OFF);
        struct signalfd_siginfo info;
        while (read(signals, &info, sizeof info) == (ssize_t)sizeof info)
            if (info.ssi_signo != SIGCHLD)
                stop_machine(info.ssi_signo == SIGINT || info.ssi_signo == SIGTERM ? RB_AUTOBOOT
                                                                                   : RB_POWER_OFF);
        for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
            if (pid == probed) {
                fprintf(stderr, "probe: probed ended and is started again\n");
                usleep(RESPAWN_MS * 1000);
                probed = start_probed();
            }
    }
}

int init_main(int argc, char **argv)
{
    (void)argc, (void)argv;
    if (getpid() != 1)
        usage("init is for the kernel to start");
    mounts();
    umask(077);
    setenv("PATH", TOOL_PATH, 1);
    setenv("HOME", "/", 1);
    sethostname("probe", 5);
    /* Before any interface exists, so that link-local addresses skip duplicate detection as well. */
    write_file("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
    write_file("/proc/sys/net/ipv6/conf/default/dad_transmits", "0");
    load_modules("base");
    if (has_scsi_host())
        load_modules("scsi");
    if (!seed_present())
        wait_for_seed(has_scsi_host() ? 3000 : 200);
    link_up((int)if_nametoindex("lo"), 0);
    seed_apply();
    supervise();
    return 1;
}
