/* Applies network-config version 2, the part of it that Bulkhead writes: match by MAC address, addresses,
 * mtu, gateways, routes. A key that is not understood is reported, so that nobody takes it for applied. */
#include <arpa/inet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "net.h"
#include "probe.h"

static int find_interface(const char *mac, const char *name, char out[IFNAMSIZ])
{
    char **names, address[32];
    int count = list_dir("/sys/class/net", &names), found = 0;
    for (int i = 0; i < count && !found; i++) {
        read_line(address, sizeof address, "/sys/class/net/%s/address", names[i]);
        if (mac ? !strcasecmp(address, mac) && strcmp(names[i], "lo") : !strcmp(names[i], name)) {
            snprintf(out, IFNAMSIZ, "%.15s", names[i]);
            found = (int)if_nametoindex(names[i]);
        }
    }
    free_names(names, count);
    return found;
}

static void add_addresses(int index, const char *name, const struct json *list, struct buf *done,
                          struct buf *errors)
{
    for (const struct json *a = list ? list->child : NULL; a; a = a->next) {
        struct prefix p;
        if (a->kind != JSON_STRING || !prefix_parse(a->text, &p)) {
            add_error(errors, "network-config: %s: an address cannot be read", name);
            continue;
        }
        int rc = address_add(index, &p);
        if (rc) {
            add_error(errors, "network-config: %s: %s: %s", name, a->text, strerror(rc));
            continue;
        }
        if (done->len)
            buf_str(done, ",");
        buf_json(done, a->text);
    }
}

static void add_route(int index, const char *name, const char *to, const char *via, bool on_link,
                      struct buf *errors)
{
    struct prefix target = {0}, gateway = {0};
    bool any = !to || !strcmp(to, "default");
    if ((via && !prefix_parse(via, &gateway)) || (!any && !prefix_parse(to, &target)) || (any && !via)) {
        add_error(errors, "network-config: %s: a route cannot be read", name);
        return;
    }
    if (any)
        target.family = gateway.family;
    int rc = route_add(index, &target, via ? &gateway : NULL, on_link);
    if (rc)
        add_error(errors, "network-config: %s: route to %s: %s", name, to ? to : "default", strerror(rc));
}

static void add_routes(int index, const char *name, const struct json *nic, struct buf *errors)
{
    static const char *const keys[] = {"gateway4", "gateway6"};
    for (int i = 0; i < 2; i++)
        if (json_get(nic, keys[i]))
            add_route(index, name, NULL, json_text(nic, keys[i]), false, errors);
    const struct json *routes = json_get(nic, "routes");
    for (const struct json *r = routes ? routes->child : NULL; r; r = r->next) {
        const struct json *on_link = json_get(r, "on-link");
        add_route(index, name, json_text(r, "to"), json_text(r, "via"), on_link && on_link->boolean, errors);
    }
}

static void unknown_keys(const char *name, const struct json *nic, struct buf *errors)
{
    static const char *const known[] = {"match",      "addresses",   "mtu",     "gateway4", "gateway6",
                                        "routes",     "set-name",    "dhcp4",   "dhcp6",    "accept-ra",
                                        "link-local", "nameservers", "optional"};
    for (const struct json *k = nic->child; k; k = k->next) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            found |= !strcmp(known[i], k->key);
        if (!found || ((!strncmp(k->key, "dhcp", 4)) && k->boolean))
            add_error(errors, "network-config: %s: %s is not supported", name, k->key);
    }
}

static void apply_nic(const struct json *nic, struct buf *applied, struct buf *errors)
{
    const char *mac = json_text(json_get(nic, "match"), "macaddress");
    char name[IFNAMSIZ] = "", address[32];
    long long mtu = 0;
    struct buf done = {0};
    if (nic->kind != JSON_OBJECT) {
        add_error(errors, "network-config: %s is no object", nic->key);
        return;
    }
    unknown_keys(nic->key, nic, errors);
    int index = find_interface(mac, nic->key, name);
    if (!index) {
        add_error(errors, "network-config: %s: no interface with %s", nic->key, mac ? mac : "this name");
        return;
    }
    if (json_get(nic, "mtu") && !json_int(nic, "mtu", 68, 65535, &mtu))
        add_error(errors, "network-config: %s: mtu is out of range", nic->key);
    int rc = link_up(index, (unsigned)mtu);
    if (rc)
        add_error(errors, "network-config: %s: link: %s", nic->key, strerror(rc));
    add_addresses(index, nic->key, json_get(nic, "addresses"), &done, errors);
    add_routes(index, nic->key, nic, errors);
    read_line(address, sizeof address, "/sys/class/net/%s/address", name);
    if (applied->len)
        buf_str(applied, ",");
    buf_str(applied, "{\"id\":");
    buf_json(applied, nic->key);
    buf_printf(applied, ",\"name\":\"%s\",\"mac\":\"%s\",\"addresses\":[%s]}", name, address,
               done.len ? done.data : "");
    buf_free(&done);
}

void network_apply(const struct json *config, struct buf *applied, struct buf *errors)
{
    long long version;
    const struct json *inner = json_get(config, "network");
    if (inner)
        config = inner;
    if (!json_int(config, "version", 2, 2, &version)) {
        add_error(errors, "network-config: only version 2 is understood");
        return;
    }
    const struct json *nics = json_get(config, "ethernets");
    for (const struct json *nic = nics ? nics->child : NULL; nic; nic = nic->next)
        if (nic->key)
            apply_nic(nic, applied, errors);
}
