/* Builders of Ethernet frames' payloads, each byte under the caller's control: what a hostile guest would
 * send. */
#ifndef PROBE_FRAMES_H
#define PROBE_FRAMES_H

#include "util.h"

struct ip_pair {
    int family; /* AF_INET or AF_INET6 */
    unsigned char source[16], target[16];
};

/* ARP for Ethernet and IPv4 (RFC 826), 28 bytes. */
void frame_arp(struct buf *b, int op, const unsigned char sha[6], const unsigned char spa[4],
               const unsigned char tha[6], const unsigned char tpa[4]);
/* An IP header around a payload of the given protocol. hops is TTL or hop limit. */
void frame_ip(struct buf *b, const struct ip_pair *ip, int protocol, int hops, const struct buf *payload);
void frame_udp(struct buf *b, const struct ip_pair *ip, int source_port, int target_port,
               const struct buf *payload);
void frame_echo(struct buf *b, const struct ip_pair *ip, int id, int sequence, const struct buf *payload);
/* ICMPv6 of any type: body is what follows the checksum. Hop limit 255, as neighbour discovery demands. */
void frame_icmp6(struct buf *b, const struct ip_pair *ip, int type, const struct buf *body);

struct dhcp {
    int type; /* option 53: 2 offer, 5 ack */
    uint32_t xid;
    unsigned char yiaddr[4], server[4], router[4], mask[4], chaddr[6];
};
/* The BOOTP reply a DHCP server sends (RFC 2131), without UDP and IP. */
void frame_dhcp(struct buf *b, const struct dhcp *d);

#endif
