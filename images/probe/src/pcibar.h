/* Access to a PCI function's memory regions through sysfs. */
#ifndef PROBE_PCIBAR_H
#define PROBE_PCIBAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bar {
    volatile unsigned char *at;
    size_t size;
};

/* Turns memory decoding on (and bus mastering when asked), maps the region. Ends the process with a reason if
 * it cannot. */
struct bar bar_open(const char *pci_address, unsigned index, bool bus_master);

#endif
