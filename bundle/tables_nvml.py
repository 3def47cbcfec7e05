"""Tables of what NVML and GPM tell of the GPUs. Conventions: ``bundle/tables.py``."""

from __future__ import annotations

from gpuaudit.bundle.table import DURATION, PID, START, Column, ColumnType, Table, col

NVML_SAMPLES = Table("nvml_samples", "One row per GPU and poll, from NVML.", (
    START, DURATION,
    col("gpu_index", "u32", "", "NVML index"), col("gpu_uuid", "text", "", "NVML UUID"),
    col("gpu_utilization_percent", "u32", "%", "share of the last NVML period in which a kernel ran", nullable=True),
    col("memory_utilization_percent", "u32", "%", "share of the period in which memory was read or written",
       nullable=True),
    col("memory_total_bytes", "u64", "bytes", "framebuffer", nullable=True),
    col("memory_used_bytes", "u64", "bytes", "allocated framebuffer", nullable=True),
    col("memory_reserved_bytes", "u64", "bytes", "reserved by the driver (memory info v2)", nullable=True),
    col("power_mw", "u32", "mW", "board power", nullable=True),
    col("power_limit_mw", "u32", "mW", "enforced power limit", nullable=True),
    col("temperature_c", "u32", "°C", "GPU die temperature", nullable=True),
    col("clock_sm_mhz", "u32", "MHz", "SM clock", nullable=True),
    col("clock_memory_mhz", "u32", "MHz", "memory clock", nullable=True),
    col("clock_sm_max_mhz", "u32", "MHz", "highest SM clock", nullable=True),
    col("event_reasons", "u64", "bit mask", "nvmlClocksEventReasons*", nullable=True),
    col("pcie_tx_kib_per_s", "u32", "KiB/s", "NVML PCIe throughput, transmit (20 ms window)", nullable=True),
    col("pcie_rx_kib_per_s", "u32", "KiB/s", "NVML PCIe throughput, receive (20 ms window)", nullable=True),
    col("pcie_generation", "u32", "", "current link generation", nullable=True),
    col("pcie_width", "u32", "lanes", "current link width", nullable=True),
    col("ecc_corrected", "u64", "", "volatile corrected ECC errors since the driver was loaded", nullable=True),
    col("ecc_uncorrected", "u64", "", "volatile uncorrected ECC errors since the driver was loaded", nullable=True),
    col("unavailable", "text", "",
        "fields without a value as field=code, comma separated: NVML code, 3 is not supported, -1 not available"),
    col("parent_uuid", "text", "", "UUID of the physical GPU; only in the rows of a MIG device", nullable=True),
    col("gpu_instance", "u32", "", "GPU instance id of a MIG device", nullable=True),
    col("compute_instance", "u32", "", "compute instance id of a MIG device", nullable=True),
    col("energy_mj", "u64", "mJ", "total energy since the driver was loaded", nullable=True),
    col("temperature_memory_c", "u32", "°C", "memory temperature", nullable=True),
    col("performance_state", "u32", "", "P-state: 0 is the highest performance, 15 the lowest", nullable=True),
    col("clock_sm_cap_mhz", "u32", "MHz", "highest SM clock that the applications clock allows", nullable=True),
    col("clock_memory_cap_mhz", "u32", "MHz", "memory clock that the applications clock sets", nullable=True),
    col("pcie_replays", "u64", "", "PCIe replays since the driver was loaded", nullable=True),
    col("encoder_utilization_percent", "u32", "%", "video encoder", nullable=True),
    col("decoder_utilization_percent", "u32", "%", "video decoder", nullable=True),
))  # fmt: skip

NVML_PROCESSES = Table("nvml_processes", "Processes with a context on a GPU, one row per poll.", (
    START, DURATION, col("gpu_index", "u32", "", "NVML index"), col("gpu_uuid", "text", "", "NVML UUID"), PID,
    col("op", "text", "", "compute or graphics"),
    col("memory_used_bytes", "u64", "bytes", "framebuffer held by the process; null where NVML does not tell",
       nullable=True),
    col("sm_utilization_percent", "u32", "%",
        "share of time in which a kernel of the process ran, NVML's newest sample since the last poll; null where NVML "
        "has none, as for a process without any use", nullable=True),
    col("memory_utilization_percent", "u32", "%",
        "share of time in which the process read or wrote memory, of the same sample", nullable=True),
    col("gpu_instance", "u32", "", "GPU instance id of a MIG device", nullable=True),
    col("compute_instance", "u32", "", "compute instance id of a MIG device", nullable=True),
))  # fmt: skip


