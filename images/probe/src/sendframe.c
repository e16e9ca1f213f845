/* sendframe: puts crafted Ethernet frames on an interface, past the guest's own network stack. What each kind
 * looks like is in frames.c; here are the command line and the Ethernet header. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frames.h"
#include "probe.h"

#define MAX_TAGS 4
#define FRAME_MAX 65535

static const char help[] =
    "sendframe IFACE [OPTIONS] KIND\n"
    "  options: --src MAC --dst MAC --vlan ID (repeat for a tag inside a tag) --count N --interval-ms N\n"
    "  hex BYTES...   the whole frame, header and all; --src, --dst and --vlan do not apply\n"
    "  raw --ethertype N --payload HEX\n"
    "  arp --op request|reply --sha MAC --spa IP --tha MAC --tpa IP\n"
    "  echo --sip IP --dip IP [--id N] [--seq N] [--payload HEX]\n"
    "  udp --sip IP --dip IP --sport N --dport N [--payload HEX]\n"
    "  dhcp-offer | dhcp-ack --yip IP --sip IP [--dip IP] [--router IP] [--mask IP] [--chaddr MAC]\n"
    "      [--xid N]\n"
    "  ra --sip IP6 [--dip IP6] --prefix IP6 [--bits N] [--lifetime N]\n"
    "  na --sip IP6 [--dip IP6] --target IP6 [--tha MAC]";

struct options {
    int argc;
    char **argv;
    unsigned char own[6];
};

/* The value of the n-th (from 0) --name, or NULL. */
static const char *nth(const struct options *o, const char *name, int n)
{
    for (int i = 2; i + 1 < o->argc; i++)
        if (!strncmp(o->argv[i], "--", 2) && !strcmp(o->argv[i] + 2, name) && n-- == 0)
            return o->argv[i + 1];
    return NULL;
}

static uint64_t number(const struct options *o, const char *name, uint64_t fallback, uint64_t max)
{
    const char *text = nth(o, name, 0);
    uint64_t value = fallback;
    if (text && !parse_u64(text, max, &value))
        die("--%s: not a number up to %llu", name, (unsigned long long)max);
    return value;
}

static void mac(const struct options *o, const char *name, const unsigned char *fallback,
                unsigned char out[6])
{
    const char *text = nth(o, name, 0);
    if (!text)
        memcpy(out, fallback, 6);
    else if (!parse_mac(text, out))
        die("--%s: not a MAC address", name);
}

static void ip(const struct options *o, int family, const char *name, const char *fallback,
               unsigned char *out)
{
    const char *text = nth(o, name, 0);
    if (!text)
        text = fallback;
    if (!text || inet_pton(family, text, out) != 1)
        die("--%s: an address is missing or cannot be read", name);
}

static struct ip_pair pair(const struct options *o, const char *fallback_target)
{
    const char *source = nth(o, "sip", 0);
    struct ip_pair p = {.family = source && strchr(source, ':') ? AF_INET6 : AF_INET};
    ip(o, p.family, "sip", NULL, p.source);
    ip(o, p.family, "dip", fallback_target, p.target);
    return p;
}

static void payload(const struct options *o, const char *fallback, struct buf *b)
{
    const char *text = nth(o, "payload", 0);
    if (!parse_hex(text ? text : fallback, b))
        die("--payload: not hex");
}

static void build_arp(const struct options *o, struct buf *b)
{
    static const unsigned char nobody[6];
    unsigned char sha[6], tha[6], spa[4], tpa[4];
    const char *op = nth(o, "op", 0);
    mac(o, "sha", o->own, sha);
    mac(o, "tha", nobody, tha);
    ip(o, AF_INET, "spa", NULL, spa);
    ip(o, AF_INET, "tpa", NULL, tpa);
    frame_arp(b, op && !strcmp(op, "reply") ? 2 : 1, sha, spa, tha, tpa);
}

static void build_dhcp(const struct options *o, int type, struct buf *b)
{
    struct dhcp d = {.type = type, .xid = (uint32_t)number(o, "xid", 1, UINT32_MAX)};
    struct buf message = {0};
    struct ip_pair p = pair(o, "255.255.255.255");
    ip(o, AF_INET, "yip", NULL, d.yiaddr);
    ip(o, AF_INET, "sip", NULL, d.server);
    ip(o, AF_INET, "router", nth(o, "sip", 0), d.router);
    ip(o, AF_INET, "mask", "255.255.255.0", d.mask);
    mac(o, "chaddr", (const unsigned char *)"\377\377\377\377\377\377", d.chaddr);
    frame_dhcp(&message, &d);
    frame_udp(b, &p, 67, 68, &message);
    buf_free(&message);
}

/* RFC 4861, 4.2 and 4.6.2: router advertisement with one prefix that is on the link and for
 * autoconfiguration. */
static void build_ra(const struct options *o, struct buf *b)
{
    struct ip_pair p = pair(o, "ff02::1");
    unsigned lifetime = (unsigned)number(o, "lifetime", 1800, 65535);
    unsigned char m[12 + 32] = {64, 0, (unsigned char)(lifetime >> 8), (unsigned char)lifetime};
    m[12] = 3, m[13] = 4, m[14] = (unsigned char)number(o, "bits", 64, 128), m[15] = 0xc0;
    m[18] = 0x0e, m[19] = 0x10, m[22] = 0x0e, m[23] = 0x10;
    ip(o, AF_INET6, "prefix", NULL, m + 28);
    struct buf body = {0};
    buf_add(&body, m, sizeof m);
    frame_icmp6(b, &p, 134, &body);
    buf_free(&body);
}

