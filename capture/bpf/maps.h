/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Maps shared by all programs. User space sets the sizes of rings and counters before it loads the object. */
#pragma once

#include "kernel.h"
#include "tables.h"

/* Order of the ring tables in `counters`, and the `table` of an op. capture/probes.py has the same order. */
enum table {
	TABLE_NONE = 0,
	TABLE_CUDA_CALLS = 1,
	TABLE_NCCL_CALLS = 2,
	TABLE_NCCL_COMMS = 3,
	TABLE_OFF_CPU = 4,
	TABLES = 4,
};

#define RING(name)                                    \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_RINGBUF);   \
		__uint(max_entries, 1 << 20);         \
	} name SEC(".maps")

RING(ring_cuda_calls);
RING(ring_nccl_calls);
RING(ring_nccl_comms);
RING(ring_off_cpu);

/* Attempts and losses of each table on each CPU: index cpu * TABLES + table - 1. Read through mmap by the recorder. */
struct counter_pair {
	__u64 attempts;
	__u64 lost;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, TABLES);
	__type(key, __u32);
	__type(value, struct counter_pair);
} counters SEC(".maps");

/* Where a value comes from when the entry probe runs (the first four), or when the return probe does. */
enum from {
	FROM_NOTHING = 0,
	FROM_REGISTER = 1,  /* index 0-5: rdi rsi rdx rcx r8 r9 */
	FROM_STACK = 2,	    /* index n: the n-th 8 bytes above the return address */
	FROM_STACK_ID = 3,  /* the 128 bytes there, folded to 64 bits */
	FROM_POINTEE = 4,   /* 8 bytes that the pointer in a register leads to, read at return */
};

/* One value of a record: from where, and to which bytes. `valid` is the bit of valid_mask, or 0. */
struct slot {
	__u8 from;
	__u8 index;
	__u8 shift; /* the value is shifted right by this many bits (dim3: x low, y high half) */
	__u8 width; /* bytes in the record: 4 or 8 */
	__u32 offset;
	__u32 valid;
};

#define SLOTS 12
#define MAX_OPS 64

enum op_flags {
	OP_FIND_COMM = 1,  /* the communicator in comm_handle is looked up at entry */
	OP_MAKE_COMM = 2,  /* at a successful return, comm_handle gets the record's identity */
	OP_DROP_COMM = 4,  /* at entry, the identity of comm_handle is forgotten */
	OP_SIZE = 8,	   /* size_bytes = count * size of the datatype */
	OP_COUNT_ONLY = 16 /* no record: the probe is counted (host check, cost calibration) */
};

/* What one probed function means; written by user space from the probe table, index = op. */
struct op {
	__u32 table;
	__u32 flags;
	__u32 slots;
	__u32 success; /* bit r set: return code r means success */
	struct slot slot[SLOTS];
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_OPS);
	__type(key, __u32);
	__type(value, struct op);
} ops SEC(".maps");

/* Bytes of each ncclDataType_t, 0 where unknown; written by user space. */
#define DATATYPES 32
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DATATYPES);
	__type(key, __u32);
	__type(value, __u32);
} datatype_bytes SEC(".maps");

/* What each attached probe counted; index = the upper half of its cookie. */
#define MAX_PROBES 8192
struct probe_count {
	__u64 hits;	 /* entries */
	__u64 unmatched; /* returns without an entry, entries whose return was never seen, entries not kept */
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PROBES);
	__type(key, __u32);
	__type(value, struct probe_count);
} probe_counts SEC(".maps");

/* Processes of interest. */
enum target_flags {
	TARGET_TRACED = 1,   /* maps a probed library: its threads' off-CPU time is recorded */
	TARGET_SELECTED = 2, /* named by the user, or a descendant of one that was */
	TARGET_EXCLUDED = 4, /* the recorder and the attacher: never evidence */
};
struct target {
	__u32 flags;
	__u32 parent;
	__u64 began_ns; /* the fork or exec that this run of the process began with, 0 if it was not seen */
	__u64 exit_ns;	/* 0 while it lives */
	char comm[TASK_COMM_LEN];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct target);
} targets SEC(".maps");

/* Set once by user space. */
struct config {
	__u32 selected_only; /* 0: every process that is not excluded */
	__u32 off_cpu;	     /* 0: no off-CPU intervals */
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} settings SEC(".maps");

/* What could not be kept because a map was full: each is a gap in the evidence. */
enum full {
	FULL_CALLS,
	FULL_COMMS,
	FULL_OFF_CPU,
	FULL_TARGETS,
	FULLS,
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FULLS);
	__type(key, __u32);
	__type(value, __u64);
} full SEC(".maps");

static __always_inline void count_full(__u32 which)
{
	__u64 *n = bpf_map_lookup_elem(&full, &which);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline struct counter_pair *counters_here(__u32 table, __u32 *cpu)
{
	__u32 key;

	*cpu = bpf_get_smp_processor_id();
	key = *cpu * TABLES + table - 1;
	return bpf_map_lookup_elem(&counters, &key);
}

/*
 * Submit a copy of *record with cpu and seq filled in, or count it as lost. A program may be preempted by another one
 * on the same CPU, so the counters are atomic. A lost record leaves a hole in seq.
 */
#define EMIT(name, table, record)                                                                      \
	({                                                                                             \
		struct name##_record *__out;                                                           \
		__u32 __cpu;                                                                           \
		struct counter_pair *__n = counters_here(table, &__cpu);                               \
		if (__n) {                                                                             \
			__u64 __seq = __sync_fetch_and_add(&__n->attempts, 1);                         \
			__out = bpf_ringbuf_reserve(&ring_##name, sizeof(*__out), 0);                  \
			if (__out) {                                                                   \
				*__out = *(record);                                                    \
				__out->seq = __seq;                                                    \
				__out->cpu = __cpu;                                                    \
				bpf_ringbuf_submit(__out, BPF_RB_NO_WAKEUP);                           \
			} else {                                                                       \
				__sync_fetch_and_add(&__n->lost, 1);                                   \
			}                                                                              \
		}                                                                                      \
	})
