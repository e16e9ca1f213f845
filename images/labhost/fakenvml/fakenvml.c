/*
 * A minimal libnvidia-ml.so.1 for machines without an NVIDIA GPU: it answers the real nvidia-ml-py about stand-ins.
 *
 * Without a configuration file it reports the display adapters 1234:1111 that a host driver other than vfio-pci holds,
 * as the real library sees only the GPUs of its own driver. With one (/etc/fakenvml.conf, or $FAKENVML_CONF) it
 * reports exactly what the file says, one GPU a line:
 *
 *     0000:21:00.0 none Fake GPU            MIG: none, off or on; the rest of the line is the name
 *
 * It is for discovery: nothing here changes anything. MIG profiles and placements are those of an A100 with 40 GB.
 * Struct layouts and numbers follow NVML's public interface as nvidia-ml-py 13 declares them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
	ARGUMENT_VERSION_MISMATCH = 25
};
enum { MAX_GPUS = 16, MIB = 1 << 20 };
enum mig { MIG_NONE, MIG_OFF, MIG_ON };

struct gpu {
	unsigned domain, bus, device, function, pci_id;
	enum mig mig;
	char name[96];
};

/* nvmlPciInfo_t, 68 bytes */
struct pci_info {
	char bus_id_legacy[16];
	unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
	char bus_id[32];
};
struct memory { unsigned long long total, free, used; };
/* nvmlGpuInstanceProfileInfo_v2_t, 152 bytes */
struct profile_info {
	unsigned version, id, p2p, slices, instances, multiprocessors, copy, decoders, encoders, jpegs, ofas;
	unsigned long long memory_mib;
	char name[96];
};
struct placement { unsigned start, size; };
_Static_assert(sizeof(struct pci_info) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(struct profile_info) == 152, "nvmlGpuInstanceProfileInfo_v2_t");
static const unsigned PROFILE_INFO_V2 = sizeof(struct profile_info) | 2u << 24;

struct profile {
	unsigned number; /* the constant NVML_GPU_INSTANCE_PROFILE_*, not the id */
	unsigned id, slices, instances, multiprocessors, memory_mib, size, count, starts[7];
	const char *name;
};
static const struct profile PROFILES[] = {
	{ 0x0, 19, 1, 7, 14, 4864, 1, 7, { 0, 1, 2, 3, 4, 5, 6 }, "MIG 1g.5gb" },
	{ 0x1, 14, 2, 3, 28, 9856, 2, 3, { 0, 2, 4 }, "MIG 2g.10gb" },
	{ 0x2, 9, 3, 2, 42, 19968, 4, 2, { 0, 4 }, "MIG 3g.20gb" },
	{ 0x3, 5, 4, 1, 56, 19968, 4, 1, { 0 }, "MIG 4g.20gb" },
	{ 0x4, 0, 7, 1, 98, 40192, 8, 1, { 0 }, "MIG 7g.40gb" },
	{ 0x7, 20, 1, 1, 14, 4864, 1, 7, { 0, 1, 2, 3, 4, 5, 6 }, "MIG 1g.5gb+me" },
	{ 0x9, 15, 1, 4, 14, 9856, 2, 4, { 0, 2, 4, 6 }, "MIG 1g.10gb" },
};
enum { PROFILE_NUMBERS = 0x12, PROFILE_COUNT = sizeof(PROFILES) / sizeof(PROFILES[0]) };

static struct gpu gpus[MAX_GPUS];
static unsigned gpu_count;
static int users;

static unsigned read_hex(const char *folder, const char *name)
{
	char path[512];
	unsigned value = 0;
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	FILE *stream = fopen(path, "r");
	if (stream == NULL)
		return 0;
	if (fscanf(stream, "%x", &value) != 1)
		value = 0;
	fclose(stream);
	return value;
}

static int parse_address(const char *text, struct gpu *gpu)
{
	int used = 0;
	int found = sscanf(text, "%x:%x:%x.%x%n", &gpu->domain, &gpu->bus, &gpu->device, &gpu->function, &used);
	return found == 4 ? used : 0;
}

static void add(const struct gpu *gpu)
{
	if (gpu_count < MAX_GPUS)
		gpus[gpu_count++] = *gpu;
}