/* RFC 4861, 4.4: neighbour advertisement that overrides what the receiver knew. */
static void build_na(const struct options *o, struct buf *b)
{
    struct ip_pair p = pair(o, "ff02::1");
    unsigned char m[4 + 16 + 8] = {0x20};
    ip(o, AF_INET6, "target", NULL, m + 4);
    m[20] = 2, m[21] = 1;
    mac(o, "tha", o->own, m + 22);
    struct buf body = {0};
    buf_add(&body, m, sizeof m);
    frame_icmp6(b, &p, 136, &body);
    buf_free(&body);
}

/* Writes the payload of a kind and says its ethertype; -1 for a kind that does not exist. */
static int build(const struct options *o, const char *kind, struct buf *b)
{
    struct buf data = {0};
    if (!strcmp(kind, "raw")) {
        payload(o, "", b);
        return (int)number(o, "ethertype", 0x88b5, 0xffff); /* IEEE 802 local experimental */
    }
    if (!strcmp(kind, "arp")) {
        build_arp(o, b);
        return 0x0806;
    }
    if (!strcmp(kind, "dhcp-offer") || !strcmp(kind, "dhcp-ack")) {
        build_dhcp(o, kind[5] == 'o' ? 2 : 5, b);
        return 0x0800;
    }
    if (!strcmp(kind, "ra") || !strcmp(kind, "na")) {
        (kind[0] == 'r' ? build_ra : build_na)(o, b);
        return 0x86dd;
    }
    if (strcmp(kind, "echo") && strcmp(kind, "udp"))
        return -1;
    struct ip_pair p = pair(o, NULL);
    payload(o, "62756c6b68656164", &data);
    if (kind[0] == 'e')
        frame_echo(b, &p, (int)number(o, "id", 1, 65535), (int)number(o, "seq", 1, 65535), &data);
    else
        frame_udp(b, &p, (int)number(o, "sport", 40000, 65535), (int)number(o, "dport", 9, 65535), &data);
    buf_free(&data);
    return p.family == AF_INET6 ? 0x86dd : 0x0800;
}

static void add16(struct buf *b, unsigned v)
{
    unsigned char c[2] = {(unsigned char)(v >> 8), (unsigned char)v};
    buf_add(b, c, 2);
}

static void whole_frame(const struct options *o, int kind_at, struct buf *frame)
{
    unsigned char to[6], from[6];
    struct buf inner = {0};
    if (!strcmp(o->argv[kind_at], "hex")) {
        for (int i = kind_at + 1; i < o->argc; i++)
            if (!parse_hex(o->argv[i], frame))
                die("not hex: %s", o->argv[i]);
        return;
    }
    int ethertype = build(o, o->argv[kind_at], &inner);
    if (ethertype < 0)
        usage(help);
    mac(o, "dst", (const unsigned char *)"\377\377\377\377\377\377", to);
    mac(o, "src", o->own, from);
    buf_add(frame, to, 6);
    buf_add(frame, from, 6);
    for (int i = 0; i < MAX_TAGS; i++) {
        const char *tag = nth(o, "vlan", i);
        uint64_t id;
        if (!tag)
            break;
        if (!parse_u64(tag, 0xffff, &id))
            die("--vlan: not a number up to 65535");
        add16(frame, 0x8100);
        add16(frame, (unsigned)id);
    }
    add16(frame, (unsigned)ethertype);
    buf_add(frame, inner.data, inner.len);
    buf_free(&inner);
}

/* A misspelt option must not be passed over: the frame would not be the one the test is about. */
static bool known_option(const char *name)
{
    static const char *const names[] = {
        "src", "dst",    "vlan", "count",  "interval-ms", "ethertype", "payload", "op",       "sha",
        "spa", "tha",    "tpa",  "sip",    "dip",         "id",        "seq",     "sport",    "dport",
        "yip", "router", "mask", "chaddr", "xid",         "prefix",    "bits",    "lifetime", "target"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name))
            return true;
    return false;
}

/* Options come in pairs, before or after the kind. The index of the kind, or 0. */
static int find_kind(int argc, char **argv)
{
    int kind_at = 0;
    for (int i = 2; i < argc; i++) {
        if (!strncmp(argv[i], "--", 2)) {
            if (!known_option(argv[i] + 2) || ++i == argc)
                return 0;
        } else if (kind_at) {
            return 0;
        } else {
            kind_at = i;
            if (!strcmp(argv[i], "hex"))
                break;
        }
    }
    return kind_at;
}

int sendframe_main(int argc, char **argv)
{
    static const char padding[60];
    struct options o = {argc, argv, {0}};
    int kind_at = find_kind(argc, argv);
    char text[32];
    struct buf frame = {0};
    if (!kind_at)
        usage(help);
    read_line(text, sizeof text, "/sys/class/net/%.15s/address", argv[1]);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(argv[1])};
    if (!to.sll_ifindex || !parse_mac(text, o.own))
        die("%s: no such interface", argv[1]);
    whole_frame(&o, kind_at, &frame);
    if (frame.len < 14 || frame.len > FRAME_MAX)
        die("a frame has at least 14 bytes");
    if (frame.len < sizeof padding)
        buf_add(&frame, padding, sizeof padding - frame.len);
    uint64_t count = number(&o, "count", 1, 1000000), interval_ms = number(&o, "interval-ms", 10, 60000);
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    for (uint64_t i = 0; i < count; i++) {
        if (sendto(fd, frame.data, frame.len, 0, (struct sockaddr *)&to, sizeof to) != (ssize_t)frame.len)
            die("%s: %s", argv[1], strerror(errno));
        if (i + 1 < count)
            usleep((useconds_t)interval_ms * 1000);
    }
    printf("sent %llu frames of %zu bytes\n", (unsigned long long)count, frame.len);
    return 0;
}
