/*
 * What the GPUs of the NVML double read, by a script. DOUBLE_NVML_SCRIPT names a text file. Its lines:
 *
 *	gpus N				how many GPUs there are (2 without the line)
 *	init CODE			what nvmlInit returns (18: driver and library do not match)
 *	AT GPU FIELD VALUE		from AT ms after nvmlInit on, FIELD reads VALUE (-1: "not available")
 *	AT GPU grow FIELD VALUE		from AT on, FIELD reads VALUE more with each second, once in every second
 *	AT GPU refuse FIELD CODE	from then on, asking for FIELD returns CODE (0: answers again)
 *	AT GPU hang MS			the first call after AT does not return for MS
 *	AT GPU hang FIELD MS		the first call after AT that asks for FIELD does not return for MS
 *	AT GPU lost			it fell off the bus: every call returns NVML_ERROR_GPU_IS_LOST
 *	AT GPU process PID BYTES [GI CI]	a compute process holds BYTES (-1: not available; 0: it is gone)
 *	AT GPU graphics PID BYTES	the same for a graphics process
 *	AT GPU use PID SM MEMORY	utilisation of a process in each period of 100 ms from then on (0 0: none)
 *	AT GPU account PID SM MEMORY BYTES MS	what accounting says of a process (MS 0: it runs)
 *	AT GPU event TYPE DATA [GI CI]	an event, delivered once to each event set (TYPE in decimal)
 *	AT GPU mig GI CI BYTES		a MIG device with that memory (0: it is gone)
 *	AT GPU link N FIELD VALUE	FIELD of one NVLink; without such a line all links read FIELD alike
 *
 * identity, serial and vbios that read -255 are texts that are not UTF-8.
 *
 * Lines take effect in the order of the file; GPU may be * for all. FIELD is a name of FIELDS below. GPM metrics are in
 * thousandths. A link of version 5 on has the newer error counters, one before has the older ones. Everything after
 * a # is a comment.
 */
#ifndef DOUBLE_NVML_SCRIPT_H
#define DOUBLE_NVML_SCRIPT_H

#include <nvml.h>

#define MAX_LINES 8192
#define MAX_GPUS 16
#define MAX_PROCESSES 256

