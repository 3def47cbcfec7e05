/* The NVML double: event sets and GPM. See nvml.c. */
#include "script.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WAIT_STEP_MS 5

/* Which lines a set has told, and whom it watches. */
struct nvmlEventSet_st {
	unsigned long long types[MAX_GPUS];
	unsigned char told[MAX_GPUS][MAX_LINES];
	long since_ms[MAX_GPUS];
};

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
	*set = calloc(1, sizeof(**set));
	return *set ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
	free(set);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
	long long supported = 0;
	nvmlReturn_t code = ask(device, EVENTS, &supported);

	if (code)
		return code;
	if (types & ~(unsigned long long)supported)
		return NVML_ERROR_NOT_SUPPORTED;
	set->types[index_of(device)] = types;
	set->since_ms[index_of(device)] = script_now_ms();
	return NVML_SUCCESS;
}

/* The next untold event of a GPU; events from before it was registered are told to nobody. */
static nvmlReturn_t next_event(nvmlEventSet_t set, nvmlDevice_t device, nvmlEventData_t *data)
{
	int gpu = index_of(device);
	long now = script_now_ms();
	long long ignored = 0;
	nvmlReturn_t code = ask(device, EVENTS, &ignored);

	if (code)
		return code;
	for (struct line *l = NULL; (l = next_line(l, device, now));) {
		unsigned long long type = l->milliseconds;
		int at = number_of(l);

		if (l->action != EVENT || set->told[gpu][at] || !(type & set->types[gpu]) || l->at_ms < set->since_ms[gpu])
			continue;
		set->told[gpu][at] = 1;
		*data = (nvmlEventData_t){.device = device, .eventType = type, .eventData = (unsigned long long)l->value,
					  .gpuInstanceId = l->gi, .computeInstanceId = l->ci};
		return NVML_SUCCESS;
	}
	return NVML_ERROR_TIMEOUT;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
	struct timespec step = {0, WAIT_STEP_MS * 1000000};
	long until = script_now_ms() + timeout_ms;

	memset(data, 0, sizeof(*data));
	do {
		for (int i = 0; i < script_gpus(); i++) {
			nvmlReturn_t code = set->types[i] ? next_event(set, (nvmlDevice_t)(unsigned long)(i + 1), data)
							  : NVML_ERROR_TIMEOUT;

			if (code != NVML_ERROR_TIMEOUT)
				return code;
		}
		if (timeout_ms)
			nanosleep(&step, NULL);
	} while (script_now_ms() < until);
	return NVML_ERROR_TIMEOUT;
}

/* A sample holds whom it is of and when it was taken. */
struct nvmlGpmSample_st {
	nvmlDevice_t device;
	unsigned int gi;
	long taken_ms;
};

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support)
{
	return ask_unsigned(device, GPM, &support->isSupportedDevice);
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample)
{
	*sample = calloc(1, sizeof(**sample));
	return *sample ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample)
{
	free(sample);
	return NVML_SUCCESS;
}

static nvmlReturn_t take(nvmlDevice_t device, unsigned int gi, nvmlGpmSample_t sample)
{
	unsigned int supported = 0, mode = 0;
	nvmlReturn_t code = ask_unsigned(device, GPM, &supported);

	code = code ? code : ask_unsigned(device, MIG_MODE, &mode);
	if (code || !supported || (mode && gi == ~0u))
		return code ? code : NVML_ERROR_NOT_SUPPORTED;
	*sample = (struct nvmlGpmSample_st){device, gi, script_now_ms()};
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample)
{
	return take(device, ~0u, sample);
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gi, nvmlGpmSample_t sample)
{
	return take(device, gi, sample);
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get)
{
	static const enum field of[] = {
		[NVML_GPM_METRIC_GRAPHICS_UTIL] = GPM_GRAPHICS, [NVML_GPM_METRIC_SM_UTIL] = GPM_SM,
		[NVML_GPM_METRIC_SM_OCCUPANCY] = GPM_OCCUPANCY, [NVML_GPM_METRIC_INTEGER_UTIL] = GPM_INTEGER,
		[NVML_GPM_METRIC_ANY_TENSOR_UTIL] = GPM_TENSOR, [NVML_GPM_METRIC_DFMA_TENSOR_UTIL] = GPM_DFMA,
		[NVML_GPM_METRIC_HMMA_TENSOR_UTIL] = GPM_HMMA, [NVML_GPM_METRIC_IMMA_TENSOR_UTIL] = GPM_IMMA,
		[NVML_GPM_METRIC_DRAM_BW_UTIL] = GPM_DRAM, [NVML_GPM_METRIC_FP64_UTIL] = GPM_FP64,
		[NVML_GPM_METRIC_FP32_UTIL] = GPM_FP32, [NVML_GPM_METRIC_FP16_UTIL] = GPM_FP16,
		[NVML_GPM_METRIC_PCIE_TX_PER_SEC] = GPM_PCIE_TX, [NVML_GPM_METRIC_PCIE_RX_PER_SEC] = GPM_PCIE_RX,
		[NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC] = GPM_NVLINK_RX, [NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC] = GPM_NVLINK_TX,
	};

	if (get->version != NVML_GPM_METRICS_GET_VERSION)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (!get->sample1->device || get->sample1->device != get->sample2->device || get->sample1->gi != get->sample2->gi ||
	    get->sample2->taken_ms <= get->sample1->taken_ms)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (nvmlGpmMetric_t *m = get->metrics; m < get->metrics + get->numMetrics; m++) {
		long long thousandths = 0;

		m->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
		if (m->metricId < sizeof(of) / sizeof(of[0]) && of[m->metricId])
			m->nvmlReturn = ask(get->sample2->device, of[m->metricId], &thousandths);
		m->value = (double)thousandths / 1000;
	}
	return NVML_SUCCESS;
}
