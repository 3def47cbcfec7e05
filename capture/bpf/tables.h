/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Generated from bundle/tables.py. Do not edit. */
#pragma once

enum table {
	TABLE_NONE = 0,
	TABLE_CUDA_CALLS = 1,
	TABLE_NCCL_CALLS = 2,
	TABLE_NCCL_COMMS = 3,
	TABLE_OFF_CPU = 4,
	TABLE_CALL_TOTALS = 5,
	TABLE_MIGRATIONS = 6,
	TABLE_IOCTLS = 7,
	TABLE_SOCKET_IO = 8,
	TABLE_PAGE_ALLOCATIONS = 9,
	TABLE_RECLAIMS = 10,
	TABLE_OOM_KILLS = 11,
	TABLE_BLOCK_IO = 12,
	TABLE_TCP_RETRANSMITS = 13,
	TABLE_LIFECYCLE = 14,
	TABLE_CPU_OCCUPANTS = 15,
	TABLES = 15,
};

#define OCCUPANTS_FROM_NS 100000
#define MAX_OCCUPANTS 64

struct cuda_calls_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 size_bytes; /* 16 */
	__u64 stream; /* 24 */
	__u64 device_pointer; /* 32 */
	__u64 source_pointer; /* 40 */
	__u64 function; /* 48 */
	__u64 shared_bytes; /* 56 */
	__u64 handle; /* 64 */
	__u64 other_handle; /* 72 */
	__u64 parent_ns; /* 80 */
	__u64 native_stack; /* 88 */
	__u64 python_stack; /* 96 */
	__u64 seq; /* 104 */
	__u32 pid; /* 112 */
	__u32 tid; /* 116 */
	__u32 op; /* 120 */
	__s32 return_code; /* 124 */
	__s32 direction; /* 128 */
	__u32 grid_x; /* 132 */
	__u32 grid_y; /* 136 */
	__u32 grid_z; /* 140 */
	__u32 block_x; /* 144 */
	__u32 block_y; /* 148 */
	__u32 block_z; /* 152 */
	__s32 device; /* 156 */
	__s32 peer_device; /* 160 */
	__u32 flags; /* 164 */
	__u32 elapsed_ms; /* 168 */
	__u32 parent_op; /* 172 */
	__u32 probe; /* 176 */
	__u32 valid_mask; /* 180 */
	__u16 cpu; /* 184 */
	__u8 pad[6]; /* 186 */
};
_Static_assert(sizeof(struct cuda_calls_record) == 192, "cuda_calls");
#define CUDA_CALLS_HAS_DURATION_NS (1u << 0)
#define CUDA_CALLS_HAS_RETURN_CODE (1u << 1)
#define CUDA_CALLS_HAS_SIZE_BYTES (1u << 2)
#define CUDA_CALLS_HAS_DIRECTION (1u << 3)
#define CUDA_CALLS_HAS_STREAM (1u << 4)
#define CUDA_CALLS_HAS_DEVICE_POINTER (1u << 5)
#define CUDA_CALLS_HAS_SOURCE_POINTER (1u << 6)
#define CUDA_CALLS_HAS_FUNCTION (1u << 7)
#define CUDA_CALLS_HAS_GRID_X (1u << 8)
#define CUDA_CALLS_HAS_GRID_Y (1u << 9)
#define CUDA_CALLS_HAS_GRID_Z (1u << 10)
#define CUDA_CALLS_HAS_BLOCK_X (1u << 11)
#define CUDA_CALLS_HAS_BLOCK_Y (1u << 12)
#define CUDA_CALLS_HAS_BLOCK_Z (1u << 13)
#define CUDA_CALLS_HAS_SHARED_BYTES (1u << 14)
#define CUDA_CALLS_HAS_HANDLE (1u << 15)
#define CUDA_CALLS_HAS_OTHER_HANDLE (1u << 16)
#define CUDA_CALLS_HAS_DEVICE (1u << 17)
#define CUDA_CALLS_HAS_PEER_DEVICE (1u << 18)
#define CUDA_CALLS_HAS_FLAGS (1u << 19)
#define CUDA_CALLS_HAS_ELAPSED_MS (1u << 20)
#define CUDA_CALLS_HAS_PARENT_NS (1u << 21)
#define CUDA_CALLS_HAS_PARENT_OP (1u << 22)
#define CUDA_CALLS_HAS_PROBE (1u << 23)
#define CUDA_CALLS_HAS_NATIVE_STACK (1u << 24)
#define CUDA_CALLS_HAS_PYTHON_STACK (1u << 25)

