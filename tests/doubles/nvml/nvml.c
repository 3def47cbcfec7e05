/*
 * libnvidia-ml.so.1 as a double, on the real nvml.h: GPUs whose readings follow a script (script.h), so that a test
 * knows what must be recorded. Here: what has one answer per GPU. Processes, MIG devices, links, events and GPM stand in
 * lists.c. A signature or layout that differs from NVML's does not compile.
 */
#include "script.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	(void)flags;
	return (nvmlReturn_t)script_read();
}

nvmlReturn_t nvmlInit_v2(void)
{
	return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void)
{
	return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
	return code ? "an error of the double" : "Success";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned int size)
{
	snprintf(text, size, "615.71.05");
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *text, unsigned int size)
{
	snprintf(text, size, "13.615.71.05");
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
	*version = 13050;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	*count = (unsigned int)script_gpus();
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	if (index >= (unsigned int)script_gpus())
		return NVML_ERROR_INVALID_ARGUMENT;
	*device = (nvmlDevice_t)(unsigned long)(index + 1);
	return NVML_SUCCESS;
}

/* A text whose field reads this is not UTF-8, as from an InfoROM that lost its contents. */
#define GARBLED -255

/* Text that stands for the GPU, where `field` is not refused. */
#define TEXT(function, field, ...)                                                                                    \
	nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned int size)                                     \
	{                                                                                                             \
		long long value = 0;                                                                                  \
		nvmlReturn_t code = ask(device, field, &value);                                                       \
                                                                                                                      \
		if (!code)                                                                                            \
			snprintf(text, size, __VA_ARGS__);                                                            \
		if (value == GARBLED)                                                                                 \
			text[0] = (char)0xff;                                                                         \
		return code;                                                                                          \
	}

TEXT(nvmlDeviceGetName, IDENTITY, "NVIDIA H100 80GB HBM3%s", mig_of(device) ? " MIG 1g.10gb" : "")
TEXT(nvmlDeviceGetSerial, SERIAL, "%lld", value + index_of(device))
TEXT(nvmlDeviceGetVbiosVersion, VBIOS, "96.00.74.00.%02llX", value)
TEXT(nvmlDeviceGetBoardPartNumber, IDENTITY, "900-21010-0000-000")

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int size)
{
	const struct line *mig = mig_of(device);
	long long value = 0;
	nvmlReturn_t code = ask(device, IDENTITY, &value);

	if (mig)
		snprintf(text, size, "MIG-d0ab1e00-0000-4000-8000-%04d%04u%04u", index_of(device), mig->gi, mig->ci);
	else
		snprintf(text, size, "GPU-d0ab1e00-0000-4000-8000-%012d", index_of(device));
	if (value == GARBLED)
		text[0] = (char)0xff;
	return code;
}

/* What a MIG device answers too; all else is NOT_SUPPORTED there. */
static nvmlReturn_t whole(nvmlDevice_t device)
{
	return mig_of(device) ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

/* A number of one field, of a whole GPU. */
#define NUMBER(function, field, type)                                                                                 \
	nvmlReturn_t function(nvmlDevice_t device, type *out)                                                         \
	{                                                                                                             \
		long long value = 0;                                                                                  \
		nvmlReturn_t code = whole(device);                                                                    \
                                                                                                                      \
		code = code ? code : ask(device, field, &value);                                                      \
		*out = (type)value;                                                                                   \
		return code;                                                                                          \
	}

NUMBER(nvmlDeviceGetPowerUsage, POWER, unsigned int)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, POWER_LIMIT, unsigned int)
NUMBER(nvmlDeviceGetPowerManagementLimit, POWER_LIMIT_SET, unsigned int)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, POWER_LIMIT_DEFAULT, unsigned int)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, ENERGY, unsigned long long)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, EVENT_REASONS, unsigned long long)
NUMBER(nvmlDeviceGetPerformanceState, PERFORMANCE_STATE, nvmlPstates_t)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, PCIE_GENERATION, unsigned int)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, PCIE_WIDTH, unsigned int)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, PCIE_GENERATION_MAX, unsigned int)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, PCIE_WIDTH_MAX, unsigned int)
NUMBER(nvmlDeviceGetPcieReplayCounter, PCIE_REPLAYS, unsigned int)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, RETIRED_PENDING, nvmlEnableState_t)
NUMBER(nvmlDeviceGetPersistenceMode, PERSISTENCE, nvmlEnableState_t)
NUMBER(nvmlDeviceGetComputeMode, COMPUTE_MODE, nvmlComputeMode_t)
NUMBER(nvmlDeviceGetAccountingMode, ACCOUNTING_MODE, nvmlEnableState_t)
NUMBER(nvmlDeviceGetArchitecture, ARCHITECTURE, nvmlDeviceArchitecture_t)
NUMBER(nvmlDeviceGetNumGpuCores, CORES, unsigned int)
NUMBER(nvmlDeviceGetMemoryBusWidth, BUS_WIDTH, unsigned int)
NUMBER(nvmlDeviceGetNumaNodeId, NUMA_NODE, unsigned int)
NUMBER(nvmlDeviceGetSupportedEventTypes, EVENTS, unsigned long long)

