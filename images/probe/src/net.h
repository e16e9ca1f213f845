/* rtnetlink, as much as a seed needs: links up, addresses, routes. Each call returns 0 or an errno value. */
#ifndef PROBE_NET_H
#define PROBE_NET_H

#include <stdbool.h>

struct prefix {
    int family; /* AF_INET or AF_INET6 */
    unsigned char bytes[16];
    int bits;
};

/* "10.0.0.2/24", "fd00::2/64", or a bare address (then all its bits). */
bool prefix_parse(const char *text, struct prefix *out);
int link_up(int ifindex, unsigned mtu); /* mtu 0 leaves it */
int address_add(int ifindex, const struct prefix *p);
/* to->bits 0 is the default route; via NULL is a route on the link itself. */
int route_add(int ifindex, const struct prefix *to, const struct prefix *via, bool on_link);

#endif
