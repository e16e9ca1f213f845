#include "net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
    struct nlmsghdr head;
    char body[256];
};

bool prefix_parse(const char *text, struct prefix *out)
{
    char host[64];
    size_t n = strcspn(text, "/");
    if (n >= sizeof host)
        return false;
    memcpy(host, text, n);
    host[n] = 0;
    memset(out, 0, sizeof *out);
    out->family = strchr(host, ':') ? AF_INET6 : AF_INET;
    if (inet_pton(out->family, host, out->bytes) != 1)
        return false;
    int most = out->family == AF_INET6 ? 128 : 32;
    out->bits = most;
    if (!text[n])
        return true;
    char *end;
    long bits = strtol(text + n + 1, &end, 10);
    if (text[n + 1] < '0' || text[n + 1] > '9' || *end || bits > most)
        return false;
    out->bits = (int)bits;
    return true;
}

static void *begin(struct request *q, int type, int flags, size_t fixed)
{
    memset(q, 0, sizeof *q);
    q->head.nlmsg_len = (unsigned)NLMSG_LENGTH(fixed);
    q->head.nlmsg_type = (unsigned short)type;
    q->head.nlmsg_flags = (unsigned short)(NLM_F_REQUEST | NLM_F_ACK | flags);
    return q->body;
}

static void attribute(struct request *q, int type, const void *data, size_t len)
{
    size_t at = NLMSG_ALIGN(q->head.nlmsg_len);
    if (at + RTA_LENGTH(len) > sizeof *q)
        abort();
    struct rtattr *a = (struct rtattr *)((char *)q + at);
    a->rta_type = (unsigned short)type;
    a->rta_len = (unsigned short)RTA_LENGTH(len);
    memcpy(RTA_DATA(a), data, len);
    q->head.nlmsg_len = (unsigned)(at + RTA_ALIGN(a->rta_len));
}

static int ask(struct request *q)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return errno;
    union {
        struct nlmsghdr head;
        char bytes[4096];
    } answer;
    int result = EIO;
    if (send(fd, q, q->head.nlmsg_len, 0) < 0)
        result = errno;
    else if (recv(fd, &answer, sizeof answer, 0) >= (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) &&
             answer.head.nlmsg_type == NLMSG_ERROR)
        result = -((struct nlmsgerr *)NLMSG_DATA(&answer.head))->error;
    close(fd);
    return result;
}

int link_up(int ifindex, unsigned mtu)
{
    struct request q;
    struct ifinfomsg *m = begin(&q, RTM_NEWLINK, 0, sizeof *m);
    m->ifi_index = ifindex;
    m->ifi_flags = IFF_UP;
    m->ifi_change = IFF_UP;
    if (mtu)
        attribute(&q, IFLA_MTU, &mtu, sizeof mtu);
    return ask(&q);
}

static size_t width(const struct prefix *p)
{
    return p->family == AF_INET6 ? 16 : 4;
}

int address_add(int ifindex, const struct prefix *p)
{
    struct request q;
    struct ifaddrmsg *m = begin(&q, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof *m);
    m->ifa_family = (unsigned char)p->family;
    m->ifa_prefixlen = (unsigned char)p->bits;
    m->ifa_index = (unsigned)ifindex;
    /* Without duplicate detection an address works at once; who may use it is the host's business. */
    m->ifa_flags = p->family == AF_INET6 ? IFA_F_NODAD : 0;
    attribute(&q, IFA_LOCAL, p->bytes, width(p));
    attribute(&q, IFA_ADDRESS, p->bytes, width(p));
    return ask(&q);
}

int route_add(int ifindex, const struct prefix *to, const struct prefix *via, bool on_link)
{
    struct request q;
    struct rtmsg *m = begin(&q, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof *m);
    m->rtm_family = (unsigned char)to->family;
    m->rtm_dst_len = (unsigned char)to->bits;
    m->rtm_table = RT_TABLE_MAIN;
    m->rtm_protocol = RTPROT_STATIC;
    m->rtm_scope = via ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
    m->rtm_type = RTN_UNICAST;
    m->rtm_flags = on_link ? RTNH_F_ONLINK : 0;
    if (to->bits)
        attribute(&q, RTA_DST, to->bytes, width(to));
    if (via) {
        if (via->family != to->family)
            return EINVAL;
        attribute(&q, RTA_GATEWAY, via->bytes, width(via));
    }
    attribute(&q, RTA_OIF, &ifindex, sizeof ifindex);
    return ask(&q);
}