/* Two numbers of two fields. */
#define PAIR(function, first, second, type)                                                                           \
	nvmlReturn_t function(nvmlDevice_t device, type *one, type *other)                                            \
	{                                                                                                             \
		long long value = 0, more = 0;                                                                        \
		nvmlReturn_t code = whole(device);                                                                    \
                                                                                                                      \
		code = code ? code : ask(device, first, &value);                                                      \
		code = code ? code : ask(device, second, &more);                                                      \
		*one = (type)value;                                                                                   \
		*other = (type)more;                                                                                  \
		return code;                                                                                          \
	}

PAIR(nvmlDeviceGetEccMode, ECC_MODE, ECC_MODE, nvmlEnableState_t)
PAIR(nvmlDeviceGetMigMode, MIG_MODE, MIG_MODE, unsigned int)
PAIR(nvmlDeviceGetPowerManagementLimitConstraints, POWER_LIMIT_MIN, POWER_LIMIT_MAX, unsigned int)

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us)
{
	*period_us = 167000;
	return whole(device) ? whole(device) : ask_unsigned(device, ENCODER, percent);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us)
{
	*period_us = 167000;
	return whole(device) ? whole(device) : ask_unsigned(device, DECODER, percent);
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
	nvmlReturn_t code = whole(device);

	code = code ? code : ask_unsigned(device, UTILIZATION, &rates->gpu);
	return code ? code : ask_unsigned(device, MEMORY_UTILIZATION, &rates->memory);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *info)
{
	long long total = 0, used = 0;
	nvmlReturn_t code = ask(device, MEMORY_USED, &used);

	ask(device, MEMORY_TOTAL, &total);
	if (mig_of(device))
		total = mig_of(device)->value;
	*info = (nvmlMemory_t){.total = (unsigned long long)total, .used = (unsigned long long)used};
	info->free = info->total - info->used;
	return code;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *info)
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

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *info)
{
	nvmlReturn_t code = ask_long(device, BAR1_TOTAL, &info->bar1Total);

	code = code ? code : ask_long(device, BAR1_USED, &info->bar1Used);
	info->bar1Free = info->bar1Total - info->bar1Used;
	return code;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius)
{
	if (whole(device))
		return whole(device);
	return sensor == NVML_TEMPERATURE_GPU ? ask_unsigned(device, TEMPERATURE, celsius) : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t kind, unsigned int *celsius)
{
	if (kind != NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
		return NVML_ERROR_NOT_SUPPORTED;
	return ask_unsigned(device, TEMPERATURE_SLOWDOWN, celsius);
}

static nvmlReturn_t clock_of(nvmlDevice_t device, nvmlClockType_t clock, enum field sm, enum field memory, unsigned int *mhz)
{
	if (whole(device) || (clock != NVML_CLOCK_SM && clock != NVML_CLOCK_MEM))
		return NVML_ERROR_NOT_SUPPORTED;
	return ask_unsigned(device, clock == NVML_CLOCK_SM ? sm : memory, mhz);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t clock, unsigned int *mhz)
{
	return clock_of(device, clock, CLOCK_SM, CLOCK_MEMORY, mhz);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t clock, unsigned int *mhz)
{
	return clock_of(device, clock, CLOCK_SM_MAX, CLOCK_MEMORY, mhz);
}

nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t clock, unsigned int *mhz)
{
	return clock_of(device, clock, CLOCK_SM_CAP, CLOCK_MEMORY_CAP, mhz);
}

nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, nvmlClockType_t clock, unsigned int *mhz)
{
	return clock_of(device, clock, CLOCK_SM_MAX, CLOCK_MEMORY, mhz);
}

nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, nvmlClockType_t clock, unsigned int *mhz)
{
	return clock_of(device, clock, CLOCK_SM_BOOST, CLOCK_MEMORY, mhz);
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *kib_per_s)
{
	struct timespec window = {0, 20000000}; /* the real call measures for 20 ms */

	if (whole(device))
		return whole(device);
	nanosleep(&window, NULL);
	return ask_unsigned(device, counter == NVML_PCIE_UTIL_TX_BYTES ? PCIE_TX : PCIE_RX, kib_per_s);
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter,
					 unsigned long long *count)
{
	int corrected = type == NVML_MEMORY_ERROR_TYPE_CORRECTED;

	if (whole(device))
		return whole(device);
	if (counter == NVML_VOLATILE_ECC)
		return ask_long(device, corrected ? ECC_CORRECTED : ECC_UNCORRECTED, count);
	return ask_long(device, corrected ? ECC_CORRECTED_AGGREGATE : ECC_UNCORRECTED_AGGREGATE, count);
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
				       unsigned long long *addresses)
{
	int single = cause == NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS;
	unsigned int found = 0, room = *count;
	nvmlReturn_t code = ask_unsigned(device, single ? RETIRED_SINGLE : RETIRED_DOUBLE, &found);

	if (code)
		return code;
	*count = found;
	if (found > room)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	for (unsigned int i = 0; i < found && addresses; i++)
		addresses[i] = 0x1000ull * (i + 1);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
				       unsigned int *pending, unsigned int *failed)
{
	nvmlReturn_t code = ask_unsigned(device, REMAPPED_CORRECTED, corrected);

	code = code ? code : ask_unsigned(device, REMAPPED_UNCORRECTED, uncorrected);
	code = code ? code : ask_unsigned(device, REMAPPED_PENDING, pending);
	return code ? code : ask_unsigned(device, REMAPPED_FAILED, failed);
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, CAPABILITY, &value);

	*major = (int)value / 10;
	*minor = (int)value % 10;
	return code;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, PCI, &value);

	memset(pci, 0, sizeof(*pci));
	pci->bus = 0x18 + (unsigned int)index_of(device);
	pci->pciDeviceId = 0x233010de;
	pci->pciSubSystemId = 0x16c110de;
	snprintf(pci->busId, sizeof(pci->busId), "00000000:%02X:00.0", pci->bus);
	return code;
}

nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int size, unsigned long *set)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, AFFINITY, &value);

	memset(set, 0, size * sizeof(*set));
	set[0] = (unsigned long)value;
	return code;
}

nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int size, unsigned long *set, nvmlAffinityScope_t scope)
{
	long long value = 0;
	nvmlReturn_t code = ask(device, MEMORY_AFFINITY, &value);

	(void)scope;
	memset(set, 0, size * sizeof(*set));
	set[0] = (unsigned long)value;
	return code;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, nvmlGpuTopologyLevel_t *level)
{
	long long value = 0;
	nvmlReturn_t code = ask(one, TOPOLOGY, &value);

	(void)other;
	*level = (nvmlGpuTopologyLevel_t)value;
	return code;
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t what, nvmlGpuP2PStatus_t *status)
{
	long long value = 0;
	nvmlReturn_t code = ask(one, P2P, &value);

	(void)other;
	(void)what;
	*status = (nvmlGpuP2PStatus_t)value;
	return code;
}
