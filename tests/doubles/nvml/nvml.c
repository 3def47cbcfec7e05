/*
 * libnvidia-ml.so.1 as a double: GPUs whose readings follow a script, so that a test knows what must be recorded.
 *
 * DOUBLE_NVML_SCRIPT names a text file. Its lines:
 *
 *	gpus N			how many GPUs there are (2 without the line)
 *	init CODE		what nvmlInit returns
 *	AT GPU FIELD VALUE	from AT ms after nvmlInit on, FIELD reads VALUE
 *	AT GPU refuse FIELD CODE	from then on, asking for FIELD returns CODE (0: answers again)
 *	AT GPU hang MS		the first call after AT does not return for MS
 *	AT GPU process PID BYTES	a compute process holds BYTES (-1: NVML cannot tell; 0: it is gone)
 *
 * Lines take effect in the order of the file; GPU may be * for all. FIELD is a name of `fields` below. Everything else
 * after a # is a comment.
 */
#include "nvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_LINES 4096
#define MAX_GPUS 16
#define MAX_PROCESSES 64
#define EXPORT __attribute__((visibility("default")))

enum field {
	UTILIZATION, MEMORY_UTILIZATION, MEMORY_TOTAL, MEMORY_USED, MEMORY_RESERVED, POWER, POWER_LIMIT, TEMPERATURE,
	CLOCK_SM, CLOCK_MEMORY, CLOCK_SM_MAX, EVENT_REASONS, PCIE_TX, PCIE_RX, PCIE_GENERATION, PCIE_WIDTH, ECC_CORRECTED,
	ECC_UNCORRECTED, PROCESSES, FIELDS
};

static const struct {
	const char *name;
	long long otherwise; /* what it reads where the script says nothing */
} fields[FIELDS] = {
	[UTILIZATION] = {"utilization", 0},
	[MEMORY_UTILIZATION] = {"memory_utilization", 0},
	[MEMORY_TOTAL] = {"memory_total", 80ll << 30},
	[MEMORY_USED] = {"memory_used", 1ll << 30},
	[MEMORY_RESERVED] = {"memory_reserved", 512ll << 20},
	[POWER] = {"power_mw", 120000},
	[POWER_LIMIT] = {"power_limit_mw", 700000},
	[TEMPERATURE] = {"temperature", 40},
	[CLOCK_SM] = {"clock_sm", 1980},
	[CLOCK_MEMORY] = {"clock_memory", 2619},
	[CLOCK_SM_MAX] = {"clock_sm_max", 1980},
	[EVENT_REASONS] = {"event_reasons", 0},
	[PCIE_TX] = {"pcie_tx", 100},
	[PCIE_RX] = {"pcie_rx", 200},
	[PCIE_GENERATION] = {"pcie_generation", 5},
	[PCIE_WIDTH] = {"pcie_width", 16},
	[ECC_CORRECTED] = {"ecc_corrected", 0},
	[ECC_UNCORRECTED] = {"ecc_uncorrected", 0},
	[PROCESSES] = {"processes", 0},
};

enum action { SET, REFUSE, HANG, PROCESS };

static struct line {
	long at_ms;
	int gpu; /* -1: all */
	enum action action;
	int field;
	long long value;
	unsigned int pid;
	int done; /* a hang happens once */
} lines[MAX_LINES];
static int line_count, gpu_count, initialised;
static long long began_ms;

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

static int field_named(const char *name)
{
	for (int i = 0; i < FIELDS; i++)
		if (!strcmp(fields[i].name, name))
			return i;
	fprintf(stderr, "nvml double: no field %s\n", name);
	abort();
}