struct nccl_calls_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 comm_handle; /* 16 */
	__u64 comm_id; /* 24 */
	__u64 count; /* 32 */
	__u64 size_bytes; /* 40 */
	__u64 stream; /* 48 */
	__u64 parent_ns; /* 56 */
	__u64 native_stack; /* 64 */
	__u64 python_stack; /* 72 */
	__u64 seq; /* 80 */
	__u32 pid; /* 88 */
	__u32 tid; /* 92 */
	__u32 op; /* 96 */
	__s32 return_code; /* 100 */
	__s32 rank; /* 104 */
	__s32 nranks; /* 108 */
	__s32 datatype; /* 112 */
	__s32 reduce_op; /* 116 */
	__s32 root; /* 120 */
	__s32 peer; /* 124 */
	__u32 parent_op; /* 128 */
	__u32 probe; /* 132 */
	__u32 valid_mask; /* 136 */
	__u16 cpu; /* 140 */
	__u8 pad[2]; /* 142 */
};
_Static_assert(sizeof(struct nccl_calls_record) == 144, "nccl_calls");
#define NCCL_CALLS_HAS_DURATION_NS (1u << 0)
#define NCCL_CALLS_HAS_RETURN_CODE (1u << 1)
#define NCCL_CALLS_HAS_COMM_ID (1u << 2)
#define NCCL_CALLS_HAS_RANK (1u << 3)
#define NCCL_CALLS_HAS_NRANKS (1u << 4)
#define NCCL_CALLS_HAS_DATATYPE (1u << 5)
#define NCCL_CALLS_HAS_REDUCE_OP (1u << 6)
#define NCCL_CALLS_HAS_ROOT (1u << 7)
#define NCCL_CALLS_HAS_PEER (1u << 8)
#define NCCL_CALLS_HAS_COUNT (1u << 9)
#define NCCL_CALLS_HAS_SIZE_BYTES (1u << 10)
#define NCCL_CALLS_HAS_STREAM (1u << 11)
#define NCCL_CALLS_HAS_PARENT_NS (1u << 12)
#define NCCL_CALLS_HAS_PARENT_OP (1u << 13)
#define NCCL_CALLS_HAS_PROBE (1u << 14)
#define NCCL_CALLS_HAS_NATIVE_STACK (1u << 15)
#define NCCL_CALLS_HAS_PYTHON_STACK (1u << 16)

struct nccl_comms_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 comm_handle; /* 16 */
	__u64 comm_id; /* 24 */
	__u64 parent_handle; /* 32 */
	__u64 parent_comm_id; /* 40 */
	__u64 parent_ns; /* 48 */
	__u64 native_stack; /* 56 */
	__u64 python_stack; /* 64 */
	__u64 seq; /* 72 */
	__u32 pid; /* 80 */
	__u32 tid; /* 84 */
	__u32 op; /* 88 */
	__s32 return_code; /* 92 */
	__s32 rank; /* 96 */
	__s32 nranks; /* 100 */
	__s32 color; /* 104 */
	__s32 key; /* 108 */
	__u32 parent_op; /* 112 */
	__u32 probe; /* 116 */
	__u32 valid_mask; /* 120 */
	__u16 cpu; /* 124 */
	__u8 pad[2]; /* 126 */
};
_Static_assert(sizeof(struct nccl_comms_record) == 128, "nccl_comms");
#define NCCL_COMMS_HAS_DURATION_NS (1u << 0)
#define NCCL_COMMS_HAS_RETURN_CODE (1u << 1)
#define NCCL_COMMS_HAS_COMM_HANDLE (1u << 2)
#define NCCL_COMMS_HAS_COMM_ID (1u << 3)
#define NCCL_COMMS_HAS_RANK (1u << 4)
#define NCCL_COMMS_HAS_NRANKS (1u << 5)
#define NCCL_COMMS_HAS_PARENT_HANDLE (1u << 6)
#define NCCL_COMMS_HAS_PARENT_COMM_ID (1u << 7)
#define NCCL_COMMS_HAS_COLOR (1u << 8)
#define NCCL_COMMS_HAS_KEY (1u << 9)
#define NCCL_COMMS_HAS_PARENT_NS (1u << 10)
#define NCCL_COMMS_HAS_PARENT_OP (1u << 11)
#define NCCL_COMMS_HAS_PROBE (1u << 12)
#define NCCL_COMMS_HAS_NATIVE_STACK (1u << 13)
#define NCCL_COMMS_HAS_PYTHON_STACK (1u << 14)

