/* Chooses the tool by the name this binary is called by. */
#include <stdio.h>
#include <string.h>

#include "probe.h"

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int, char **);
    } tools[] = {
        {"init", init_main},           {"probed", probed_main},           {"disktest", disktest_main},
        {"sendframe", sendframe_main}, {"listenframe", listenframe_main}, {"pcimem", pcimem_main},
        {"dmaedu", dmaedu_main},
    };
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *name = slash ? slash + 1 : argc > 0 ? argv[0] : "";
    for (size_t i = 0; i < sizeof tools / sizeof *tools; i++)
        if (!strcmp(name, tools[i].name))
            return tools[i].run(argc, argv);
    fprintf(stderr, "no tool is called %s\n", name);
    return 2;
}