static void read_config(FILE *stream)
{
	char line[256];
	while (fgets(line, sizeof(line), stream) != NULL) {
		struct gpu gpu = { .pci_id = 0x11111234 };
		char mode[8];
		int used = parse_address(line, &gpu), more = 0;
		if (used == 0 || sscanf(line + used, " %7s %n", mode, &more) != 1)
			continue; /* an empty line or a comment */
		gpu.mig = strcmp(mode, "on") == 0 ? MIG_ON : strcmp(mode, "off") == 0 ? MIG_OFF : MIG_NONE;
		line[strcspn(line, "\n")] = '\0';
		snprintf(gpu.name, sizeof(gpu.name), "%.95s", line + used + more);
		add(&gpu);
	}
}

static int is_stand_in(const char *folder)
{
	char path[512], driver[512];
	if (read_hex(folder, "vendor") != 0x1234 || read_hex(folder, "device") != 0x1111)
		return 0;
	snprintf(path, sizeof(path), "%s/driver", folder);
	ssize_t length = readlink(path, driver, sizeof(driver) - 1);
	if (length < 0)
		return 0;
	driver[length] = '\0';
	const char *name = strrchr(driver, '/');
	return strcmp(name == NULL ? driver : name + 1, "vfio-pci") != 0;
}

static void read_sysfs(void)
{
	static const char BUS[] = "/sys/bus/pci/devices";
	struct dirent **names;
	int count = scandir(BUS, &names, NULL, alphasort);
	for (int i = 0; i < count; i++) {
		char folder[320];
		struct gpu gpu = { .pci_id = 0x11111234, .name = "Bochs display stand-in" };
		snprintf(folder, sizeof(folder), "%s/%s", BUS, names[i]->d_name);
		if (parse_address(names[i]->d_name, &gpu) != 0 && is_stand_in(folder))
			add(&gpu);
		free(names[i]);
	}
	if (count >= 0)
		free(names);
}

int nvmlInitWithFlags(unsigned flags)
{
	(void)flags;
	if (users++ > 0)
		return SUCCESS;
	const char *path = getenv("FAKENVML_CONF");
	FILE *stream = fopen(path != NULL ? path : "/etc/fakenvml.conf", "r");
	gpu_count = 0;
	if (stream == NULL) {
		read_sysfs();
		return SUCCESS;
	}
	read_config(stream);
	fclose(stream);
	return SUCCESS;
}

int nvmlInit_v2(void)
{
	return nvmlInitWithFlags(0);
}

int nvmlShutdown(void)
{
	if (users == 0)
		return UNINITIALIZED;
	users--;
	return SUCCESS;
}

const char *nvmlErrorString(int result)
{
	switch (result) {
	case SUCCESS: return "Success";
	case UNINITIALIZED: return "Uninitialized";
	case INVALID_ARGUMENT: return "Invalid Argument";
	case NOT_SUPPORTED: return "Not Supported";
	case NOT_FOUND: return "Not Found";
	case INSUFFICIENT_SIZE: return "Insufficient Size";
	case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
	default: return "Unknown Error";
	}
}

static int check(const struct gpu *gpu, const void *out)
{
	if (users == 0)
		return UNINITIALIZED;
	return gpu == NULL || out == NULL ? INVALID_ARGUMENT : SUCCESS;
}

static int copy_text(char *buffer, unsigned length, const char *text)
{
	if (strlen(text) + 1 > length)
		return INSUFFICIENT_SIZE;
	strcpy(buffer, text);
	return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *buffer, unsigned length)
{
	return users == 0 ? UNINITIALIZED : copy_text(buffer, length, "580.0.0-fake");
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
	if (users == 0)
		return UNINITIALIZED;
	*count = gpu_count;
	return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **handle)
{
	if (users == 0)
		return UNINITIALIZED;
	if (index >= gpu_count)
		return INVALID_ARGUMENT;
	*handle = &gpus[index];
	return SUCCESS;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *text, struct gpu **handle)
{
	struct gpu wanted;
	if (users == 0)
		return UNINITIALIZED;
	if (text == NULL || parse_address(text, &wanted) == 0)
		return INVALID_ARGUMENT;
	for (unsigned i = 0; i < gpu_count; i++)
		if (gpus[i].domain == wanted.domain && gpus[i].bus == wanted.bus && gpus[i].device == wanted.device &&
		    gpus[i].function == wanted.function) {
			*handle = &gpus[i];
			return SUCCESS;
		}
	return NOT_FOUND;
}

int nvmlDeviceGetIndex(const struct gpu *gpu, unsigned *index)
{
	int bad = check(gpu, index);
	if (bad == SUCCESS)
		*index = (unsigned)(gpu - gpus);
	return bad;
}

int nvmlDeviceGetMinorNumber(const struct gpu *gpu, unsigned *minor)
{
	return nvmlDeviceGetIndex(gpu, minor);
}

