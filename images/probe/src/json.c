#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const char *at;
    const char *end;
    const char *error;
};

static struct json *value(struct reader *r, int depth);

static void blanks(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r'))
        r->at++;
}

static bool eat(struct reader *r, char c)
{
    if (r->at < r->end && *r->at == c) {
        r->at++;
        return true;
    }
    return false;
}

static struct json *node(enum json_kind kind)
{
    struct json *v = xcalloc(1, sizeof *v);
    v->kind = kind;
    return v;
}

static void *fail(struct reader *r, const char *why)
{
    if (!r->error)
        r->error = why;
    return NULL;
}

static void add_utf8(struct buf *b, unsigned c)
{
    unsigned char out[4];
    size_t n;
    if (c < 0x80) {
        out[0] = (unsigned char)c, n = 1;
    } else if (c < 0x800) {
        out[0] = (unsigned char)(0xc0 | c >> 6), out[1] = (unsigned char)(0x80 | (c & 63)), n = 2;
    } else if (c < 0x10000) {
        out[0] = (unsigned char)(0xe0 | c >> 12), out[1] = (unsigned char)(0x80 | (c >> 6 & 63));
        out[2] = (unsigned char)(0x80 | (c & 63)), n = 3;
    } else {
        out[0] = (unsigned char)(0xf0 | c >> 18), out[1] = (unsigned char)(0x80 | (c >> 12 & 63));
        out[2] = (unsigned char)(0x80 | (c >> 6 & 63)), out[3] = (unsigned char)(0x80 | (c & 63)), n = 4;
    }
    buf_add(b, out, n);
}

static bool hex4(struct reader *r, unsigned *out)
{
    if (r->end - r->at < 4)
        return false;
    unsigned v = 0;
    for (int i = 0; i < 4; i++) {
        char c = r->at[i];
        unsigned d = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
                     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A' + 10)
                                            : 16;
        if (d == 16)
            return false;
        v = v << 4 | d;
    }
    r->at += 4;
    *out = v;
    return true;
}

static bool escape(struct reader *r, struct buf *b)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *r->at++;
    if (c == 'u') {
        unsigned hi, lo;
        if (!hex4(r, &hi) || hi == 0)
            return false;
        if (hi >= 0xd800 && hi < 0xe000) {
            if (hi >= 0xdc00 || !eat(r, '\\') || !eat(r, 'u') || !hex4(r, &lo) || lo < 0xdc00 || lo > 0xdfff)
                return false;
            hi = 0x10000 + ((hi - 0xd800) << 10) + (lo - 0xdc00);
        }
        add_utf8(b, hi);
        return true;
    }
    const char *p = c ? strchr(from, c) : NULL;
    if (!p)
        return false;
    buf_add(b, to + (p - from), 1);
    return true;
}

static char *string(struct reader *r)
{
    if (!eat(r, '"'))
        return fail(r, "a string was expected");
    struct buf b = {0};
    buf_str(&b, "");
    while (r->at < r->end) {
        const char *start = r->at;
        while (r->at < r->end && *r->at != '"' && *r->at != '\\' && (unsigned char)*r->at >= 0x20)
            r->at++;
        buf_add(&b, start, (size_t)(r->at - start));
        if (eat(r, '"'))
            return b.data;
        if (!eat(r, '\\') || r->at >= r->end || !escape(r, &b))
            break;
    }
    buf_free(&b);
    return fail(r, "a string is broken or does not end");
}

static struct json *number(struct reader *r)
{
    char text[40];
    size_t n = 0;
    while (r->at + n < r->end && n < sizeof text - 1 && r->at[n] && strchr("+-.0123456789eE", r->at[n]))
        n++;
    memcpy(text, r->at, n);
    text[n] = 0;
    const char *p = text + (text[0] == '-');
    const char *dot = strchr(text, '.');
    char *end;
    double d = strtod(text, &end);
    if (dot && (dot[1] < '0' || dot[1] > '9'))
        return fail(r, "not a value");
    if (!n || *end || *p < '0' || *p > '9' || (p[0] == '0' && p[1] >= '0' && p[1] <= '9') || !isfinite(d))
        return fail(r, "not a value");
    r->at += n;
    struct json *v = node(JSON_NUMBER);
    v->number = d;
    v->text = strdup(text);
    if (!v->text)
        die("out of memory");
    return v;
}

