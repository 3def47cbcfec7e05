/* The NVML double: processes, accounting, MIG devices, NVLinks, events and GPM. See nvml.c. */
#include "script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define USE_PERIOD_MS 100

/* Processes of a kind on a GPU, or in one MIG device; their number, and in `found` (room for MAX_PROCESSES) who. */
static unsigned int processes(nvmlDevice_t device, enum action kind, nvmlProcessInfo_t *found)
{
	const struct line *mig = mig_of(device);
	long now = script_now_ms();
	unsigned int n = 0;

	for (struct line *l = NULL; (l = next_line(l, device, now));) {
		unsigned int at = 0;

		if (l->action != kind || (mig && (mig->gi != l->gi || mig->ci != l->ci)))
			continue;
		while (at < n && found[at].pid != l->pid)
			at++;
		if (at == MAX_PROCESSES)
			continue;
		found[at] = (nvmlProcessInfo_t){.pid = l->pid, .gpuInstanceId = l->gi, .computeInstanceId = l->ci};
		found[at].usedGpuMemory = (unsigned long long)l->value;
		n = at == n ? n + 1 : n;
		if (!l->value)
			found[at] = found[--n];
	}
	return n;
}

static nvmlReturn_t running(nvmlDevice_t device, enum action kind, enum field field, unsigned int *count, nvmlProcessInfo_t *out)
{
	nvmlProcessInfo_t found[MAX_PROCESSES];
	unsigned int room = *count;
	long long ignored = 0;
	nvmlReturn_t code = mig_of(device) ? NVML_SUCCESS : ask(device, field, &ignored);

	if (code)
		return code;
	*count = processes(device, kind, found);
	if (*count > room)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	if (*count)
		memcpy(out, found, *count * sizeof(*out));
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *out)
{
	return running(device, PROCESS, PROCESSES, count, out);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *out)
{
	return running(device, GRAPHICS_PROCESS, GRAPHICS, count, out);
}

/* One sample per process with some use in the last full period, if it ended after `since_us`. */
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *out, unsigned int *count,
					     unsigned long long since_us)
{
	unsigned long long period_us = USE_PERIOD_MS * 1000, ended_us = script_now_us() / period_us * period_us;
	nvmlProcessUtilizationSample_t found[MAX_PROCESSES];
	unsigned int n = 0, room = *count;
	long now = script_now_ms();
	long long ignored = 0;
	nvmlReturn_t code = mig_of(device) ? NVML_ERROR_NOT_SUPPORTED : ask(device, USES, &ignored);

	if (code)
		return code;
	for (struct line *l = NULL; ended_us > since_us && (l = next_line(l, device, now));) {
		unsigned int at = 0;

		if (l->action != USE)
			continue;
		while (at < n && found[at].pid != l->pid)
			at++;
		if (at == MAX_PROCESSES)
			continue;
		found[at] = (nvmlProcessUtilizationSample_t){.pid = l->pid, .timeStamp = ended_us, .smUtil = l->sm, .memUtil = l->memory};
		n = at == n ? n + 1 : n;
		if (!l->sm && !l->memory)
			found[at] = found[--n];
	}
	*count = n;
	if (!n)
		return NVML_ERROR_NOT_FOUND;
	if (!out || n > room)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	memcpy(out, found, n * sizeof(*out));
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAccountingBufferSize(nvmlDevice_t device, unsigned int *size)
{
	*size = MAX_PROCESSES;
	return ask_unsigned(device, ACCOUNTING_MODE, &(unsigned int){0});
}

nvmlReturn_t nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned int *count, unsigned int *pids)
{
	unsigned int n = 0, room = *count;
	long now = script_now_ms();

	for (struct line *l = NULL; (l = next_line(l, device, now));) {
		unsigned int at = 0;

		if (l->action != ACCOUNT)
			continue;
		while (at < n && pids[at] != l->pid)
			at++;
		if (at == n && n < room)
			pids[n++] = l->pid;
	}
	*count = n;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned int pid, nvmlAccountingStats_t *stats)
{
	nvmlReturn_t code = NVML_ERROR_NOT_FOUND;
	long now = script_now_ms();

	memset(stats, 0, sizeof(*stats));
	for (struct line *l = NULL; (l = next_line(l, device, now));) {
		if (l->action != ACCOUNT || l->pid != pid)
			continue;
		stats->gpuUtilization = l->sm;
		stats->memoryUtilization = l->memory;
		stats->maxMemoryUsage = (unsigned long long)l->value;
		stats->time = l->milliseconds;
		stats->isRunning = !l->milliseconds;
		stats->startTime = 1700000000000000ull + pid;
		code = NVML_SUCCESS;
	}
	return code;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
	*count = 7;
	return ask_unsigned(device, MIG_MODE, &(unsigned int){0});
}

