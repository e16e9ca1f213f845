/*
 * A minimal libnvidia-ml.so.1 for machines without an NVIDIA GPU: it answers the real nvidia-ml-py about stand-ins.
 *
 * Without a configuration file it reports the display adapters 1234:1111 that a host driver other than vfio-pci holds,
 * as the real library sees only the GPUs of its own driver. With one (/etc/fakenvml.conf, or $FAKENVML_CONF) it
 * reports exactly what the file says, one GPU a line:
 *
 *     0000:21:00.0 none Fake GPU                  MIG: none, off or on; the rest of the line is the name
 *     0000:22:00.0 off model=h200 NVIDIA H200     whose MIG profiles it has: a100-40 (as without), h100-80, h200
 *
 * It is for discovery: nothing here changes anything. H100 and H200 answer as driver 580 did on real ones
 * (tests/fixtures/nvml), refusals included; the A100 follows NVIDIA's tables. Struct layouts and numbers follow NVML's
 * public interface as nvidia-ml-py 13 declares them.
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

struct model;
struct gpu {
	const struct model *model;
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
/* nvmlGpuInstanceProfileInfo_t, 48 bytes */
struct profile_info_v1 {
	unsigned id, p2p, slices, instances, multiprocessors, copy, decoders, encoders, jpegs, ofas;
	unsigned long long memory_mib;
};
struct placement { unsigned start, size; };
_Static_assert(sizeof(struct pci_info) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(struct profile_info) == 152, "nvmlGpuInstanceProfileInfo_v2_t");
_Static_assert(sizeof(struct profile_info_v1) == 48, "nvmlGpuInstanceProfileInfo_t");
static const unsigned PROFILE_INFO_V2 = sizeof(struct profile_info) | 2u << 24;

/* What all GPUs of seven compute slices share. */
struct shape {
	unsigned number; /* the constant NVML_GPU_INSTANCE_PROFILE_*, not the id */
	unsigned id, slices, instances, size, count, starts[7];
};
enum { SHAPES = 7 };
static const struct shape SHAPE[SHAPES] = {
	{ 0x0, 19, 1, 7, 1, 7, { 0, 1, 2, 3, 4, 5, 6 } },
	{ 0x1, 14, 2, 3, 2, 3, { 0, 2, 4 } },
	{ 0x2, 9, 3, 2, 4, 2, { 0, 4 } },
	{ 0x3, 5, 4, 1, 4, 1, { 0 } },
	{ 0x4, 0, 7, 1, 8, 1, { 0 } },
	{ 0x7, 20, 1, 1, 1, 7, { 0, 1, 2, 3, 4, 5, 6 } },
	{ 0x9, 15, 1, 4, 2, 4, { 0, 2, 4, 6 } },
};
/* What differs, in the order of SHAPE. */
struct profile {
	unsigned memory_mib, multiprocessors, copy, decoders, jpegs, ofas;
	const char *name;
};
struct model {
	const char *name;
	unsigned memory_mib;
	struct profile profiles[SHAPES];
};
static const struct model MODELS[] = {
	{ "a100-40", 40960, {
		{ 4864, 14, 1, 0, 0, 0, "MIG 1g.5gb" },
		{ 9856, 28, 2, 1, 0, 0, "MIG 2g.10gb" },
		{ 19968, 42, 3, 2, 0, 0, "MIG 3g.20gb" },
		{ 19968, 56, 4, 2, 0, 0, "MIG 4g.20gb" },
		{ 40192, 98, 7, 5, 1, 1, "MIG 7g.40gb" },
		{ 4864, 14, 1, 1, 1, 1, "MIG 1g.5gb+me" },
		{ 9856, 14, 1, 1, 0, 0, "MIG 1g.10gb" } } },
	{ "h100-80", 81559, {
		{ 9984, 16, 1, 1, 1, 0, "MIG 1g.10gb" },
		{ 20096, 32, 2, 2, 2, 0, "MIG 2g.20gb" },
		{ 40448, 60, 3, 3, 3, 0, "MIG 3g.40gb" },
		{ 40448, 64, 4, 4, 4, 0, "MIG 4g.40gb" },
		{ 81152, 132, 8, 7, 7, 1, "MIG 7g.80gb" },
		{ 9984, 16, 1, 1, 1, 1, "MIG 1g.10gb+me" },
		{ 20096, 26, 1, 1, 1, 0, "MIG 1g.20gb" } } },
	{ "h200", 143771, {
		{ 16384, 16, 1, 1, 1, 0, "MIG 1g.18gb" },
		{ 33280, 32, 2, 2, 2, 0, "MIG 2g.35gb" },
		{ 71424, 60, 3, 3, 3, 0, "MIG 3g.71gb" },
		{ 71424, 64, 4, 4, 4, 0, "MIG 4g.71gb" },
		{ 143360, 132, 8, 7, 7, 1, "MIG 7g.141gb" },
		{ 16384, 16, 1, 1, 1, 1, "MIG 1g.18gb+me" },
		{ 33280, 26, 1, 1, 1, 0, "MIG 1g.35gb" } } },
};
enum { MODEL_COUNT = sizeof(MODELS) / sizeof(MODELS[0]) };
/* Driver 580 knows constants up to 0x10; newer bindings have more. */
enum { PROFILE_NUMBERS = 0x11 };
/* Ids of other GPUs' profiles: those it refuses, and those it answers with no place and no capacity. */
static const unsigned char REFUSED[] = { 6, 10, 21 };
static const unsigned char EMPTY[] = { 32, 35, 38, 47, 48, 64, 65, 66, 67, 72, 73 };

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
		gpu.model = &MODELS[0];
		const char *name = line + used + more;
		for (unsigned i = 0; i < MODEL_COUNT; i++) {
			char word[32];
			size_t length = (size_t)snprintf(word, sizeof(word), "model=%s ", MODELS[i].name);
			if (strncmp(name, word, length) == 0) {
				gpu.model = &MODELS[i];
				name += length;
				break;
			}
		}
		snprintf(gpu.name, sizeof(gpu.name), "%.95s", name);
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
		struct gpu gpu = { .model = &MODELS[0], .pci_id = 0x11111234, .name = "Bochs display stand-in" };
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
	memory->total = gpu->mig == MIG_NONE ? 16ull * MIB : (unsigned long long)gpu->model->memory_mib * MIB;
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