struct off_cpu_record {
	char comm[16]; /* 0 */
	char next_comm[16]; /* 16 */
	char waker_comm[16]; /* 32 */
	__u64 start_ns; /* 48 */
	__u64 duration_ns; /* 56 */
	__u64 wake_ns; /* 64 */
	__u64 runqueue_ns; /* 72 */
	__u64 cgroup_id; /* 80 */
	__u64 next_cgroup_id; /* 88 */
	__u64 syscall_arg; /* 96 */
	__u64 seq; /* 104 */
	__u32 pid; /* 112 */
	__u32 tid; /* 116 */
	__u32 prev_state; /* 120 */
	__u32 next_pid; /* 124 */
	__u32 next_tid; /* 128 */
	__u32 waker_pid; /* 132 */
	__u32 waker_tid; /* 136 */
	__s32 priority; /* 140 */
	__s32 next_priority; /* 144 */
	__s32 syscall; /* 148 */
	__u32 valid_mask; /* 152 */
	__u16 cpu_out; /* 156 */
	__u16 cpu; /* 158 */
	__u8 began_before; /* 160 */
	__u8 pad[7]; /* 161 */
};
_Static_assert(sizeof(struct off_cpu_record) == 168, "off_cpu");
#define OFF_CPU_HAS_DURATION_NS (1u << 0)
#define OFF_CPU_HAS_NEXT_PID (1u << 1)
#define OFF_CPU_HAS_NEXT_TID (1u << 2)
#define OFF_CPU_HAS_NEXT_COMM (1u << 3)
#define OFF_CPU_HAS_WAKE_NS (1u << 4)
#define OFF_CPU_HAS_WAKER_PID (1u << 5)
#define OFF_CPU_HAS_WAKER_TID (1u << 6)
#define OFF_CPU_HAS_WAKER_COMM (1u << 7)
#define OFF_CPU_HAS_RUNQUEUE_NS (1u << 8)
#define OFF_CPU_HAS_BEGAN_BEFORE (1u << 9)
#define OFF_CPU_HAS_PRIORITY (1u << 10)
#define OFF_CPU_HAS_NEXT_PRIORITY (1u << 11)
#define OFF_CPU_HAS_CGROUP_ID (1u << 12)
#define OFF_CPU_HAS_NEXT_CGROUP_ID (1u << 13)
#define OFF_CPU_HAS_SYSCALL (1u << 14)
#define OFF_CPU_HAS_SYSCALL_ARG (1u << 15)

struct call_totals_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 low_ns; /* 16 */
	__u64 high_ns; /* 24 */
	__u64 count; /* 32 */
	__u64 sum_ns; /* 40 */
	__u64 min_ns; /* 48 */
	__u64 max_ns; /* 56 */
	__u64 size_bytes; /* 64 */
	__u64 errors; /* 72 */
	__u64 seq; /* 80 */
	__u32 pid; /* 88 */
	__u32 tid; /* 92 */
	__u32 op; /* 96 */
	__u32 valid_mask; /* 100 */
	__u16 cpu; /* 104 */
	__u8 nested; /* 106 */
	__u8 pad[5]; /* 107 */
};
_Static_assert(sizeof(struct call_totals_record) == 112, "call_totals");

struct migrations_record {
	__u64 start_ns; /* 0 */
	__u64 seq; /* 8 */
	__u32 pid; /* 16 */
	__u32 tid; /* 20 */
	__u32 valid_mask; /* 24 */
	__u16 from_cpu; /* 28 */
	__u16 to_cpu; /* 30 */
	__u16 cpu; /* 32 */
	__u8 pad[6]; /* 34 */
};
_Static_assert(sizeof(struct migrations_record) == 40, "migrations");