static bool word(struct reader *r, const char *w)
{
    size_t n = strlen(w);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, w, n))
        return false;
    r->at += n;
    return true;
}

static struct json *container(struct reader *r, int depth, enum json_kind kind)
{
    char close = kind == JSON_OBJECT ? '}' : ']';
    struct json *v = node(kind), **tail = &v->child;
    r->at++;
    blanks(r);
    if (eat(r, close))
        return v;
    do {
        char *key = NULL;
        blanks(r);
        if (kind == JSON_OBJECT) {
            if (!(key = string(r)))
                goto bad;
            blanks(r);
            if (json_get(v, key) || !eat(r, ':')) {
                free(key);
                fail(r, "a key is twice there or has no value");
                goto bad;
            }
        }
        struct json *item = value(r, depth + 1);
        if (!item) {
            free(key);
            goto bad;
        }
        item->key = key;
        *tail = item;
        tail = &item->next;
        blanks(r);
    } while (eat(r, ','));
    if (eat(r, close))
        return v;
    fail(r, "a comma or the end of a list was expected");
bad:
    json_free(v);
    return NULL;
}

static struct json *value(struct reader *r, int depth)
{
    if (depth > JSON_MAX_DEPTH)
        return fail(r, "nested too deep");
    blanks(r);
    if (r->at >= r->end)
        return fail(r, "the text ends too early");
    if (*r->at == '{' || *r->at == '[')
        return container(r, depth, *r->at == '{' ? JSON_OBJECT : JSON_ARRAY);
    if (*r->at == '"') {
        char *text = string(r);
        if (!text)
            return NULL;
        struct json *v = node(JSON_STRING);
        v->text = text;
        return v;
    }
    bool yes = word(r, "true");
    if (yes || word(r, "false")) {
        struct json *v = node(JSON_BOOL);
        v->boolean = yes;
        return v;
    }
    if (word(r, "null"))
        return node(JSON_NULL);
    return number(r);
}

struct json *json_parse(const char *text, size_t len, const char **error)
{
    struct reader r = {text, text + len, NULL};
    struct json *v = value(&r, 0);
    blanks(&r);
    if (v && r.at != r.end) {
        json_free(v);
        v = fail(&r, "something follows the value");
    }
    if (!v && error)
        *error = r.error;
    return v;
}

void json_free(struct json *v)
{
    while (v) {
        struct json *next = v->next;
        json_free(v->child);
        free(v->text);
        free(v->key);
        free(v);
        v = next;
    }
}

const struct json *json_get(const struct json *object, const char *key)
{
    if (!object || object->kind != JSON_OBJECT)
        return NULL;
    for (const struct json *v = object->child; v; v = v->next)
        if (v->key && !strcmp(v->key, key))
            return v;
    return NULL;
}

const char *json_text(const struct json *object, const char *key)
{
    const struct json *v = json_get(object, key);
    return v && v->kind == JSON_STRING ? v->text : NULL;
}

bool json_int(const struct json *object, const char *key, long long min, long long max, long long *out)
{
    const struct json *v = json_get(object, key);
    if (!v || v->kind != JSON_NUMBER || floor(v->number) != v->number)
        return false;
    /* Beyond 2^53 a double no longer tells whole numbers apart. */
    if (fabs(v->number) > 9007199254740992.0 || v->number < (double)min || v->number > (double)max)
        return false;
    *out = (long long)v->number;
    return true;
}

void json_write(struct buf *b, const struct json *v)
{
    switch (v->kind) {
    case JSON_NULL:
        buf_str(b, "null");
        break;
    case JSON_BOOL:
        buf_str(b, v->boolean ? "true" : "false");
        break;
    case JSON_NUMBER:
        /* As it came: a double would not give back every whole number beyond 2^53. */
        buf_str(b, v->text);
        break;
    case JSON_STRING:
        buf_json(b, v->text);
        break;
    default:
        buf_str(b, v->kind == JSON_OBJECT ? "{" : "[");
        for (const struct json *c = v->child; c; c = c->next) {
            if (c->key) {
                buf_json(b, c->key);
                buf_str(b, ":");
            }
            json_write(b, c);
            if (c->next)
                buf_str(b, ",");
        }
        buf_str(b, v->kind == JSON_OBJECT ? "}" : "]");
    }
}
