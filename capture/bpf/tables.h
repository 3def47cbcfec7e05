/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Generated from bundle/tables.py. Do not edit. */
#pragma once

struct cuda_calls_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 size_bytes; /* 16 */
	__u64 stream; /* 24 */
	__u64 device_pointer; /* 32 */
	__u64 source_pointer; /* 40 */
	__u64 function; /* 48 */
	__u64 shared_bytes; /* 56 */
	__u64 seq; /* 64 */
	__u32 pid; /* 72 */
	__u32 tid; /* 76 */
	__u32 op; /* 80 */
	__s32 return_code; /* 84 */
	__s32 direction; /* 88 */
	__u32 grid_x; /* 92 */
	__u32 grid_y; /* 96 */
	__u32 grid_z; /* 100 */
	__u32 block_x; /* 104 */
	__u32 block_y; /* 108 */
	__u32 block_z; /* 112 */
	__u32 valid_mask; /* 116 */
	__u16 cpu; /* 120 */
	__u8 pad[6]; /* 122 */
};
_Static_assert(sizeof(struct cuda_calls_record) == 128, "cuda_calls");
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

struct nccl_calls_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 comm_handle; /* 16 */
	__u64 comm_id; /* 24 */
	__u64 count; /* 32 */
	__u64 size_bytes; /* 40 */
	__u64 stream; /* 48 */
	__u64 seq; /* 56 */
	__u32 pid; /* 64 */
	__u32 tid; /* 68 */
	__u32 op; /* 72 */
	__s32 return_code; /* 76 */
	__s32 rank; /* 80 */
	__s32 nranks; /* 84 */
	__s32 datatype; /* 88 */
	__s32 reduce_op; /* 92 */
	__s32 root; /* 96 */
	__u32 valid_mask; /* 100 */
	__u16 cpu; /* 104 */
	__u8 pad[6]; /* 106 */
};
_Static_assert(sizeof(struct nccl_calls_record) == 112, "nccl_calls");
#define NCCL_CALLS_HAS_DURATION_NS (1u << 0)
#define NCCL_CALLS_HAS_RETURN_CODE (1u << 1)
#define NCCL_CALLS_HAS_COMM_ID (1u << 2)
#define NCCL_CALLS_HAS_RANK (1u << 3)
#define NCCL_CALLS_HAS_NRANKS (1u << 4)
#define NCCL_CALLS_HAS_DATATYPE (1u << 5)
#define NCCL_CALLS_HAS_REDUCE_OP (1u << 6)
#define NCCL_CALLS_HAS_ROOT (1u << 7)
#define NCCL_CALLS_HAS_COUNT (1u << 8)
#define NCCL_CALLS_HAS_SIZE_BYTES (1u << 9)
#define NCCL_CALLS_HAS_STREAM (1u << 10)

struct nccl_comms_record {
	__u64 start_ns; /* 0 */
	__u64 duration_ns; /* 8 */
	__u64 comm_handle; /* 16 */
	__u64 comm_id; /* 24 */
	__u64 seq; /* 32 */
	__u32 pid; /* 40 */
	__u32 tid; /* 44 */
	__u32 op; /* 48 */
	__s32 return_code; /* 52 */
	__s32 rank; /* 56 */
	__s32 nranks; /* 60 */
	__u32 valid_mask; /* 64 */
	__u16 cpu; /* 68 */
	__u8 pad[2]; /* 70 */
};
_Static_assert(sizeof(struct nccl_comms_record) == 72, "nccl_comms");
#define NCCL_COMMS_HAS_DURATION_NS (1u << 0)
#define NCCL_COMMS_HAS_RETURN_CODE (1u << 1)
#define NCCL_COMMS_HAS_COMM_HANDLE (1u << 2)
#define NCCL_COMMS_HAS_COMM_ID (1u << 3)
#define NCCL_COMMS_HAS_RANK (1u << 4)
#define NCCL_COMMS_HAS_NRANKS (1u << 5)

struct off_cpu_record {
	char comm[16]; /* 0 */
	char next_comm[16]; /* 16 */
	char waker_comm[16]; /* 32 */
	__u64 start_ns; /* 48 */
	__u64 duration_ns; /* 56 */
	__u64 wake_ns; /* 64 */
	__u64 seq; /* 72 */
	__u32 pid; /* 80 */
	__u32 tid; /* 84 */
	__u32 prev_state; /* 88 */
	__u32 next_pid; /* 92 */
	__u32 next_tid; /* 96 */
	__u32 waker_pid; /* 100 */
	__u32 waker_tid; /* 104 */
	__u32 valid_mask; /* 108 */
	__u16 cpu_out; /* 112 */
	__u16 cpu; /* 114 */
	__u8 pad[4]; /* 116 */
};
_Static_assert(sizeof(struct off_cpu_record) == 120, "off_cpu");
#define OFF_CPU_HAS_DURATION_NS (1u << 0)
#define OFF_CPU_HAS_WAKE_NS (1u << 1)
#define OFF_CPU_HAS_WAKER_PID (1u << 2)
#define OFF_CPU_HAS_WAKER_TID (1u << 3)
#define OFF_CPU_HAS_WAKER_COMM (1u << 4)
