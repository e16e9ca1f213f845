/* The tools of the one static binary, chosen by the name it is called by (main.c), and the paths they share.
 */
#ifndef PROBE_PROBE_H
#define PROBE_PROBE_H

#include "json.h"

int init_main(int argc, char **argv);
int probed_main(int argc, char **argv);
int disktest_main(int argc, char **argv);
int sendframe_main(int argc, char **argv);
int listenframe_main(int argc, char **argv);
int pcimem_main(int argc, char **argv);
int dmaedu_main(int argc, char **argv);

#define STATE_DIR "/run/probe"
#define SEED_STATE STATE_DIR "/seed.json" /* what init made of the seed, spliced into every report */
#define PORT_NAME "org.bulkhead.guest.0"
#define TOOL_PATH "/probe/bin:/bin"

/* seed.c: finds the NoCloud seed, applies it, writes SEED_STATE. */
void seed_apply(void);
bool seed_present(void);

/* seednet.c: applies a network-config document; adds a JSON array of what was done and error texts. */
void network_apply(const struct json *config, struct buf *applied, struct buf *errors);
void add_error(struct buf *errors, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* report.c, reportdev.c: the report's parts, as JSON. */
void report_write(struct buf *b, double ready_s);
void report_pci(struct buf *b);
void report_disks(struct buf *b);
void report_network(struct buf *b);
/* Entries of a directory without dot files, sorted by name (shorter first, so vdb comes before vdaa). */
int list_dir(const char *path, char ***names);
void free_names(char **names, int count);

/* run.c: runs a script to its end and writes the response's members (without braces). */
void run_script(struct buf *b, const char *script, long long timeout_s);

#endif
