#include "pcibar.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

#define PCI_DIR "/sys/bus/pci/devices"
/* PCI 3.0, 6.2.2: the command register. */
#define COMMAND 4
#define COMMAND_MEMORY 2
#define COMMAND_MASTER 4

static void set_command(const char *address, bool bus_master)
{
    char path[160];
    uint16_t command, wanted;
    snprintf(path, sizeof path, PCI_DIR "/%.60s/config", address);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || pread(fd, &command, 2, COMMAND) != 2)
        die("%s: configuration space: %s", address, strerror(errno));
    wanted = (uint16_t)(command | COMMAND_MEMORY | (bus_master ? COMMAND_MASTER : 0));
    if (wanted != command && (pwrite(fd, &wanted, 2, COMMAND) != 2 || pread(fd, &command, 2, COMMAND) != 2 ||
                              (command & wanted) != wanted))
        die("%s: memory decoding cannot be turned on", address);
    close(fd);
}

struct bar bar_open(const char *address, unsigned index, bool bus_master)
{
    char path[160];
    struct stat st;
    /* A device that no driver has claimed may still sleep in D3; `enable` wakes it and its bridges. */
    snprintf(path, sizeof path, PCI_DIR "/%.60s/enable", address);
    if (!write_file(path, "1"))
        die("%s: cannot be enabled: %s", address, strerror(errno));
    set_command(address, bus_master);
    snprintf(path, sizeof path, PCI_DIR "/%.60s/resource%u", address, index);
    int fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) || st.st_size <= 0)
        die("%s: region %u: %s", address, index, fd < 0 ? strerror(errno) : "empty");
    struct bar bar = {.size = (size_t)st.st_size};
    void *at = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("%s: region %u cannot be mapped: %s", address, index, strerror(errno));
    bar.at = at;
    close(fd);
    return bar;
}