/* One line of the script; returns 0 where it is none of ours. */
static int parse(const char *text, int *init_code)
{
	struct line *l = &lines[line_count];
	char gpu[8], name[32];

	if (sscanf(text, "gpus %d", &gpu_count) == 1 || sscanf(text, "init %d", init_code) == 1)
		return 1;
	memset(l, 0, sizeof(*l));
	if (sscanf(text, "%ld %7s refuse %31s %lld", &l->at_ms, gpu, name, &l->value) == 4) {
		l->action = REFUSE;
		l->field = field_named(name);
	} else if (sscanf(text, "%ld %7s hang %lld", &l->at_ms, gpu, &l->value) == 3) {
		l->action = HANG;
	} else if (sscanf(text, "%ld %7s process %u %lld", &l->at_ms, gpu, &l->pid, &l->value) == 4) {
		l->action = PROCESS;
	} else if (sscanf(text, "%ld %7s %31s %lld", &l->at_ms, gpu, name, &l->value) == 4) {
		l->action = SET;
		l->field = field_named(name);
	} else {
		return 0;
	}
	l->gpu = strcmp(gpu, "*") ? atoi(gpu) : -1;
	line_count++;
	return 1;
}

static int read_script(void)
{
	const char *path = getenv("DOUBLE_NVML_SCRIPT");
	FILE *script = path ? fopen(path, "r") : NULL;
	char text[256];
	int init_code = NVML_SUCCESS;

	gpu_count = 2;
	line_count = 0;
	if (path && !script) {
		perror(path);
		abort();
	}
	while (script && line_count < MAX_LINES && fgets(text, sizeof(text), script)) {
		text[strcspn(text, "#\n")] = '\0';
		if (!parse(text, &init_code) && strspn(text, " \t") != strlen(text)) {
			fprintf(stderr, "nvml double: not understood: %s\n", text);
			abort();
		}
	}
	if (script)
		fclose(script);
	return init_code;
}

static int index_of(nvmlDevice_t device)
{
	return (int)(long)device - 1;
}

/* Calls `each` with every line about this GPU that has taken effect, in order. */
#define FOR_LINES(l, device)                                                       \
	for (struct line *l = lines; l < lines + line_count; l++)                  \
		if ((l->gpu < 0 || l->gpu == index_of(device)) && l->at_ms <= now_ms() - began_ms)

static void hang_if_due(nvmlDevice_t device)
{
	FOR_LINES(l, device) {
		if (l->action == HANG && !l->done) {
			struct timespec t = {l->value / 1000, l->value % 1000 * 1000000};

			l->done = 1;
			nanosleep(&t, NULL);
		}
	}
}

/* What a call answers: its code, and through `value` what the field reads now. */
static nvmlReturn_t ask(nvmlDevice_t device, enum field field, long long *value)
{
	nvmlReturn_t code = NVML_SUCCESS;

	if (!initialised)
		return NVML_ERROR_UNINITIALIZED;
	if (index_of(device) < 0 || index_of(device) >= gpu_count)
		return NVML_ERROR_INVALID_ARGUMENT;
	hang_if_due(device);
	*value = fields[field].otherwise;
	FOR_LINES(l, device) {
		if (l->action == SET && l->field == (int)field)
			*value = l->value;
		else if (l->action == REFUSE && l->field == (int)field)
			code = (nvmlReturn_t)l->value;
	}
	return code;
}

static nvmlReturn_t ask_unsigned(nvmlDevice_t device, enum field field, unsigned int *out)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, field, &value);

	if (!code)
		*out = (unsigned int)value;
	return code;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	int code = read_script();

	(void)flags;
	began_ms = now_ms();
	initialised = !code;
	return code;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
	return nvmlInitWithFlags(0);
}

