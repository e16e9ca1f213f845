// SPDX-License-Identifier: GPL-2.0
/*
 * hangremove: a PCI driver whose remove() does not return until told so.
 *
 * It stands in for a vendor driver that loops in its remove path while something still holds the device: a write to
 * "unbind" then hangs in the kernel and its writer cannot be killed. The id table is empty, so it takes a device only
 * through driver_override (or new_id). "echo 1 > /sys/module/hangremove/parameters/release" lets every waiting remove
 * go on; while release is 0 each new remove waits.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/pci.h>

static bool release;
module_param(release, bool, 0644);
MODULE_PARM_DESC(release, "let remove() return");

static int waiting;
module_param(waiting, int, 0444);
MODULE_PARM_DESC(waiting, "how many remove() calls wait now");

static int hangremove_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	pci_info(pdev, "hangremove: bound\n");
	return 0;
}

static void hangremove_remove(struct pci_dev *pdev)
{
	pci_info(pdev, "hangremove: remove waits for release\n");
	waiting++;
	/* msleep is uninterruptible, like the loop it stands for: SIGKILL does not end the writer. */
	while (!READ_ONCE(release))
		msleep(100);
	waiting--;
	pci_info(pdev, "hangremove: released\n");
}

static const struct pci_device_id hangremove_ids[] = { { 0 } };

static struct pci_driver hangremove_driver = {
	.name = "hangremove",
	.id_table = hangremove_ids,
	.probe = hangremove_probe,
	.remove = hangremove_remove,
};
module_pci_driver(hangremove_driver);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("PCI driver that hangs in remove until released, for tests");