def _n(name: str, type: ColumnType, unit: str, meaning: str) -> Column:
    """A column of a value that NVML may refuse: then it is null, and ``unavailable`` says with which code."""
    return col(name, type, unit, meaning, nullable=True)


_GPU = (col("gpu_index", "u32", "", "NVML index"), col("gpu_uuid", "text", "", "NVML UUID"))
_UNAVAILABLE = col(
    "unavailable",
    "text",
    "",
    "fields without a value as field=code, comma separated: NVML code, 3 is not supported, -1 not available",
)

NVML_HEALTH = Table("nvml_health", "What changes slowly or costs more to read, per GPU every 5 s and at both ends.", (
    START, DURATION, *_GPU,
    _n("ecc_enabled", "u8", "", "ECC mode: 1 on, 0 off"),
    _n("ecc_corrected_volatile", "u64", "", "corrected ECC errors since the driver was loaded"),
    _n("ecc_uncorrected_volatile", "u64", "", "uncorrected ECC errors since the driver was loaded"),
    _n("ecc_corrected_aggregate", "u64", "", "corrected ECC errors in the life of the board"),
    _n("ecc_uncorrected_aggregate", "u64", "", "uncorrected ECC errors in the life of the board"),
    _n("retired_pages_single_bit", "u32", "pages", "pages retired for many single-bit errors"),
    _n("retired_pages_double_bit", "u32", "pages", "pages retired for a double-bit error"),
    _n("retired_pages_pending", "u8", "", "1: a reboot will retire more"),
    _n("remapped_rows_corrected", "u32", "rows", "rows remapped for corrected errors"),
    _n("remapped_rows_uncorrected", "u32", "rows", "rows remapped for uncorrected errors"),
    _n("remapped_rows_pending", "u8", "", "1: a reset of the GPU will remap more"),
    _n("remapped_rows_failed", "u8", "", "1: a remapping failed"),
    _n("pcie_generation_max", "u32", "", "highest link generation that GPU and slot can do"),
    _n("pcie_width_max", "u32", "lanes", "widest link that GPU and slot can do"),
    _n("power_limit_default_mw", "u32", "mW", "power limit the board ships with"),
    _n("power_limit_set_mw", "u32", "mW", "power limit set by management"),
    _n("power_limit_max_mw", "u32", "mW", "highest limit that may be set"),
    _n("temperature_slowdown_c", "u32", "°C", "temperature at which hardware slowdown begins"),
    _n("persistence_mode", "u8", "", "1: the driver stays loaded without clients"),
    _n("compute_mode", "u8", "", "nvmlComputeMode_t: 0 default, 2 prohibited, 3 exclusive process"),
    _n("mig_mode", "u8", "", "1: MIG is on"),
    _n("accounting_mode", "u8", "", "1: accounting is on"),
    _n("bar1_total_bytes", "u64", "bytes", "BAR1 aperture"),
    _n("bar1_used_bytes", "u64", "bytes", "BAR1 in use"),
    _UNAVAILABLE,
))  # fmt: skip