struct ioctls_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 seq; /* 16 */
	__u32 pid; /* 24 */
	__u32 tid; /* 28 */
	__s32 return_code; /* 32 */
	__u32 request; /* 36 */
	__u32 number; /* 40 */
	__u32 type; /* 44 */
	__u32 size_bytes; /* 48 */
	__u32 major; /* 52 */
	__u32 minor; /* 56 */
	__u32 valid_mask; /* 60 */
	__u16 cpu; /* 64 */
	__u8 pad[6]; /* 66 */
};
_Static_assert(sizeof(struct ioctls_record) == 72, "ioctls");
#define IOCTLS_HAS_DURATION_NS (1u << 0)
#define IOCTLS_HAS_RETURN_CODE (1u << 1)

struct socket_io_record {
	char local_address[16]; /* 0 */
	char remote_address[16]; /* 16 */
	__u64 start_ns; /* 32 */
	__u64 duration_ns; /* 40 */
	__u64 inode; /* 48 */
	__u64 count; /* 56 */
	__u64 errors; /* 64 */
	__u64 not_ready; /* 72 */
	__u64 size_bytes; /* 80 */
	__u64 sum_ns; /* 88 */
	__u64 max_ns; /* 96 */
	__u64 seq; /* 104 */
	__u32 pid; /* 112 */
	__u32 valid_mask; /* 116 */
	__u16 family; /* 120 */
	__u16 local_port; /* 122 */
	__u16 remote_port; /* 124 */
	__u16 cpu; /* 126 */
	__u8 receive; /* 128 */
	__u8 pad[7]; /* 129 */
};
_Static_assert(sizeof(struct socket_io_record) == 136, "socket_io");
#define SOCKET_IO_HAS_LOCAL_ADDRESS (1u << 0)
#define SOCKET_IO_HAS_LOCAL_PORT (1u << 1)
#define SOCKET_IO_HAS_REMOTE_ADDRESS (1u << 2)
#define SOCKET_IO_HAS_REMOTE_PORT (1u << 3)
#define SOCKET_IO_HAS_NOT_READY (1u << 4)

struct page_allocations_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 count; /* 16 */
	__u64 seq; /* 24 */
	__u32 pid; /* 32 */
	__u32 order; /* 36 */
	__u32 valid_mask; /* 40 */
	__u16 cpu; /* 44 */
	__u8 pad[2]; /* 46 */
};
_Static_assert(sizeof(struct page_allocations_record) == 48, "page_allocations");

struct reclaims_record {
	char comm[16]; /* 0 */
	__u64 start_ns; /* 16 */
	__u64 duration_ns; /* 24 */
	__u64 reclaimed_pages; /* 32 */
	__u64 seq; /* 40 */
	__u32 pid; /* 48 */
	__u32 tid; /* 52 */
	__s32 order; /* 56 */
	__u32 valid_mask; /* 60 */
	__u16 cpu; /* 64 */
	__u8 cgroup_limit; /* 66 */
	__u8 pad[5]; /* 67 */
};
_Static_assert(sizeof(struct reclaims_record) == 72, "reclaims");
#define RECLAIMS_HAS_DURATION_NS (1u << 0)
#define RECLAIMS_HAS_RECLAIMED_PAGES (1u << 1)

struct oom_kills_record {
	char comm[16]; /* 0 */
	char killer_comm[16]; /* 16 */
	__u64 start_ns; /* 32 */
	__u64 resident_bytes; /* 40 */
	__u64 cgroup_id; /* 48 */
	__u64 seq; /* 56 */
	__u32 pid; /* 64 */
	__u32 uid; /* 68 */
	__u32 killer_pid; /* 72 */
	__u32 valid_mask; /* 76 */
	__u16 cpu; /* 80 */
	__u8 pad[6]; /* 82 */
};
_Static_assert(sizeof(struct oom_kills_record) == 88, "oom_kills");
#define OOM_KILLS_HAS_UID (1u << 0)
#define OOM_KILLS_HAS_RESIDENT_BYTES (1u << 1)
#define OOM_KILLS_HAS_KILLER_PID (1u << 2)
#define OOM_KILLS_HAS_KILLER_COMM (1u << 3)
#define OOM_KILLS_HAS_CGROUP_ID (1u << 4)