static int find_by_number(const struct gpu *gpu, unsigned number, unsigned *index)
{
	if (number >= PROFILE_NUMBERS)
		return INVALID_ARGUMENT;
	for (*index = 0; gpu->mig != MIG_NONE && *index < SHAPES; (*index)++)
		if (SHAPE[*index].number == number)
			return SUCCESS;
	return NOT_SUPPORTED;
}

/* SUCCESS with an index of SHAPES is an id without place or capacity. */
static int find_by_id(const struct gpu *gpu, unsigned id, unsigned *index)
{
	if (gpu->mig == MIG_NONE)
		return NOT_SUPPORTED;
	for (*index = 0; *index < SHAPES; (*index)++)
		if (SHAPE[*index].id == id)
			return SUCCESS;
	if (id <= 0xff && memchr(REFUSED, (int)id, sizeof(REFUSED)) != NULL)
		return NOT_SUPPORTED;
	return id <= 0xff && memchr(EMPTY, (int)id, sizeof(EMPTY)) != NULL ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetGpuInstanceProfileInfo(const struct gpu *gpu, unsigned number, struct profile_info_v1 *info)
{
	unsigned index;
	int bad = check(gpu, info);
	if (bad == SUCCESS)
		bad = find_by_number(gpu, number, &index);
	if (bad != SUCCESS)
		return bad;
	const struct shape *shape = &SHAPE[index];
	const struct profile *found = &gpu->model->profiles[index];
	*info = (struct profile_info_v1){
		.id = shape->id, .slices = shape->slices, .instances = shape->instances,
		.multiprocessors = found->multiprocessors, .copy = found->copy, .decoders = found->decoders,
		.jpegs = found->jpegs, .ofas = found->ofas, .memory_mib = found->memory_mib,
	};
	return SUCCESS;
}

/* The real one leaves 0 in `version`: a struct that is used again without setting it is refused. */
int nvmlDeviceGetGpuInstanceProfileInfoV(const struct gpu *gpu, unsigned number, struct profile_info *info)
{
	struct profile_info_v1 first;
	unsigned index = 0;
	int bad = check(gpu, info);
	if (bad != SUCCESS)
		return bad;
	if (info->version != PROFILE_INFO_V2)
		return ARGUMENT_VERSION_MISMATCH;
	bad = find_by_number(gpu, number, &index);
	if (bad == SUCCESS)
		bad = nvmlDeviceGetGpuInstanceProfileInfo(gpu, number, &first);
	if (bad != SUCCESS)
		return bad;
	*info = (struct profile_info){
		.id = first.id, .slices = first.slices, .instances = first.instances,
		.multiprocessors = first.multiprocessors, .copy = first.copy, .decoders = first.decoders,
		.jpegs = first.jpegs, .ofas = first.ofas, .memory_mib = first.memory_mib,
	};
	snprintf(info->name, sizeof(info->name), "%s", gpu->model->profiles[index].name);
	return SUCCESS;
}

int nvmlDeviceGetGpuInstancePossiblePlacements_v2(const struct gpu *gpu, unsigned id, struct placement *out,
						  unsigned *count)
{
	unsigned index;
	int bad = check(gpu, count);
	if (bad == SUCCESS)
		bad = find_by_id(gpu, id, &index);
	if (bad != SUCCESS)
		return bad;
	unsigned wanted = index < SHAPES ? SHAPE[index].count : 0;
	if (out != NULL && *count < wanted)
		return INSUFFICIENT_SIZE;
	for (unsigned n = 0; out != NULL && n < wanted; n++)
		out[n] = (struct placement){ SHAPE[index].starts[n], SHAPE[index].size };
	*count = wanted;
	return SUCCESS;
}

/* Nothing is ever made here, so all of it is left. */
int nvmlDeviceGetGpuInstanceRemainingCapacity(const struct gpu *gpu, unsigned id, unsigned *count)
{
	unsigned index;
	int bad = check(gpu, count);
	if (bad == SUCCESS)
		bad = find_by_id(gpu, id, &index);
	if (bad == SUCCESS)
		*count = index < SHAPES ? SHAPE[index].instances : 0;
	return bad;
}