EXPORT nvmlReturn_t nvmlShutdown(void)
{
	initialised = 0;
	return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t code)
{
	return code ? "an error of the double" : "Success";
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned int size)
{
	snprintf(text, size, "615.71.05");
	return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	*count = (unsigned int)gpu_count;
	return initialised ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	if (index >= (unsigned int)gpu_count)
		return NVML_ERROR_INVALID_ARGUMENT;
	*device = (nvmlDevice_t)(long)(index + 1);
	return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int size)
{
	(void)device;
	snprintf(text, size, "NVIDIA H100 80GB HBM3");
	return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int size)
{
	snprintf(text, size, "GPU-d0ab1e00-0000-4000-8000-%012d", index_of(device));
	return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
	nvmlReturn_t code = ask_unsigned(device, UTILIZATION, &rates->gpu);

	return code ? code : ask_unsigned(device, MEMORY_UTILIZATION, &rates->memory);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *info)
{
	long long total = 0, used = 0;
	nvmlReturn_t code = ask(device, MEMORY_USED, &used);

	ask(device, MEMORY_TOTAL, &total);
	*info = (nvmlMemory_t){.total = (unsigned long long)total, .used = (unsigned long long)used};
	info->free = info->total - info->used;
	return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *info)
{
	nvmlMemory_t first;
	long long reserved = 0;
	nvmlReturn_t code;

	if (info->version != nvmlMemory_v2)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	code = ask(device, MEMORY_RESERVED, &reserved);
	if (code || (code = nvmlDeviceGetMemoryInfo(device, &first)))
		return code;
	info->total = first.total;
	info->used = first.used;
	info->reserved = (unsigned long long)reserved;
	info->free = first.free - info->reserved;
	return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *mw)
{
	return ask_unsigned(device, POWER, mw);
}

EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *mw)
{
	return ask_unsigned(device, POWER_LIMIT, mw);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *celsius)
{
	return sensor == NVML_TEMPERATURE_GPU ? ask_unsigned(device, TEMPERATURE, celsius) : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, int clock, unsigned int *mhz)
{
	if (clock != NVML_CLOCK_SM && clock != NVML_CLOCK_MEM)
		return NVML_ERROR_NOT_SUPPORTED;
	return ask_unsigned(device, clock == NVML_CLOCK_SM ? CLOCK_SM : CLOCK_MEMORY, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, int clock, unsigned int *mhz)
{
	return clock == NVML_CLOCK_SM ? ask_unsigned(device, CLOCK_SM_MAX, mhz) : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, EVENT_REASONS, &value);

	*reasons = (unsigned long long)value;
	return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, int counter, unsigned int *kib_per_s)
{
	struct timespec window = {0, 20000000}; /* the real call measures for 20 ms */

	nanosleep(&window, NULL);
	return ask_unsigned(device, counter == NVML_PCIE_UTIL_TX_BYTES ? PCIE_TX : PCIE_RX, kib_per_s);
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation)
{
	return ask_unsigned(device, PCIE_GENERATION, generation);
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *width)
{
	return ask_unsigned(device, PCIE_WIDTH, width);
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int type, int counter, unsigned long long *count)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, type == NVML_MEMORY_ERROR_TYPE_CORRECTED ? ECC_CORRECTED : ECC_UNCORRECTED, &value);

	(void)counter;
	*count = (unsigned long long)value;
	return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *out)
{
	nvmlProcessInfo_t found[MAX_PROCESSES];
	unsigned int n = 0, room = *count;
	long long ignored = 0;
	nvmlReturn_t code = ask(device, PROCESSES, &ignored);

	if (code)
		return code;
	FOR_LINES(l, device) {
		unsigned int at = 0;

		if (l->action != PROCESS)
			continue;
		while (at < n && found[at].pid != l->pid)
			at++;
		if (at == MAX_PROCESSES)
			continue;
		found[at] = (nvmlProcessInfo_t){.pid = l->pid, .gpuInstanceId = ~0u, .computeInstanceId = ~0u};
		found[at].usedGpuMemory = l->value < 0 ? NVML_VALUE_NOT_AVAILABLE_ULL : (unsigned long long)l->value;
		n = at == n ? n + 1 : n;
		if (!l->value)
			found[at] = found[--n];
	}
	*count = n;
	if (n > room)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	if (n)
		memcpy(out, found, n * sizeof(*out));
	return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *out)
{
	(void)device;
	(void)out;
	*count = 0;
	return NVML_SUCCESS;
}
