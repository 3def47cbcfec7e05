/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* NCCL communicators: a handle means something in its process only, an identity means the same to every rank. */
#pragma once

#include "open_calls.h"

/* A communicator's identity, valid for one run of one program in one process. */
struct comm_key {
	__u64 handle;
	__u64 tgid;
};
struct comm {
	__u64 run;
	__u64 id;
	__s32 rank;
	__s32 nranks;
	__u32 has;    /* NCCL_COMMS_HAS_* of id, rank and nranks */
	__u32 splits; /* how often it was split */
};
/* A process may end without giving its communicators up: those that nobody used for longest make room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct comm_key);
	__type(value, struct comm);
} comms SEC(".maps");

#define COMM_FACTS (NCCL_COMMS_HAS_COMM_ID | NCCL_COMMS_HAS_RANK | NCCL_COMMS_HAS_NRANKS)

static __always_inline struct comm *known_comm(struct thread *t, __u64 handle)
{
	struct comm_key key = {.handle = handle, .tgid = t->tgid};
	struct comm *known = bpf_map_lookup_elem(&comms, &key);

	return known && known->run == this_run(t) ? known : 0;
}

static __always_inline void keep_comm(struct thread *t, __u64 handle, struct comm *fresh)
{
	struct comm_key key = {.handle = handle, .tgid = t->tgid};

	fresh->run = this_run(t);
	if (bpf_map_update_elem(&comms, &key, fresh, BPF_ANY))
		count_full(FULL_COMMS);
}

static __always_inline void size_of_call(struct open_call *call)
{
	struct nccl_calls_record *r = &call->record.nccl_calls;
	__u32 type = r->datatype, *bytes;

	if (!(call->valid & NCCL_CALLS_HAS_COUNT) || !(call->valid & NCCL_CALLS_HAS_DATATYPE))
		return;
	bytes = bpf_map_lookup_elem(&datatype_bytes, &type);
	if (!bytes || !*bytes || r->count >> 58) /* a datatype has at most 32 bytes: the product fits */
		return;
	r->size_bytes = r->count * *bytes;
	call->valid |= NCCL_CALLS_HAS_SIZE_BYTES;
}

#define COPY_COMM(record, NAME)                                        \
	({                                                             \
		if (known->has & NCCL_COMMS_HAS_COMM_ID) {             \
			(record)->comm_id = known->id;                 \
			call->valid |= NAME##_HAS_COMM_ID;             \
		}                                                      \
		if (known->has & NCCL_COMMS_HAS_RANK) {                \
			(record)->rank = known->rank;                  \
			call->valid |= NAME##_HAS_RANK;                \
		}                                                      \
		if (known->has & NCCL_COMMS_HAS_NRANKS) {              \
			(record)->nranks = known->nranks;              \
			call->valid |= NAME##_HAS_NRANKS;              \
		}                                                      \
	})

static __always_inline void find_comm(struct thread *t, __u32 table, __u32 flags, struct open_call *call)
{
	bool collective = table == TABLE_NCCL_CALLS;
	struct comm_key key = {.tgid = t->tgid};
	struct comm *known;

	key.handle = collective ? call->record.nccl_calls.comm_handle : call->record.nccl_comms.comm_handle;
	known = known_comm(t, key.handle);
	if (known && collective)
		COPY_COMM(&call->record.nccl_calls, NCCL_CALLS);
	else if (known)
		COPY_COMM(&call->record.nccl_comms, NCCL_COMMS);
	/* Dropped now and not at return: once freed, the address may be another thread's new communicator. */
	if (flags & OP_DROP_COMM)
		bpf_map_delete_elem(&comms, &key);
}

/* Splits of a parent are numbered at entry: every rank must make them in the same order. */
static __always_inline void find_parent_comm(struct thread *t, __u32 flags, struct open_call *call)
{
	struct nccl_comms_record *r = &call->record.nccl_comms;
	struct comm *known = known_comm(t, r->parent_handle);

	if (!known)
		return;
	if (flags & OP_SPLIT_COMM)
		call->split = __sync_fetch_and_add(&known->splits, 1);
	if (known->has & NCCL_COMMS_HAS_COMM_ID) {
		r->parent_comm_id = known->id;
		call->valid |= NCCL_COMMS_HAS_PARENT_COMM_ID;
	}
}

#define NO_COLOUR 0xffffffffu /* a split that takes none; NCCL_SPLIT_NOCOLOR, which gives no communicator, is -1 too */
#define ALL_COLOUR 0xfffffffeu