NVML_LINKS = Table("nvml_links", "One row per NVLink every 5 s; counters since the driver was loaded.", (
    START, DURATION, *_GPU,
    col("link", "u32", "", "number of the link"),
    _n("active", "u8", "", "1: the link is up"),
    _n("version", "u32", "", "NVLink version"),
    _n("remote_pci", "text", "", "PCI address of the other end"),
    _n("remote_type", "u32", "", "nvmlIntNvLinkDeviceType_t: 0 GPU, 1 IBM NPU, 2 switch"),
    _n("tx_kib", "u64", "KiB", "data sent"),
    _n("rx_kib", "u64", "KiB", "data received"),
    _n("crc_flit_errors", "u64", "", "flit CRC errors"),
    _n("crc_data_errors", "u64", "", "data CRC errors"),
    _n("replay_errors", "u64", "", "replays"),
    _n("recovery_errors", "u64", "", "recoveries"),
    _UNAVAILABLE,
    _n("receive_errors", "u64", "packets", "packets received with errors (NVLink 5 on, which lacks the four above)"),
    _n("link_recoveries", "u64", "", "times the link went from up to recovery, whatever came of it (NVLink 5 on)"),
    _n("effective_errors", "u64", "", "errors left after forward error correction (NVLink 5 on)"),
    _n("symbol_errors", "u64", "", "errors in received symbols (NVLink 5 on)"),
))  # fmt: skip

NVML_ACCOUNTING = Table("nvml_accounting", "What NVML's accounting says of a process, every 5 s where it is on.", (
    START, DURATION, *_GPU, PID,
    _n("gpu_utilization_percent", "u32", "%", "share of the process's life in which a kernel ran"),
    _n("memory_utilization_percent", "u32", "%", "share of the process's life in which memory was read or written"),
    _n("memory_max_bytes", "u64", "bytes", "most memory the process ever held"),
    _n("run_time_ms", "u64", "ms", "time the process had a context; null while it runs"),
    _n("process_start_us", "u64", "µs", "when it began, NVML's wall clock"),
    _n("running", "u8", "", "1: it runs"),
    _UNAVAILABLE,
))  # fmt: skip

NVML_EVENTS = Table("nvml_events", "Events that NVML reported: XIDs and others, each written at once.", (
    START, DURATION, *_GPU,
    col("op", "text", "", "xid, ecc_single_bit, ecc_double_bit, ecc_single_bit_storm, dram_retirement, "
        "dram_retirement_failure, poison_non_fatal, poison_fatal, gpu_unavailable, recovery_action, performance_state, "
        "clock, power_source, mig, or other"),
    col("event_type", "u64", "bit mask", "nvmlEventType* as told"),
    _n("event_data", "u64", "", "XID number of an xid event"),
    _n("gpu_instance", "u32", "", "GPU instance id of a MIG device"),
    _n("compute_instance", "u32", "", "compute instance id of a MIG device"),
))  # fmt: skip

GPM_SAMPLES = Table("gpm_samples", "GPM metrics between two samples of one GPU, four a second (Hopper and later).", (
    START, DURATION, *_GPU,
    _n("graphics_percent", "f64", "%", "time in which any engine was active"),
    _n("sm_activity_percent", "f64", "%", "SMs with at least one warp, mean over SMs and time"),
    _n("sm_occupancy_percent", "f64", "%", "warps resident, of what the SMs can hold"),
    _n("integer_percent", "f64", "%", "integer pipe"),
    _n("tensor_percent", "f64", "%", "time in which the tensor pipe was active, any type"),
    _n("tensor_double_percent", "f64", "%", "DFMA tensor pipe"),
    _n("tensor_half_percent", "f64", "%", "HMMA tensor pipe"),
    _n("tensor_integer_percent", "f64", "%", "IMMA tensor pipe"),
    _n("dram_bandwidth_percent", "f64", "%", "of the DRAM bandwidth"),
    _n("fp64_percent", "f64", "%", "FP64 pipe"),
    _n("fp32_percent", "f64", "%", "FP32 pipe"),
    _n("fp16_percent", "f64", "%", "FP16 pipe"),
    _n("pcie_tx_mib_per_s", "f64", "MiB/s", "PCIe, transmitted"),
    _n("pcie_rx_mib_per_s", "f64", "MiB/s", "PCIe, received"),
    _n("nvlink_tx_mib_per_s", "f64", "MiB/s", "NVLink, all links, transmitted"),
    _n("nvlink_rx_mib_per_s", "f64", "MiB/s", "NVLink, all links, received"),
    _UNAVAILABLE,
    _n("parent_uuid", "text", "", "UUID of the physical GPU; only in the rows of a GPU instance of it"),
    _n("gpu_instance", "u32", "", "GPU instance id; gpu_uuid is then that of its first MIG device"),
))  # fmt: skip
