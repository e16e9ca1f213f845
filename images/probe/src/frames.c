#include "frames.h"

#include <string.h>
#include <sys/socket.h>

static void put8(struct buf *b, unsigned v)
{
    unsigned char c = (unsigned char)v;
    buf_add(b, &c, 1);
}

static void put16(struct buf *b, unsigned v)
{
    put8(b, v >> 8);
    put8(b, v);
}

static void put32(struct buf *b, uint32_t v)
{
    put16(b, v >> 16);
    put16(b, v & 0xffff);
}

/* RFC 1071: the one's complement sum of 16-bit words. */
static uint32_t sum(uint32_t acc, const void *data, size_t len)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < len; i++)
        acc += i & 1 ? p[i] : (uint32_t)p[i] << 8;
    return acc;
}

static unsigned fold(uint32_t acc)
{
    while (acc >> 16)
        acc = (acc & 0xffff) + (acc >> 16);
    return ~acc & 0xffff;
}

static void patch16(struct buf *b, size_t at, unsigned v)
{
    b->data[at] = (char)(v >> 8);
    b->data[at + 1] = (char)v;
}

static uint32_t pseudo(const struct ip_pair *ip, unsigned protocol, size_t len)
{
    size_t n = ip->family == AF_INET6 ? 16 : 4;
    return sum(sum(protocol + (uint32_t)len, ip->source, n), ip->target, n);
}

void frame_arp(struct buf *b, int op, const unsigned char sha[6], const unsigned char spa[4],
               const unsigned char tha[6], const unsigned char tpa[4])
{
    put16(b, 1);
    put16(b, 0x0800);
    put8(b, 6);
    put8(b, 4);
    put16(b, (unsigned)op);
    buf_add(b, sha, 6);
    buf_add(b, spa, 4);
    buf_add(b, tha, 6);
    buf_add(b, tpa, 4);
}

void frame_ip(struct buf *b, const struct ip_pair *ip, int protocol, int hops, const struct buf *payload)
{
    size_t start = b->len;
    if (ip->family == AF_INET6) {
        put32(b, 6u << 28);
        put16(b, (unsigned)payload->len);
        put8(b, (unsigned)protocol);
        put8(b, (unsigned)hops);
        buf_add(b, ip->source, 16);
        buf_add(b, ip->target, 16);
    } else {
        put16(b, 0x4500);
        put16(b, (unsigned)(20 + payload->len));
        put32(b, 0x4000); /* no identification; "don't fragment" is bit 14 of the second half */
        put8(b, (unsigned)hops);
        put8(b, (unsigned)protocol);
        put16(b, 0);
        buf_add(b, ip->source, 4);
        buf_add(b, ip->target, 4);
        patch16(b, start + 10, fold(sum(0, b->data + start, 20)));
    }
    buf_add(b, payload->data, payload->len);
}

void frame_udp(struct buf *b, const struct ip_pair *ip, int source_port, int target_port,
               const struct buf *payload)
{
    struct buf u = {0};
    put16(&u, (unsigned)source_port);
    put16(&u, (unsigned)target_port);
    put16(&u, (unsigned)(8 + payload->len));
    put16(&u, 0);
    buf_add(&u, payload->data, payload->len);
    unsigned check = fold(sum(pseudo(ip, 17, u.len), u.data, u.len));
    patch16(&u, 6, check ? check : 0xffff);
    frame_ip(b, ip, 17, 64, &u);
    buf_free(&u);
}

void frame_icmp6(struct buf *b, const struct ip_pair *ip, int type, const struct buf *body)
{
    struct buf m = {0};
    put8(&m, (unsigned)type);
    put8(&m, 0);
    put16(&m, 0);
    buf_add(&m, body->data, body->len);
    patch16(&m, 2, fold(sum(pseudo(ip, 58, m.len), m.data, m.len)));
    frame_ip(b, ip, 58, 255, &m);
    buf_free(&m);
}

void frame_echo(struct buf *b, const struct ip_pair *ip, int id, int sequence, const struct buf *payload)
{
    struct buf body = {0}, m = {0};
    put16(&body, (unsigned)id);
    put16(&body, (unsigned)sequence);
    buf_add(&body, payload->data, payload->len);
    if (ip->family == AF_INET6) {
        frame_icmp6(b, ip, 128, &body);
    } else {
        put32(&m, 8u << 24);
        buf_add(&m, body.data, body.len);
        patch16(&m, 2, fold(sum(0, m.data, m.len)));
        frame_ip(b, ip, 1, 64, &m);
    }
    buf_free(&body);
    buf_free(&m);
}

static void option(struct buf *b, unsigned code, const void *data, size_t len)
{
    put8(b, code);
    put8(b, (unsigned)len);
    buf_add(b, data, len);
}

void frame_dhcp(struct buf *b, const struct dhcp *d)
{
    static const unsigned char zero[202], lease[4] = {0, 0, 0x0e, 0x10};
    unsigned char type = (unsigned char)d->type;
    put32(b, 0x02010600);
    put32(b, d->xid);
    put32(b, 0); /* seconds, flags */
    put32(b, 0); /* ciaddr */
    buf_add(b, d->yiaddr, 4);
    buf_add(b, d->server, 4);
    put32(b, 0); /* giaddr */
    buf_add(b, d->chaddr, 6);
    buf_add(b, zero, 10 + 64 + 128);
    put32(b, 0x63825363);
    option(b, 53, &type, 1);
    option(b, 54, d->server, 4);
    option(b, 51, lease, 4);
    option(b, 1, d->mask, 4);
    option(b, 3, d->router, 4);
    option(b, 6, d->router, 4);
    put8(b, 255);
}
