/* Small helpers shared by every tool of the probe guest: a growing buffer, files, numbers, checksums.
 * Nothing here knows of the protocol. Running out of memory ends the process: the guest is thrown away. */
#ifndef PROBE_UTIL_H
#define PROBE_UTIL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    char *data; /* always followed by a NUL that len does not count */
    size_t len;
    size_t cap;
};

void buf_add(struct buf *b, const void *data, size_t len);
void buf_str(struct buf *b, const char *text);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_json(struct buf *b, const char *text);             /* a quoted JSON string, always valid UTF-8 */
void buf_json_n(struct buf *b, const char *text, size_t n); /* the same for a text with a length */
void buf_base64(struct buf *b, const unsigned char *data, size_t len);
void buf_free(struct buf *b);

void *xcalloc(size_t count, size_t size);

/* Whole file into a fresh buffer, at most max bytes. False when it cannot be opened or read. */
bool read_file(struct buf *b, size_t max, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* First line of a small file without its newline; "" when it cannot be read. */
void read_line(char *out, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* An integer from a small file, decimal or 0x; fallback when there is none. */
long long read_number(long long fallback, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool write_file(const char *path, const char *text);

bool parse_mac(const char *text, unsigned char mac[6]);
void format_mac(const unsigned char mac[6], char out[18]);
/* Hex digits, with ':' and blanks between bytes allowed, appended to b. False on anything else. */
bool parse_hex(const char *text, struct buf *b);
bool parse_u64(const char *text, uint64_t max, uint64_t *out);

/* CRC-32 (IEEE 802.3, as zlib's crc32). Start with 0 and feed the result back in. */
uint32_t crc32_of(uint32_t crc, const void *data, size_t len);

double uptime_s(void);
int64_t monotonic_ms(void);

/* One line on stderr and exit status 1 (2 for wrong usage). */
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void usage(const char *text) __attribute__((noreturn));

#endif