struct block_io_record {
	char comm[16]; /* 0 */
	char for_comm[16]; /* 16 */
	__u64 start_ns; /* 32 */
	__u64 duration_ns; /* 40 */
	__u64 sector; /* 48 */
	__u64 queue_ns; /* 56 */
	__u64 cgroup_id; /* 64 */
	__u64 seq; /* 72 */
	__u32 pid; /* 80 */
	__u32 tid; /* 84 */
	__u32 operation; /* 88 */
	__u32 major; /* 92 */
	__u32 minor; /* 96 */
	__u32 size_bytes; /* 100 */
	__s32 error; /* 104 */
	__u32 for_pid; /* 108 */
	__u32 valid_mask; /* 112 */
	__u16 cpu; /* 116 */
	__u8 pad[2]; /* 118 */
};
_Static_assert(sizeof(struct block_io_record) == 120, "block_io");
#define BLOCK_IO_HAS_DURATION_NS (1u << 0)
#define BLOCK_IO_HAS_ERROR (1u << 1)
#define BLOCK_IO_HAS_QUEUE_NS (1u << 2)
#define BLOCK_IO_HAS_CGROUP_ID (1u << 3)
#define BLOCK_IO_HAS_FOR_PID (1u << 4)
#define BLOCK_IO_HAS_FOR_COMM (1u << 5)

struct tcp_retransmits_record {
	char comm[16]; /* 0 */
	char local_address[16]; /* 16 */
	char remote_address[16]; /* 32 */
	__u64 start_ns; /* 48 */
	__u64 inode; /* 56 */
	__u64 cgroup_id; /* 64 */
	__u64 seq; /* 72 */
	__u32 pid; /* 80 */
	__u32 uid; /* 84 */
	__u32 state; /* 88 */
	__u32 segments; /* 92 */
	__s32 error; /* 96 */
	__u32 valid_mask; /* 100 */
	__u16 family; /* 104 */
	__u16 local_port; /* 106 */
	__u16 remote_port; /* 108 */
	__u16 cpu; /* 110 */
};
_Static_assert(sizeof(struct tcp_retransmits_record) == 112, "tcp_retransmits");
#define TCP_RETRANSMITS_HAS_PID (1u << 0)
#define TCP_RETRANSMITS_HAS_COMM (1u << 1)
#define TCP_RETRANSMITS_HAS_INODE (1u << 2)
#define TCP_RETRANSMITS_HAS_UID (1u << 3)
#define TCP_RETRANSMITS_HAS_CGROUP_ID (1u << 4)
#define TCP_RETRANSMITS_HAS_ERROR (1u << 5)

struct lifecycle_record {
	char comm[16]; /* 0 */
	char other_comm[16]; /* 16 */
	__u64 start_ns; /* 32 */
	__u64 cgroup_id; /* 40 */
	__u64 seq; /* 48 */
	__u32 pid; /* 56 */
	__u32 tid; /* 60 */
	__u32 event; /* 64 */
	__u32 other_pid; /* 68 */
	__s32 exit_code; /* 72 */
	__u32 signal; /* 76 */
	__s32 signal_code; /* 80 */
	__u32 valid_mask; /* 84 */
	__u16 cpu; /* 88 */
	__u8 pad[6]; /* 90 */
};
_Static_assert(sizeof(struct lifecycle_record) == 96, "lifecycle");
#define LIFECYCLE_HAS_OTHER_PID (1u << 0)
#define LIFECYCLE_HAS_OTHER_COMM (1u << 1)
#define LIFECYCLE_HAS_EXIT_CODE (1u << 2)
#define LIFECYCLE_HAS_SIGNAL (1u << 3)
#define LIFECYCLE_HAS_SIGNAL_CODE (1u << 4)
#define LIFECYCLE_HAS_CGROUP_ID (1u << 5)

struct cpu_occupants_record {
	char comm[16]; /* 0 */
	__u64 start_ns; /* 16 */
	__u64 duration_ns; /* 24 */
	__u64 cgroup_id; /* 32 */
	__u64 seq; /* 40 */
	__u32 pid; /* 48 */
	__u32 tid; /* 52 */
	__s32 priority; /* 56 */
	__u32 valid_mask; /* 60 */
	__u16 cpu; /* 64 */
	__u8 pad[6]; /* 66 */
};
_Static_assert(sizeof(struct cpu_occupants_record) == 72, "cpu_occupants");