/* The first line that made a device is its handle; the last one about it says whether it still is. */
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *out)
{
	unsigned int mode = 0, at = 0;
	nvmlReturn_t code = ask_unsigned(device, MIG_MODE, &mode);
	long now = script_now_ms();

	if (code || !mode)
		return code ? code : NVML_ERROR_NOT_FOUND;
	for (struct line *l = NULL; (l = next_line(l, device, now));) {
		struct line *other = NULL;
		long long bytes = 0;
		int made = 1;

		if (l->action != MIG)
			continue;
		while ((other = next_line(other, device, now)))
			if (other->action == MIG && other->gi == l->gi && other->ci == l->ci) {
				made = other < l ? 0 : made;
				bytes = other->value;
			}
		if (made && at++ == index && bytes) {
			*out = mig_handle(device, l);
			return NVML_SUCCESS;
		}
	}
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
	const struct line *mig = mig_of(device);

	*id = mig ? mig->gi : 0;
	return mig ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
	const struct line *mig = mig_of(device);

	*id = mig ? mig->ci : 0;
	return mig ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
	const struct line *mig = mig_of(device);

	memset(attributes, 0, sizeof(*attributes));
	if (!mig)
		return NVML_ERROR_NOT_SUPPORTED;
	attributes->multiprocessorCount = 16;
	attributes->gpuInstanceSliceCount = attributes->computeInstanceSliceCount = 1;
	attributes->memorySizeMB = (unsigned long long)mig->value >> 20;
	return NVML_SUCCESS;
}

/* A field of a link that exists; INVALID_ARGUMENT past the last, NOT_SUPPORTED where there are none. */
static nvmlReturn_t link_field(nvmlDevice_t device, unsigned int link, enum field field, long long *value)
{
	unsigned int links = 0;
	nvmlReturn_t code = mig_of(device) ? NVML_ERROR_NOT_SUPPORTED : ask_unsigned(device, LINKS, &links);

	if (code || !links)
		return code ? code : NVML_ERROR_NOT_SUPPORTED;
	return link < links ? ask_link(device, (int)link, field, value) : NVML_ERROR_INVALID_ARGUMENT;
}

/* A field of a link that reads this is not supported: the link is not there, though later ones are. */
#define NO_LINK -3

#define OF_LINK(function, field, type)                                                                                \
	nvmlReturn_t function(nvmlDevice_t device, unsigned int link, type *out)                                      \
	{                                                                                                             \
		long long value = 0;                                                                                  \
		nvmlReturn_t code = link_field(device, link, field, &value);                                          \
                                                                                                                      \
		*out = (type)value;                                                                                   \
		return !code && value == NO_LINK ? NVML_ERROR_NOT_SUPPORTED : code;                                   \
	}

OF_LINK(nvmlDeviceGetNvLinkState, LINK_ACTIVE, nvmlEnableState_t)
OF_LINK(nvmlDeviceGetNvLinkVersion, LINK_VERSION, unsigned int)
OF_LINK(nvmlDeviceGetNvLinkRemoteDeviceType, LINK_REMOTE, nvmlIntNvLinkDeviceType_t)

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci)
{
	long long value = 0;
	nvmlReturn_t code = link_field(device, link, LINK_REMOTE, &value);

	memset(pci, 0, sizeof(*pci));
	snprintf(pci->busId, sizeof(pci->busId), "00000000:%02X:00.0", 0x40 + link);
	return code;
}

nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link, nvmlNvLinkErrorCounter_t counter,
					     unsigned long long *out)
{
	static const enum field of[] = {
		[NVML_NVLINK_ERROR_DL_REPLAY] = LINK_REPLAY, [NVML_NVLINK_ERROR_DL_RECOVERY] = LINK_RECOVERY,
		[NVML_NVLINK_ERROR_DL_CRC_FLIT] = LINK_CRC_FLIT, [NVML_NVLINK_ERROR_DL_CRC_DATA] = LINK_CRC_DATA,
	};
	long long value = 0;
	nvmlReturn_t code;

	if (counter > NVML_NVLINK_ERROR_DL_CRC_DATA)
		return NVML_ERROR_NOT_SUPPORTED;
	code = link_field(device, link, LINK_VERSION, &value);
	if (code || value >= 5)
		return code ? code : NVML_ERROR_NOT_SUPPORTED;
	code = link_field(device, link, of[counter], &value);
	*out = (unsigned long long)value;
	return code;
}

/* The field of a link that an NVML field id stands for; FIELD_COUNT for none. Newer counters: from version 5 on. */
static enum field of_link(unsigned int id, int *newer)
{
	*newer = 1;
	switch (id) {
	case NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS: return LINK_RECEIVE;
	case NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS: return LINK_RECOVERIES;
	case NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS: return LINK_EFFECTIVE;
	case NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS: return LINK_SYMBOL;
	}
	*newer = 0;
	switch (id) {
	case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX: return LINK_TX;
	case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX: return LINK_RX;
	}
	return FIELD_COUNT;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
	for (nvmlFieldValue_t *v = values; v < values + count; v++) {
		long long value = 0, version = 0;
		int newer = 0;
		enum field link = of_link(v->fieldId, &newer);

		v->timestamp = (long long)script_now_us();
		v->latencyUsec = 5;
		v->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
		v->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
		if (link != FIELD_COUNT) {
			v->nvmlReturn = link_field(device, v->scopeId, LINK_VERSION, &version);
			if (!v->nvmlReturn && newer && version < 5)
				v->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
			if (!v->nvmlReturn)
				v->nvmlReturn = link_field(device, v->scopeId, link, &value);
			v->value.ullVal = (unsigned long long)value;
		} else if (v->fieldId == NVML_FI_DEV_MEMORY_TEMP && !mig_of(device)) {
			v->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
			v->nvmlReturn = ask(device, TEMPERATURE_MEMORY, &value);
			v->value.uiVal = (unsigned int)value;
		} else if (v->fieldId == NVML_FI_DEV_NVLINK_LINK_COUNT) {
			v->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
			v->nvmlReturn = ask(device, LINKS, &value);
			v->value.uiVal = (unsigned int)value;
		}
	}
	return NVML_SUCCESS;
}