/* Name of the constant, name in the script, what it reads where the script says nothing. */
#define FIELDS(X)                                                                                                     \
	X(UTILIZATION, "utilization", 0) X(MEMORY_UTILIZATION, "memory_utilization", 0)                                \
	X(MEMORY_TOTAL, "memory_total", 80ll << 30) X(MEMORY_USED, "memory_used", 1ll << 30)                           \
	X(MEMORY_RESERVED, "memory_reserved", 512ll << 20)                                                             \
	X(POWER, "power_mw", 120000) X(POWER_LIMIT, "power_limit_mw", 700000) X(ENERGY, "energy_mj", 1000000)          \
	X(TEMPERATURE, "temperature", 40) X(TEMPERATURE_MEMORY, "temperature_memory", 50)                              \
	X(CLOCK_SM, "clock_sm", 1980) X(CLOCK_MEMORY, "clock_memory", 2619) X(CLOCK_SM_MAX, "clock_sm_max", 1980)      \
	X(CLOCK_SM_CAP, "clock_sm_cap", 1980) X(CLOCK_MEMORY_CAP, "clock_memory_cap", 2619)                            \
	X(CLOCK_SM_BOOST, "clock_sm_boost", 1980)                                                                      \
	X(PERFORMANCE_STATE, "performance_state", 0) X(EVENT_REASONS, "event_reasons", 0)                              \
	X(PCIE_TX, "pcie_tx", 100) X(PCIE_RX, "pcie_rx", 200) X(PCIE_REPLAYS, "pcie_replays", 0)                       \
	X(PCIE_GENERATION, "pcie_generation", 5) X(PCIE_WIDTH, "pcie_width", 16)                                       \
	X(PCIE_GENERATION_MAX, "pcie_generation_max", 5) X(PCIE_WIDTH_MAX, "pcie_width_max", 16)                       \
	X(ENCODER, "encoder", 0) X(DECODER, "decoder", 0)                                                              \
	X(ECC_CORRECTED, "ecc_corrected", 0) X(ECC_UNCORRECTED, "ecc_uncorrected", 0) X(ECC_MODE, "ecc_mode", 1)       \
	X(ECC_CORRECTED_AGGREGATE, "ecc_corrected_aggregate", 0)                                                       \
	X(ECC_UNCORRECTED_AGGREGATE, "ecc_uncorrected_aggregate", 0)                                                   \
	X(RETIRED_SINGLE, "retired_single", 0) X(RETIRED_DOUBLE, "retired_double", 0)                                  \
	X(RETIRED_PENDING, "retired_pending", 0)                                                                       \
	X(REMAPPED_CORRECTED, "remapped_corrected", 0) X(REMAPPED_UNCORRECTED, "remapped_uncorrected", 0)              \
	X(REMAPPED_PENDING, "remapped_pending", 0) X(REMAPPED_FAILED, "remapped_failed", 0)                            \
	X(POWER_LIMIT_DEFAULT, "power_limit_default", 700000) X(POWER_LIMIT_SET, "power_limit_set", 700000)            \
	X(POWER_LIMIT_MIN, "power_limit_min", 200000) X(POWER_LIMIT_MAX, "power_limit_max", 700000)                    \
	X(TEMPERATURE_SLOWDOWN, "temperature_slowdown", 87) X(PERSISTENCE, "persistence", 1)                           \
	X(COMPUTE_MODE, "compute_mode", 0) X(MIG_MODE, "mig_mode", 0) X(ACCOUNTING_MODE, "accounting_mode", 0)         \
	X(BAR1_TOTAL, "bar1_total", 128ll << 30) X(BAR1_USED, "bar1_used", 1ll << 20)                                  \
	X(PROCESSES, "processes", 0) X(GRAPHICS, "graphics_processes", 0) X(USES, "process_utilization", 0)            \
	X(LINKS, "links", 0) X(LINK_ACTIVE, "link_active", 1) X(LINK_VERSION, "link_version", 4)                       \
	X(LINK_REMOTE, "link_remote", 2) X(LINK_TX, "link_tx", 0) X(LINK_RX, "link_rx", 0)                             \
	X(LINK_REPLAY, "link_replay", 0) X(LINK_RECOVERY, "link_recovery", 0) X(LINK_CRC_FLIT, "link_crc_flit", 0)     \
	X(LINK_CRC_DATA, "link_crc_data", 0)                                                                           \
	X(LINK_RECEIVE, "link_receive_errors", 0) X(LINK_RECOVERIES, "link_recoveries", 0)                             \
	X(LINK_EFFECTIVE, "link_effective_errors", 0) X(LINK_SYMBOL, "link_symbol_errors", 0)                          \
	X(EVENTS, "events", 0xff9f) X(GPM, "gpm", 1)                                                                   \
	X(GPM_GRAPHICS, "gpm_graphics", 0) X(GPM_SM, "gpm_sm", 0) X(GPM_OCCUPANCY, "gpm_occupancy", 0)                 \
	X(GPM_INTEGER, "gpm_integer", 0) X(GPM_TENSOR, "gpm_tensor", 0) X(GPM_DFMA, "gpm_dfma", 0)                     \
	X(GPM_HMMA, "gpm_hmma", 0) X(GPM_IMMA, "gpm_imma", 0) X(GPM_DRAM, "gpm_dram", 0) X(GPM_FP64, "gpm_fp64", 0)    \
	X(GPM_FP32, "gpm_fp32", 0) X(GPM_FP16, "gpm_fp16", 0) X(GPM_PCIE_TX, "gpm_pcie_tx", 0)                         \
	X(GPM_PCIE_RX, "gpm_pcie_rx", 0) X(GPM_NVLINK_TX, "gpm_nvlink_tx", 0) X(GPM_NVLINK_RX, "gpm_nvlink_rx", 0)     \
	X(SERIAL, "serial", 1650123000000ll) X(VBIOS, "vbios", 0) X(ARCHITECTURE, "architecture", 9)                   \
	X(CAPABILITY, "compute_capability", 90) X(CORES, "cores", 16896) X(BUS_WIDTH, "bus_width", 5120)               \
	X(NUMA_NODE, "numa_node", 0) X(AFFINITY, "affinity", 0xff) X(MEMORY_AFFINITY, "memory_affinity", 1)            \
	X(TOPOLOGY, "topology", 20) X(P2P, "p2p", 0) X(PCI, "pci", 0) X(IDENTITY, "identity", 0)

#define AS_CONSTANT(constant, name, otherwise) constant,
enum field { FIELDS(AS_CONSTANT) FIELD_COUNT };
#undef AS_CONSTANT

enum action { SET, GROW, REFUSE, HANG, LOST, PROCESS, GRAPHICS_PROCESS, USE, ACCOUNT, EVENT, MIG, LINK };

struct line {
	long at_ms;
	int gpu; /* -1: all */
	enum action action;
	int field; /* -1: any */
	long long value;
	unsigned int pid, gi, ci, sm, memory, link;
	unsigned long long milliseconds;
	int done; /* a hang happens once */
};

/* Read the script and start its clock; what nvmlInit is to return. */
int script_read(void);
int script_gpus(void);
long script_now_ms(void);
unsigned long long script_now_us(void);

int index_of(nvmlDevice_t device);
struct line *mig_of(nvmlDevice_t device);
int number_of(const struct line *l);
nvmlDevice_t mig_handle(nvmlDevice_t device, const struct line *mig);

/* The first line from `l` on about this GPU that has taken effect by `now`; NULL at the end. Begin with NULL. */
struct line *next_line(struct line *l, nvmlDevice_t device, long now);

/* What a call answers: its code, and through `value` what the field reads now. `link` -1: no link. */
nvmlReturn_t ask_link(nvmlDevice_t device, int link, enum field field, long long *value);
nvmlReturn_t ask(nvmlDevice_t device, enum field field, long long *value);
nvmlReturn_t ask_unsigned(nvmlDevice_t device, enum field field, unsigned int *out);
nvmlReturn_t ask_long(nvmlDevice_t device, enum field field, unsigned long long *out);

#endif
