/* dmaedu: makes QEMU's `edu` device (1234:11e8) move bytes between its buffer and a guest-physical address of
 * our choice. A test aims it outside the guest and looks for the fault in the host's IOMMU log. Registers:
 * QEMU docs/specs/edu. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pcibar.h"
#include "probe.h"

#define EDU_ID 0x00
#define EDU_DMA_SOURCE 0x80
#define EDU_DMA_TARGET 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_COMMAND 0x98
#define EDU_BUFFER 0x40000u
/* The buffer has 4096 bytes, but QEMU (7.2, edu_check_range) takes the byte after the last for part of the
 * transfer and ends the whole machine when that lies outside: never ask for all of it. */
#define EDU_MOST_BYTES 4095
#define SELFTEST_BYTES 2048
#define COMMAND_START 1
#define COMMAND_TO_MEMORY 2
#define TIMEOUT_MS 10000

static const char help[] =
    "dmaedu PCI_ADDRESS selftest | to-memory ADDRESS BYTES | from-memory ADDRESS BYTES";

static void set64(const struct bar *bar, unsigned at, uint64_t value)
{
    *(volatile uint64_t *)(bar->at + at) = value;
}

static uint64_t get64(const struct bar *bar, unsigned at)
{
    return *(volatile uint64_t *)(bar->at + at);
}

static void transfer(const struct bar *bar, bool to_memory, uint64_t address, uint64_t bytes)
{
    set64(bar, EDU_DMA_SOURCE, to_memory ? EDU_BUFFER : address);
    set64(bar, EDU_DMA_TARGET, to_memory ? address : EDU_BUFFER);
    set64(bar, EDU_DMA_COUNT, bytes);
    set64(bar, EDU_DMA_COMMAND, COMMAND_START | (to_memory ? COMMAND_TO_MEMORY : 0));
    for (int64_t end = monotonic_ms() + TIMEOUT_MS; get64(bar, EDU_DMA_COMMAND) & COMMAND_START;
         usleep(10000))
        if (monotonic_ms() > end)
            die("the transfer does not end");
}

/* proc(5), pagemap: bit 63 present, bits 0 to 54 the page frame. */
static uint64_t physical(const void *page)
{
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || pread(fd, &entry, 8, (off_t)((uintptr_t)page / 4096 * 8)) != 8 || !(entry >> 63))
        die("the physical address of a page cannot be read");
    close(fd);
    return (entry & ((1ull << 55) - 1)) * 4096;
}

static void selftest(const struct bar *bar)
{
    unsigned char *page =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (page == MAP_FAILED || mlock(page, 4096))
        die("no page for the transfer");
    for (int i = 0; i < SELFTEST_BYTES; i++)
        page[i] = (unsigned char)(i * 7 + i / 256);
    uint32_t before = crc32_of(0, page, SELFTEST_BYTES);
    uint64_t address = physical(page);
    transfer(bar, false, address, SELFTEST_BYTES);
    memset(page, 0, SELFTEST_BYTES);
    transfer(bar, true, address, SELFTEST_BYTES);
    uint32_t after = crc32_of(0, page, SELFTEST_BYTES);
    if (before != after)
        die("mismatch: sent crc32=%08x, came back crc32=%08x", before, after);
    printf("ok address=0x%llx bytes=%d crc32=%08x\n", (unsigned long long)address, SELFTEST_BYTES, after);
}

int dmaedu_main(int argc, char **argv)
{
    uint64_t address = 0, bytes = 0;
    bool self = argc == 3 && !strcmp(argv[2], "selftest");
    if (!self &&
        (argc != 5 || (strcmp(argv[2], "to-memory") && strcmp(argv[2], "from-memory")) ||
         !parse_u64(argv[3], UINT64_MAX, &address) || !parse_u64(argv[4], EDU_MOST_BYTES, &bytes) || !bytes))
        usage(help);
    struct bar bar = bar_open(argv[1], 0, true);
    /* 0xRRrr00edu: the low half of the identification register is fixed. */
    if ((*(volatile uint32_t *)(bar.at + EDU_ID) & 0xffff) != 0x00ed)
        die("%s is no edu device", argv[1]);
    if (self) {
        selftest(&bar);
        return 0;
    }
    transfer(&bar, argv[2][0] == 't', address, bytes);
    printf("done %s address=0x%llx bytes=%llu\n", argv[2], (unsigned long long)address,
           (unsigned long long)bytes);
    return 0;
}
