/* listenframe: prints each frame that arrives at an interface as one line, for a while. Promiscuous, so that
 * it also sees what was never meant for this guest: that is what the tests look for. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "probe.h"

#define FILTERS 8

static const char help[] =
    "listenframe IFACE SECONDS [--count N] [src=MAC] [dst=MAC] [ethertype=N] [vlan=ID] [contains=HEX]\n"
    "  prints: DST SRC ETHERTYPE [vlan=ID] LENGTH INFO; a frame has to pass all filters";

struct frame {
    const unsigned char *data;
    size_t len;
    int vlan; /* -1 without a tag */
    unsigned ethertype;
    size_t payload; /* where what the ethertype names begins */
};

struct filter {
    const char *key;
    struct buf bytes;
    uint64_t number;
};

static unsigned be16(const unsigned char *p)
{
    return (unsigned)(p[0] << 8 | p[1]);
}

static void describe_ports(const unsigned char *p, size_t left, unsigned protocol)
{
    if ((protocol == 6 || protocol == 17) && left >= 4)
        printf(" %s %u>%u", protocol == 6 ? "tcp" : "udp", be16(p), be16(p + 2));
    else if ((protocol == 1 || protocol == 58) && left >= 2)
        printf(" %s type %u code %u", protocol == 1 ? "icmp" : "icmp6", p[0], p[1]);
    else
        printf(" protocol %u", protocol);
}

static void describe(const struct frame *f)
{
    char a[INET6_ADDRSTRLEN], b[INET6_ADDRSTRLEN], mac[18];
    const unsigned char *p = f->data + f->payload;
    size_t left = f->len - f->payload;
    if (f->ethertype == 0x0806 && left >= 28) {
        inet_ntop(AF_INET, p + 14, a, sizeof a);
        inet_ntop(AF_INET, p + 24, b, sizeof b);
        format_mac(p + 8, mac);
        printf(" arp %s sha %s spa %s tpa %s",
               be16(p + 6) == 1   ? "request"
               : be16(p + 6) == 2 ? "reply"
                                  : "other",
               mac, a, b);
    } else if (f->ethertype == 0x0800 && left >= 20 && (size_t)(p[0] & 15) * 4 <= left) {
        inet_ntop(AF_INET, p + 12, a, sizeof a);
        inet_ntop(AF_INET, p + 16, b, sizeof b);
        printf(" ip %s>%s", a, b);
        describe_ports(p + (p[0] & 15) * 4, left - (size_t)(p[0] & 15) * 4, p[9]);
    } else if (f->ethertype == 0x86dd && left >= 40) {
        inet_ntop(AF_INET6, p + 8, a, sizeof a);
        inet_ntop(AF_INET6, p + 24, b, sizeof b);
        printf(" ip6 %s>%s", a, b);
        describe_ports(p + 40, left - 40, p[6]);
    }
}

static bool passes(const struct frame *f, const struct filter *filters, int count)
{
    for (int i = 0; i < count; i++) {
        const struct filter *x = filters + i;
        bool ok = !strcmp(x->key, "dst")         ? !memcmp(f->data, x->bytes.data, 6)
                  : !strcmp(x->key, "src")       ? !memcmp(f->data + 6, x->bytes.data, 6)
                  : !strcmp(x->key, "ethertype") ? f->ethertype == x->number
                  : !strcmp(x->key, "vlan") ? f->vlan >= 0 && (uint64_t)f->vlan == x->number
                                            : memmem(f->data, f->len, x->bytes.data, x->bytes.len) != NULL;
        if (!ok)
            return false;
    }
    return true;
}

static bool parse_filter(const char *text, struct filter *x)
{
    static const char *const keys[] = {"dst", "src", "ethertype", "vlan", "contains"};
    size_t n = strcspn(text, "=");
    for (int i = 0; text[n] && i < 5; i++)
        if (strlen(keys[i]) == n && !strncmp(keys[i], text, n)) {
            x->key = keys[i];
            if (i == 2 || i == 3)
                return parse_u64(text + n + 1, 0xffff, &x->number);
            return parse_hex(text + n + 1, &x->bytes) && x->bytes.len && (i == 4 || x->bytes.len == 6);
        }
    return false;
}

/* The kernel takes the outer tag out of the frame and hands it over beside it (packet(7), PACKET_AUXDATA). */
static int outer_tag(struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c))
        if (c->cmsg_level == SOL_PACKET && c->cmsg_type == PACKET_AUXDATA) {
            struct tpacket_auxdata aux;
            memcpy(&aux, CMSG_DATA(c), sizeof aux);
            if (aux.tp_status & TP_STATUS_VLAN_VALID)
                return aux.tp_vlan_tci & 0xfff;
        }
    return -1;
}

/* True when a frame was received that came from outside. */
static bool receive(int fd, struct frame *f, unsigned char *data, size_t size)
{
    char control[128];
    struct sockaddr_ll from;
    struct iovec part = {data, size};
    struct msghdr m = {.msg_name = &from,
                       .msg_namelen = sizeof from,
                       .msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
    if (n < 14 || from.sll_pkttype == PACKET_OUTGOING)
        return false;
    *f = (struct frame){
        .data = data, .len = (size_t)n, .vlan = outer_tag(&m), .ethertype = be16(data + 12), .payload = 14};
    if (f->vlan < 0 && f->ethertype == 0x8100 && n >= 18) {
        f->vlan = be16(data + 14) & 0xfff;
        f->ethertype = be16(data + 16);
        f->payload = 18;
    }
    return true;
}

static void show(const struct frame *f)
{
    char to[18], from[18];
    format_mac(f->data, to);
    format_mac(f->data + 6, from);
    printf("%s %s 0x%04x", to, from, f->ethertype);
    if (f->vlan >= 0)
        printf(" vlan=%d", f->vlan);
    printf(" %zu", f->len);
    describe(f);
    putchar('\n');
    fflush(stdout);
}

static int open_socket(const char *interface)
{
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(0x0003)), one = 1,
        index = (int)if_nametoindex(interface);
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(0x0003), .sll_ifindex = index};
    struct packet_mreq promiscuous = {.mr_ifindex = index, .mr_type = PACKET_MR_PROMISC};
    if (!index)
        die("%s: no such interface", interface);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) ||
        setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof promiscuous) ||
        setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &one, sizeof one))
        die("%s: %s", interface, strerror(errno));
    return fd;
}

int listenframe_main(int argc, char **argv)
{
    static unsigned char data[65536];
    struct filter filters[FILTERS] = {0};
    uint64_t seconds, most = UINT64_MAX, seen = 0;
    int count = 0;
    if (argc < 3 || !parse_u64(argv[2], 3600, &seconds))
        usage(help);
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--count") && i + 1 < argc && parse_u64(argv[i + 1], 1 << 30, &most) && most)
            i++;
        else if (count == FILTERS || !parse_filter(argv[i], filters + count++))
            usage(help);
    }
    int fd = open_socket(argv[1]);
    printf("# listening\n");
    fflush(stdout);
    int64_t end = monotonic_ms() + (int64_t)seconds * 1000;
    for (int64_t left; seen < most && (left = end - monotonic_ms()) > 0;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        struct frame f;
        if (poll(&p, 1, (int)left) > 0 && receive(fd, &f, data, sizeof data) && passes(&f, filters, count)) {
            show(&f);
            seen++;
        }
    }
    printf("# seen %llu\n", (unsigned long long)seen);
    return 0;
}
