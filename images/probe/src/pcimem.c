/* pcimem: fills a PCI device's memory region with a pattern, or searches it for one. With it a test leaves a
 * mark in a device's memory and looks whether the next owner still finds it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pcibar.h"
#include "probe.h"

#define PATTERN_MAX 4096

static const char help[] = "pcimem fill|search PCI_ADDRESS BAR PATTERN_HEX [--bytes N] [--offset N]";

/* Device memory may only take aligned accesses of a word; copies go through here, never through memcpy. */
static void copy_out(unsigned char *to, const struct bar *bar, size_t at, size_t len)
{
    for (size_t i = 0; i < len; i += 4) {
        uint32_t word = *(volatile uint32_t *)(bar->at + at + i);
        memcpy(to + i, &word, 4);
    }
}

static void copy_in(const struct bar *bar, size_t at, const unsigned char *from, size_t len)
{
    for (size_t i = 0; i < len; i += 4) {
        uint32_t word;
        memcpy(&word, from + i, 4);
        *(volatile uint32_t *)(bar->at + at + i) = word;
    }
}

static size_t count_hits(const unsigned char *data, size_t len, const struct buf *pattern, long long *first)
{
    size_t hits = 0;
    const unsigned char *at = data, *end = data + len;
    while ((at = memmem(at, (size_t)(end - at), pattern->data, pattern->len))) {
        if (!hits++)
            *first = at - data;
        /* On past this hit: a fill of N patterns is N hits, not one per byte of a run. */
        at += pattern->len;
    }
    return hits;
}

static void parse_range(int argc, char **argv, uint64_t size, uint64_t *offset, uint64_t *bytes)
{
    *offset = 0;
    *bytes = UINT64_MAX;
    for (int i = 5; i < argc; i += 2) {
        uint64_t *target = !strcmp(argv[i], "--bytes") ? bytes : !strcmp(argv[i], "--offset") ? offset : NULL;
        if (!target || i + 1 >= argc || !parse_u64(argv[i + 1], 1ull << 40, target))
            usage(help);
    }
    if (*bytes == UINT64_MAX)
        *bytes = *offset < size ? size - *offset : 0;
    if (*offset > size || *bytes > size - *offset || !*bytes || *offset % 4 || *bytes % 4)
        die("the range lies outside the region of %llu bytes or is no multiple of 4",
            (unsigned long long)size);
}

int pcimem_main(int argc, char **argv)
{
    uint64_t index, offset, bytes;
    struct buf pattern = {0};
    if (argc < 5 || (strcmp(argv[1], "fill") && strcmp(argv[1], "search")) ||
        !parse_u64(argv[3], 5, &index) || !parse_hex(argv[4], &pattern) || !pattern.len ||
        pattern.len > PATTERN_MAX)
        usage(help);
    bool fill = argv[1][0] == 'f';
    struct bar bar = bar_open(argv[2], (unsigned)index, false);
    parse_range(argc, argv, bar.size, &offset, &bytes);
    unsigned char *data = malloc(bytes);
    if (!data)
        die("out of memory");
    if (fill) {
        for (size_t i = 0; i < bytes; i++)
            data[i] = (unsigned char)pattern.data[i % pattern.len];
        copy_in(&bar, offset, data, bytes);
    }
    copy_out(data, &bar, offset, bytes);
    long long first = -1;
    size_t hits = count_hits(data, bytes, &pattern, &first);
    printf("%s hits=%zu first=%lld bytes=%llu region=%zu crc32=%08x\n", argv[1], hits,
           first < 0 ? -1 : first + (long long)offset, (unsigned long long)bytes, bar.size,
           crc32_of(0, data, bytes));
    if (fill && hits != bytes / pattern.len)
        die("the device did not keep the pattern");
    return 0;
}