int nvmlDeviceGetPciInfo_v3(const struct gpu *gpu, struct pci_info *info)
{
	int bad = check(gpu, info);
	if (bad != SUCCESS)
		return bad;
	memset(info, 0, sizeof(*info));
	info->domain = gpu->domain;
	info->bus = gpu->bus;
	info->device = gpu->device;
	info->pci_device_id = gpu->pci_id;
	info->pci_subsystem_id = 0x11001af4;
	snprintf(info->bus_id_legacy, sizeof(info->bus_id_legacy), "%04X:%02X:%02X.%X", gpu->domain & 0xffff,
		 gpu->bus & 0xff, gpu->device & 0x1f, gpu->function & 7);
	snprintf(info->bus_id, sizeof(info->bus_id), "%08X:%02X:%02X.%X", gpu->domain, gpu->bus, gpu->device,
		 gpu->function);
	return SUCCESS;
}

/* A stand-in has no serial number, so its identity is where it sits. */
int nvmlDeviceGetUUID(const struct gpu *gpu, char *buffer, unsigned length)
{
	char text[48];
	int bad = check(gpu, buffer);
	if (bad != SUCCESS)
		return bad;
	snprintf(text, sizeof(text), "GPU-00000000-0000-4000-8000-%04x%02x%02x%04x", gpu->domain & 0xffff,
		 gpu->bus & 0xff, gpu->device & 0xff, gpu->function & 0xffff);
	return copy_text(buffer, length, text);
}

int nvmlDeviceGetName(const struct gpu *gpu, char *buffer, unsigned length)
{
	int bad = check(gpu, buffer);
	return bad != SUCCESS ? bad : copy_text(buffer, length, gpu->name);
}

int nvmlDeviceGetSerial(const struct gpu *gpu, char *buffer, unsigned length)
{
	(void)length;
	int bad = check(gpu, buffer);
	return bad != SUCCESS ? bad : NOT_SUPPORTED;
}

int nvmlDeviceGetMemoryInfo(const struct gpu *gpu, struct memory *memory)
{
	int bad = check(gpu, memory);
	if (bad != SUCCESS)
		return bad;
	memory->total = gpu->mig == MIG_NONE ? 16ull * MIB : 40960ull * MIB;
	memory->used = 0;
	memory->free = memory->total;
	return SUCCESS;
}

int nvmlDeviceGetMigMode(const struct gpu *gpu, unsigned *current, unsigned *pending)
{
	int bad = check(gpu, current);
	if (bad != SUCCESS)
		return bad;
	if (gpu->mig == MIG_NONE)
		return NOT_SUPPORTED;
	*current = *pending = gpu->mig == MIG_ON;
	return SUCCESS;
}

int nvmlDeviceGetGpuInstanceProfileInfoV(const struct gpu *gpu, unsigned number, struct profile_info *info)
{
	int bad = check(gpu, info);
	if (bad != SUCCESS)
		return bad;
	if (info->version != PROFILE_INFO_V2)
		return ARGUMENT_VERSION_MISMATCH;
	if (number >= PROFILE_NUMBERS)
		return INVALID_ARGUMENT;
	for (unsigned i = 0; gpu->mig != MIG_NONE && i < PROFILE_COUNT; i++) {
		const struct profile *found = &PROFILES[i];
		if (found->number != number)
			continue;
		memset(info, 0, sizeof(*info));
		info->version = PROFILE_INFO_V2;
		info->id = found->id;
		info->slices = found->slices;
		info->instances = found->instances;
		info->multiprocessors = found->multiprocessors;
		info->copy = found->slices;
		info->memory_mib = found->memory_mib;
		snprintf(info->name, sizeof(info->name), "%s", found->name);
		return SUCCESS;
	}
	return NOT_SUPPORTED;
}

int nvmlDeviceGetGpuInstancePossiblePlacements_v2(const struct gpu *gpu, unsigned id, struct placement *out,
						  unsigned *count)
{
	int bad = check(gpu, count);
	if (bad != SUCCESS)
		return bad;
	for (unsigned i = 0; gpu->mig != MIG_NONE && i < PROFILE_COUNT; i++) {
		const struct profile *found = &PROFILES[i];
		if (found->id != id)
			continue;
		if (out != NULL && *count < found->count)
			return INSUFFICIENT_SIZE;
		for (unsigned n = 0; out != NULL && n < found->count; n++)
			out[n] = (struct placement){ found->starts[n], found->size };
		*count = found->count;
		return SUCCESS;
	}
	return NOT_SUPPORTED;
}
