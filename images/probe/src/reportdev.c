/* The report's devices: PCI functions with their memory regions, disks, network interfaces. */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <libgen.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "probe.h"

#define PCI_DIR "/sys/bus/pci/devices"
#define BARS                                                                                                 \
    6 /* regions 0 to 5 of a type 0 header; what follows in `resource` is the ROM and the bridges' windows   \
       */

static void driver_name(struct buf *b, const char *address)
{
    char path[160], target[256];
    snprintf(path, sizeof path, PCI_DIR "/%.60s/driver", address);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0) {
        buf_str(b, "null");
        return;
    }
    target[n] = 0;
    buf_json(b, basename(target));
}

static void bars(struct buf *b, const char *address)
{
    struct buf text = {0};
    int index = 0, shown = 0;
    buf_str(b, "[");
    if (read_file(&text, 4096, PCI_DIR "/%s/resource", address))
        for (char *line = strtok(text.data, "\n"); line && index < BARS; line = strtok(NULL, "\n"), index++) {
            unsigned long long start, end, flags;
            if (sscanf(line, "%llx %llx %llx", &start, &end, &flags) != 3 || !flags)
                continue;
            buf_printf(b, "%s{\"index\":%d,\"start_nonzero\":%s,\"size_bytes\":%llu}", shown++ ? "," : "",
                       index, start ? "true" : "false", end > start ? end - start + 1 : 0);
        }
    buf_str(b, "]");
    buf_free(&text);
}

void report_pci(struct buf *b)
{
    char **names;
    int count = list_dir(PCI_DIR, &names);
    buf_str(b, "[");
    for (int i = 0; i < count; i++) {
        const char *a = names[i];
        buf_printf(b,
                   "%s{\"address\":\"%s\",\"vendor\":\"%04llx\",\"device\":\"%04llx\",\"class\":\"%06llx\"",
                   i ? "," : "", a, read_number(0, PCI_DIR "/%s/vendor", a),
                   read_number(0, PCI_DIR "/%s/device", a), read_number(0, PCI_DIR "/%s/class", a));
        buf_printf(b, ",\"numa_node\":%lld,\"driver\":", read_number(-1, PCI_DIR "/%s/numa_node", a));
        driver_name(b, a);
        buf_str(b, ",\"bars\":");
        bars(b, a);
        buf_str(b, "}");
    }
    buf_str(b, "]");
    free_names(names, count);
}

static void disk_serial(char out[64], const char *name)
{
    struct buf page = {0};
    out[0] = 0;
    read_line(out, 64, "/sys/block/%s/serial", name);
    if (!*out)
        read_line(out, 64, "/sys/block/%s/device/serial", name);
    /* SCSI: vital product data page 0x80, the serial number after four bytes of header. */
    if (!*out && read_file(&page, 256, "/sys/block/%s/device/vpd_pg80", name) && page.len > 4)
        snprintf(out, 64, "%.60s", page.data + 4);
    buf_free(&page);
    for (size_t n = strlen(out); n && out[n - 1] == ' ';)
        out[--n] = 0;
}

void report_disks(struct buf *b)
{
    char **names, serial[64];
    int count = list_dir("/sys/block", &names), shown = 0;
    buf_str(b, "[");
    for (int i = 0; i < count; i++) {
        if (!strncmp(names[i], "loop", 4) || !strncmp(names[i], "ram", 3))
            continue;
        disk_serial(serial, names[i]);
        buf_printf(b, "%s{\"name\":\"%s\",\"serial\":", shown++ ? "," : "", names[i]);
        buf_json(b, serial);
        /* sysfs counts in units of 512 bytes whatever the device's own sector size is. */
        buf_printf(b, ",\"size_bytes\":%lld,\"read_only\":%s}",
                   512 * read_number(0, "/sys/block/%s/size", names[i]),
                   read_number(0, "/sys/block/%s/ro", names[i]) ? "true" : "false");
    }
    buf_str(b, "]");
    free_names(names, count);
}

static int prefix_bits(const unsigned char *mask, int bytes)
{
    int bits = 0;
    for (int i = 0; i < bytes; i++)
        bits += __builtin_popcount(mask[i]);
    return bits;
}

static void addresses(struct buf *b, const struct ifaddrs *all, const char *name)
{
    char text[INET6_ADDRSTRLEN];
    int shown = 0;
    buf_str(b, "[");
    for (const struct ifaddrs *a = all; a; a = a->ifa_next) {
        int family = a->ifa_addr ? a->ifa_addr->sa_family : AF_UNSPEC;
        if (strcmp(a->ifa_name, name) || (family != AF_INET && family != AF_INET6) || !a->ifa_netmask)
            continue;
        const void *address = family == AF_INET ? (void *)&((struct sockaddr_in *)a->ifa_addr)->sin_addr
                                                : (void *)&((struct sockaddr_in6 *)a->ifa_addr)->sin6_addr;
        const void *mask = family == AF_INET ? (void *)&((struct sockaddr_in *)a->ifa_netmask)->sin_addr
                                             : (void *)&((struct sockaddr_in6 *)a->ifa_netmask)->sin6_addr;
        inet_ntop(family, address, text, sizeof text);
        buf_printf(b, "%s\"%s/%d\"", shown++ ? "," : "", text, prefix_bits(mask, family == AF_INET ? 4 : 16));
    }
    buf_str(b, "]");
}

void report_network(struct buf *b)
{
    char **names, mac[32];
    struct ifaddrs *all = NULL;
    int count = list_dir("/sys/class/net", &names), shown = 0;
    if (getifaddrs(&all))
        all = NULL;
    buf_str(b, "[");
    for (int i = 0; i < count; i++) {
        read_line(mac, sizeof mac, "/sys/class/net/%s/address", names[i]);
        buf_printf(b, "%s{\"name\":\"%s\",\"mac\":\"%s\",\"addresses\":", shown++ ? "," : "", names[i], mac);
        addresses(b, all, names[i]);
        /* An interface that is down has no carrier to read: that counts as none. */
        buf_printf(b, ",\"mtu\":%lld,\"carrier\":%s}", read_number(0, "/sys/class/net/%s/mtu", names[i]),
                   read_number(0, "/sys/class/net/%s/carrier", names[i]) == 1 ? "true" : "false");
    }
    buf_str(b, "]");
    freeifaddrs(all);
    free_names(names, count);
}
