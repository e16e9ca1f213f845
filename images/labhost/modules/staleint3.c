// SPDX-License-Identifier: GPL-2.0
/*
 * staleint3: lets a CPU go on that ran a breakpoint which is not there any more.
 *
 * The kernel changes its own code (a static key, for instance when the first KVM VM comes or the last one goes) by
 * writing an int3, changing the rest, and taking the int3 away, with all CPUs told in between. On real CPUs nobody
 * runs the int3 after that. An emulated CPU can: it finds no handler any more, and the kernel dies of "Oops: int3".
 * Here the instruction is simply run again, if it is no int3 now.
 */
#include <linux/kdebug.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/ptrace.h>

static unsigned long seen;
module_param(seen, ulong, 0444);
MODULE_PARM_DESC(seen, "how many were met");

static int staleint3_notify(struct notifier_block *block, unsigned long event, void *data)
{
	struct pt_regs *regs = ((struct die_args *)data)->regs;

	if (event != DIE_INT3 || user_mode(regs))
		return NOTIFY_DONE;
	/* It was run a moment ago, so it can be read. */
	if (READ_ONCE(*(unsigned char *)(regs->ip - 1)) == 0xcc)
		return NOTIFY_DONE;
	regs->ip -= 1;
	seen++;
	return NOTIFY_STOP;
}

static struct notifier_block staleint3_block = {
	.notifier_call = staleint3_notify,
	.priority = INT_MAX,
};

static int __init staleint3_init(void)
{
	return register_die_notifier(&staleint3_block);
}

static void __exit staleint3_exit(void)
{
	unregister_die_notifier(&staleint3_block);
}

module_init(staleint3_init);
module_exit(staleint3_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Runs an instruction again whose breakpoint is gone, for emulated CPUs");
