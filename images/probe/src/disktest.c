/* disktest: writes a random pattern on a block device, past all caches, reads it back and compares. It
 * refuses everything that the disk's partition table lays claim to: the guest boots from there. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "probe.h"

#define MIB (1024 * 1024)

/* True when [start, end) in bytes touches the first MiB of a disk with an MBR, or one of its four partitions.
 */
static bool claimed(const unsigned char *mbr, uint64_t start, uint64_t end)
{
    if (mbr[510] != 0x55 || mbr[511] != 0xaa)
        return false;
    if (start < MIB)
        return true;
    for (const unsigned char *p = mbr + 446; p < mbr + 510; p += 16) {
        uint64_t first = p[8] | p[9] << 8 | p[10] << 16 | (uint64_t)p[11] << 24;
        uint64_t count = p[12] | p[13] << 8 | p[14] << 16 | (uint64_t)p[15] << 24;
        if (p[4] && start < (first + count) * 512 && end > first * 512)
            return true;
    }
    return false;
}

static void fill_random(unsigned char *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = getrandom(data + done, len - done, 0);
        if (n < 0 && errno != EINTR)
            die("no random bytes: %s", strerror(errno));
        done += n > 0 ? (size_t)n : 0;
    }
}

static void transfer(int fd, unsigned char *data, size_t len, uint64_t at, bool out)
{
    for (size_t done = 0; done < len;) {
        off_t offset = (off_t)(at + done);
        ssize_t n =
            out ? pwrite(fd, data + done, len - done, offset) : pread(fd, data + done, len - done, offset);
        if (n <= 0)
            die("%s failed at byte %llu: %s", out ? "write" : "read", (unsigned long long)offset,
                n < 0 ? strerror(errno) : "the device ends");
        done += (size_t)n;
    }
}

int disktest_main(int argc, char **argv)
{
    uint64_t offset_mib, mib = 1;
    if (argc < 3 || argc > 4 || !parse_u64(argv[2], 1 << 30, &offset_mib) ||
        (argc == 4 && (!parse_u64(argv[3], 64, &mib) || !mib)))
        usage("disktest DEV OFFSET_MIB [MIB]   (MIB 1 to 64, 1 when left out)");
    size_t len = (size_t)mib * MIB;
    uint64_t at = offset_mib * MIB;
    unsigned char *wrote = aligned_alloc(4096, len), *back = aligned_alloc(4096, len);
    if (!wrote || !back)
        die("out of memory");
    int fd = open(argv[1], O_RDWR | O_DIRECT | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        die("%s: %s", argv[1], strerror(errno));
    if (!S_ISBLK(st.st_mode))
        die("%s is no block device", argv[1]);
    transfer(fd, back, 4096, 0, false);
    if (claimed(back, at, at + len))
        die("refused: the boot partition is there");
    fill_random(wrote, len);
    transfer(fd, wrote, len, at, true);
    if (fsync(fd))
        die("sync: %s", strerror(errno));
    ioctl(fd, BLKFLSBUF, 0);
    memset(back, 0, len);
    transfer(fd, back, len, at, false);
    if (memcmp(wrote, back, len))
        die("mismatch: wrote crc32=%08x, read crc32=%08x", crc32_of(0, wrote, len), crc32_of(0, back, len));
    printf("ok bytes=%zu offset=%llu crc32=%08x\n", len, (unsigned long long)at, crc32_of(0, wrote, len));
    return 0;
}
