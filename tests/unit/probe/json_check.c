/* Reads JSON texts, one per line, and prints each back as the guest's parser understood it, or `!` and why not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

int main(void)
{
    char *line = NULL;
    size_t room = 0;
    for (ssize_t n; (n = getline(&line, &room, stdin)) > 0;) {
        const char *error = "";
        if (line[n - 1] == '\n')
            n--;
        /* A copy of exactly that length, so that the sanitizer sees a read past its end. */
        char *text = malloc((size_t)n + 1);
        memcpy(text, line, (size_t)n);
        text = realloc(text, n ? (size_t)n : 1);
        struct json *v = json_parse(text, (size_t)n, &error);
        struct buf out = {0};
        if (v)
            json_write(&out, v);
        printf("%s%s\n", v ? "" : "!", v ? out.data : error);
        buf_free(&out);
        json_free(v);
        free(text);
    }
    free(line);
    return 0;
}
