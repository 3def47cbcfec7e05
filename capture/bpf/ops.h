/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* What each probed function means: the probe table (capture/probe_types.py) as the programs see it. */
#pragma once

#include "shared.h"

/* Where a value comes from. What a pointer leads to is no value where it cannot be read. */
enum from {
	FROM_NOTHING = 0,
	FROM_REGISTER = 1,    /* index 0-5: rdi rsi rdx rcx r8 r9 */
	FROM_STACK = 2,	      /* index n: the n-th 8 bytes above the return address */
	FROM_STACK_ID = 3,    /* the 128 bytes there, folded to 64 bits */
	FROM_POINTEE = 4,     /* what the pointer in a register leads to, read at a successful return */
	FROM_DEREFERENCE = 5, /* the same, read at entry */
	FROM_CONSTANT = 6,    /* the number index */
	FROM_POINTER_ID = 7,  /* the 128 bytes that the pointer in a register leads to, folded, at entry */
	FROM_POINTEE_ID = 8,  /* the same at a successful return */
};

/* What the value does to its column. A column that one of them makes null stays null. */
enum mode {
	MODE_SET = 0,
	MODE_TIMES = 1,	 /* the column is multiplied; null where either is missing or the product leaves 64 bits */
	MODE_UNLESS = 2, /* the column is null where the value is missing or not 0 */
};

/* One value. `valid` is the bit of valid_mask, or 0 for a column that has no nulls. */
struct slot {
	__u8 from;
	__u8 index;
	__u8 shift; /* the value is shifted right by this many bits (dim3: x low, y high half) */
	__u8 width; /* bytes in the record: 4 or 8 */
	__u16 at;     /* offset in the record */
	__u16 behind; /* offset behind the pointer */
	__u32 valid;
	__u8 mode;
	__u8 bytes; /* of the value itself: 1, 2, 4 or 8 */
	__u16 pad;
};

#define SLOTS 20
#define MAX_OPS 2048

enum op_flags {
	OP_FIND_COMM = 1,   /* the communicator in comm_handle is looked up at entry */
	OP_MAKE_COMM = 2,   /* at a successful return, comm_handle gets the record's identity */
	OP_DROP_COMM = 4,   /* at entry, the identity of comm_handle is forgotten */
	OP_SIZE = 8,	    /* size_bytes = count * size of the datatype */
	OP_COUNT_ONLY = 16, /* no record: the probe is counted (host check, cost calibration) */
	OP_SPLIT_COMM = 32, /* comm_handle is made from parent_handle, and gets an identity that follows from it */
	OP_LEARN_COMM = 64, /* rank or size that was told is kept with the communicator */
	OP_MAKE_ALL = 128,  /* the first argument leads to nranks communicators, in the order of their ranks */
	OP_STATE = 256,	    /* changes what exists: a row of its own also when calls are too many for that */
	OP_PARENT_COMM = 512, /* the communicator in parent_handle is looked up at entry */
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
#define MAX_PROBES 262144
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

static __always_inline void count_hit(__u32 probe)
{
	struct probe_count *n = bpf_map_lookup_elem(&probe_counts, &probe);

	if (n)
		__sync_fetch_and_add(&n->hits, 1);
}

static __always_inline void count_unmatched(__u32 probe)
{
	struct probe_count *n = bpf_map_lookup_elem(&probe_counts, &probe);

	if (n)
		__sync_fetch_and_add(&n->unmatched, 1);
}

/* Probes that lie at the same instruction of the same file as another one, which is the one that counts. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} twins SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} twins_noted SEC(".maps"); /* by programs: user space adds some */

static __always_inline void note_twin(__u32 probe, __u32 counts)
{
	__u32 zero = 0;
	__u64 *noted = bpf_map_lookup_elem(&twins_noted, &zero);

	if (bpf_map_lookup_elem(&twins, &probe))
		return;
	if (!bpf_map_update_elem(&twins, &probe, &counts, BPF_ANY) && noted)
		__sync_fetch_and_add(noted, 1);
}

/* The probe that counts in place of this one; 0, which no function has, where it counts itself. */
static __always_inline __u32 twin_of(__u32 probe)
{
	__u32 *counts = bpf_map_lookup_elem(&twins, &probe);

	return counts ? *counts : 0;
}

static __always_inline __u64 mix(__u64 x) /* the finaliser of splitmix64 */
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

#define GOLDEN 0x9e3779b97f4a7c15ULL
#define UNIQUE_ID_WORDS 16 /* nccl.h: NCCL_UNIQUE_ID_BYTES is 128 */

/*
 * Functions that are not static are verified once, and not at each of their calls: which is what lets a program follow
 * a table of twenty values. Their arguments must be numbers, or pointers that may be NULL (Linux 5.12).
 */
__noinline int fold_id(__u64 address, __u64 *out)
{
	__u64 word[UNIQUE_ID_WORDS], h = GOLDEN;

	if (!out || bpf_probe_read_user(word, sizeof(word), (void *)address))
		return 0;
#pragma unroll
	for (int i = 0; i < UNIQUE_ID_WORDS; i++)
		h = mix(h ^ word[i]);
	*out = h;
	return 1;
}