/* The identity of what was made of a communicator: the same on every rank that is in it. */
static __always_inline __u64 fold_split(__u64 parent, __u32 split, __u32 colour)
{
	return mix(mix(mix(GOLDEN ^ parent) ^ split) ^ colour);
}

static __always_inline void name_split(struct open_call *call)
{
	struct nccl_comms_record *r = &call->record.nccl_comms;
	__u32 colour = call->valid & NCCL_COMMS_HAS_COLOR ? r->color : NO_COLOUR;

	if ((call->valid & NCCL_COMMS_HAS_COMM_ID) || !(call->valid & NCCL_COMMS_HAS_PARENT_COMM_ID) ||
	    !(call->valid & NCCL_COMMS_HAS_COMM_HANDLE) || !r->comm_handle)
		return;
	r->comm_id = fold_split(r->parent_comm_id, call->split, colour);
	call->valid |= NCCL_COMMS_HAS_COMM_ID;
}

static __always_inline void make_comm(struct thread *t, struct open_call *call)
{
	struct nccl_comms_record *r = &call->record.nccl_comms;
	struct comm fresh = {.id = r->comm_id, .rank = r->rank, .nranks = r->nranks, .has = call->valid & COMM_FACTS};

	if (r->rank < 0) /* what a rank that is in the parent already passes to ncclCommGrow */
		fresh.has &= ~NCCL_COMMS_HAS_RANK;
	if ((call->valid & NCCL_COMMS_HAS_COMM_HANDLE) && r->comm_handle)
		keep_comm(t, r->comm_handle, &fresh);
}

static __always_inline void learn_comm(struct thread *t, struct open_call *call)
{
	struct nccl_comms_record *r = &call->record.nccl_comms;
	struct comm *known = known_comm(t, r->comm_handle);
	__u32 told = call->valid & (NCCL_COMMS_HAS_RANK | NCCL_COMMS_HAS_NRANKS);

	if (!known) { /* it was made before the probes were there */
		make_comm(t, call);
		return;
	}
	if (told & NCCL_COMMS_HAS_RANK)
		known->rank = r->rank;
	if (told & NCCL_COMMS_HAS_NRANKS)
		known->nranks = r->nranks;
	__sync_fetch_and_or(&known->has, told);
}

#define ALL_COMMS 16 /* devices that one process has at most; more of them have no identity */

/* One process makes the communicators of all its devices: an identity that is known in this process only. */
static __always_inline void make_all(struct thread *t, struct open_call *call)
{
	struct nccl_comms_record *r = &call->record.nccl_comms;
	struct comm fresh = {.has = COMM_FACTS, .nranks = r->nranks};
	__u64 handle;

	if (!(call->valid & NCCL_COMMS_HAS_COMM_HANDLE) || !r->comm_handle)
		return;
	fresh.id = r->comm_id = fold_split(r->comm_handle ^ this_run(t), 0, ALL_COLOUR);
	call->valid |= NCCL_COMMS_HAS_COMM_ID;
	for (int i = 0; i < ALL_COMMS; i++) {
		__u64 at = call->argument[0] + 8 * i;

		if (i >= r->nranks || bpf_probe_read_user(&handle, sizeof(handle), (void *)at))
			break;
		fresh.rank = i;
		if (handle)
			keep_comm(t, handle, &fresh);
	}
}

#define COMM_FLAGS                                                                                            \
	(OP_SIZE | OP_FIND_COMM | OP_DROP_COMM | OP_MAKE_COMM | OP_SPLIT_COMM | OP_PARENT_COMM | OP_LEARN_COMM |      \
	 OP_MAKE_ALL)

__noinline int comms_at_entry(struct thread *t, __u32 table, __u32 flags, struct open_call *call)
{
	if (!t || !call)
		return 0;
	if (flags & OP_SIZE)
		size_of_call(call);
	if (flags & OP_FIND_COMM)
		find_comm(t, table, flags, call);
	if (flags & (OP_SPLIT_COMM | OP_PARENT_COMM))
		find_parent_comm(t, flags, call);
	return 0;
}

__noinline int comms_at_return(struct thread *t, __u32 flags, struct open_call *call)
{
	if (!t || !call)
		return 0;
	if (flags & OP_SPLIT_COMM)
		name_split(call);
	if (flags & (OP_MAKE_COMM | OP_SPLIT_COMM))
		make_comm(t, call);
	if (flags & OP_LEARN_COMM)
		learn_comm(t, call);
	if (flags & OP_MAKE_ALL)
		make_all(t, call);
	return 0;
}
