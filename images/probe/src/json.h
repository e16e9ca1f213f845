/* A strict JSON reader for what comes from outside (requests, the seed). Depth and size are bounded.
 * Duplicate keys are refused: two readers that pick different ones are how checks get passed by. */
#ifndef PROBE_JSON_H
#define PROBE_JSON_H

#include <stdbool.h>
#include <stddef.h>

#include "util.h"

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_kind kind;
    bool boolean;
    double number;
    char *text;         /* of a string: UTF-8 (a \u0000 inside is refused); of a number: as it came */
    char *key;          /* the member's name when the parent is an object */
    struct json *child; /* first element or member */
    struct json *next;
};

#define JSON_MAX_DEPTH 32

/* The value, or NULL with a reason in *error (a constant text). */
struct json *json_parse(const char *text, size_t len, const char **error);
void json_free(struct json *v);

const struct json *json_get(const struct json *object, const char *key);
/* The member's text, or NULL when it is missing or no string. */
const char *json_text(const struct json *object, const char *key);
/* A whole number of the member between min and max; false when missing, not whole or outside. */
bool json_int(const struct json *object, const char *key, long long min, long long max, long long *out);
/* Back to compact one-line JSON. */
void json_write(struct buf *b, const struct json *v);

#endif
