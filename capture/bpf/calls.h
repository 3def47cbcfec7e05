/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* One entry and one return program for every probed function; the cookie says which: probe << 32 | op. */
#pragma once

#include "targets.h"

RING(ring_cuda_calls);
RING(ring_nccl_calls);
RING(ring_nccl_comms);

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

union any_record {
	struct cuda_calls_record cuda_calls;
	struct nccl_calls_record nccl_calls;
	struct nccl_comms_record nccl_comms;
	__u8 bytes[sizeof(struct cuda_calls_record)];
};

/*
 * Calls that have not returned. The stack pointer is part of the key, so that a function that calls itself, or is
 * left by longjmp and called again, is never paired with the wrong return.
 */
struct call_key {
	__u32 tid;
	__u32 probe;
	__u64 sp;
};
struct open_call {
	__u32 op;
	__u32 tgid;
	union any_record record;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct call_key);
	__type(value, struct open_call);
} open_calls SEC(".maps");

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
	__u32 has; /* NCCL_COMMS_HAS_* of id, rank and nranks */
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct comm_key);
	__type(value, struct comm);
} comms SEC(".maps");

static const struct open_call blank_call;

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

/* Differs between two processes that got the same id, and before and after an exec. */
static __always_inline __u64 this_run(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, group_leader, start_boottime) + BPF_CORE_READ(task, self_exec_id);
}

static __always_inline __u64 mix(__u64 x) /* the finaliser of splitmix64 */
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

#define UNIQUE_ID_WORDS 16 /* nccl.h: NCCL_UNIQUE_ID_BYTES is 128 */

static __always_inline bool fold_id(__u64 address, __u64 *out)
{
	__u64 word[UNIQUE_ID_WORDS], h = 0x9e3779b97f4a7c15ULL;

	if (bpf_probe_read_user(word, sizeof(word), (void *)address))
		return false;
#pragma unroll
	for (int i = 0; i < UNIQUE_ID_WORDS; i++)
		h = mix(h ^ word[i]);
	*out = h;
	return true;
}

static __always_inline __u64 argument(struct pt_regs *regs, __u32 index)
{
	/* volatile: the compiler must not turn this into arithmetic on the context pointer, which is refused */
	volatile __u64 di = regs->di, si = regs->si, dx = regs->dx, cx = regs->cx, r8 = regs->r8, r9 = regs->r9;

	switch (index) {
	case 0:
		return di;
	case 1:
		return si;
	case 2:
		return dx;
	case 3:
		return cx;
	case 4:
		return r8;
	default:
		return r9;
	}
}

static __always_inline bool value_at_entry(struct pt_regs *regs, const struct slot *s, __u64 *out)
{
	__u64 place = regs->sp + 8 + 8 * (__u64)s->index;

	switch (s->from) {
	case FROM_REGISTER:
	case FROM_POINTEE: /* the pointer now, what it leads to at return */
		*out = argument(regs, s->index);
		return true;
	case FROM_STACK:
		return bpf_probe_read_user(out, sizeof(*out), (void *)place) == 0;
	case FROM_STACK_ID:
		return fold_id(place, out);
	default:
		return false;
	}
}

static __always_inline void store(union any_record *record, const struct slot *s, __u64 value)
{
	__u32 at = s->offset;

	value >>= s->shift & 63;
	if (s->width == 8) {
		if (at <= sizeof(*record) - 8)
			*(__u64 *)(record->bytes + at) = value;
	} else if (at <= sizeof(*record) - 4) {
		*(__u32 *)(record->bytes + at) = value;
	}
}

static __always_inline void add_valid(struct open_call *call, __u32 table, __u32 bits)
{
	if (table == TABLE_CUDA_CALLS)
		call->record.cuda_calls.valid_mask |= bits;
	else if (table == TABLE_NCCL_CALLS)
		call->record.nccl_calls.valid_mask |= bits;
	else
		call->record.nccl_comms.valid_mask |= bits;
}

static __always_inline void read_arguments(struct pt_regs *regs, const struct op *op, struct open_call *call)
{
	__u32 valid = 0;

	for (__u32 i = 0; i < SLOTS; i++) {
		const struct slot *s = &op->slot[i];
		__u64 value = 0;

		if (i >= op->slots)
			break;
		if (!value_at_entry(regs, s, &value))
			continue;
		store(&call->record, s, value);
		if (s->from != FROM_POINTEE)
			valid |= s->valid;
	}
	add_valid(call, op->table, valid);
}

static __always_inline void read_pointees(const struct op *op, struct open_call *call)
{
	__u32 valid = 0;

	for (__u32 i = 0; i < SLOTS; i++) {
		const struct slot *s = &op->slot[i];
		__u32 at = s->offset;
		__u64 pointer, value = 0;

		if (i >= op->slots)
			break;
		if (s->from != FROM_POINTEE || at > sizeof(call->record) - 8)
			continue;
		pointer = *(__u64 *)(call->record.bytes + at);
		if (bpf_probe_read_user(&value, sizeof(value), (void *)pointer) == 0)
			valid |= s->valid;
		*(__u64 *)(call->record.bytes + at) = value;
	}
	add_valid(call, op->table, valid);
}

/* The pointer kept for the return is no value: a record that is emitted without it must hold 0, not an address. */
static __always_inline void forget_pointees(const struct op *op, struct open_call *call)
{
	for (__u32 i = 0; i < SLOTS; i++) {
		const struct slot *s = &op->slot[i];
		__u32 at = s->offset;

		if (i >= op->slots)
			break;
		if (s->from == FROM_POINTEE && at <= sizeof(call->record) - 8)
			*(__u64 *)(call->record.bytes + at) = 0;
	}
}

static __always_inline void size_of_call(struct nccl_calls_record *r)
{
	__u32 type = r->datatype, *bytes;

	if (!(r->valid_mask & NCCL_CALLS_HAS_COUNT) || !(r->valid_mask & NCCL_CALLS_HAS_DATATYPE))
		return;
	bytes = bpf_map_lookup_elem(&datatype_bytes, &type);
	if (!bytes || !*bytes || r->count >> 58) /* a datatype has at most 32 bytes: the product fits */
		return;
	r->size_bytes = r->count * *bytes;
	r->valid_mask |= NCCL_CALLS_HAS_SIZE_BYTES;
}

static __always_inline void find_comm(const struct op *op, struct open_call *call)
{
	bool collective = op->table == TABLE_NCCL_CALLS;
	struct comm_key key = {.tgid = call->tgid};
	struct comm *known;

	key.handle = collective ? call->record.nccl_calls.comm_handle : call->record.nccl_comms.comm_handle;
	known = bpf_map_lookup_elem(&comms, &key);
	if (known && known->run == this_run()) {
		if (collective) {
			struct nccl_calls_record *r = &call->record.nccl_calls;

			r->comm_id = known->id;
			r->rank = known->rank;
			r->nranks = known->nranks;
			if (known->has & NCCL_COMMS_HAS_COMM_ID)
				r->valid_mask |= NCCL_CALLS_HAS_COMM_ID;
			r->valid_mask |= NCCL_CALLS_HAS_RANK | NCCL_CALLS_HAS_NRANKS;
		} else {
			struct nccl_comms_record *r = &call->record.nccl_comms;

			r->comm_id = known->id;
			r->rank = known->rank;
			r->nranks = known->nranks;
			r->valid_mask |= known->has;
		}
	}
	/* Dropped now and not at return: once freed, the address may be another thread's new communicator. */
	if (known && (op->flags & OP_DROP_COMM))
		bpf_map_delete_elem(&comms, &key);
}

static __always_inline void make_comm(struct open_call *call)
{
	struct nccl_comms_record *r = &call->record.nccl_comms;
	struct comm_key key = {.handle = r->comm_handle, .tgid = call->tgid};
	struct comm fresh = {};

	if (!(r->valid_mask & NCCL_COMMS_HAS_COMM_HANDLE) || !r->comm_handle)
		return;
	fresh.run = this_run();
	fresh.id = r->comm_id;
	fresh.rank = r->rank;
	fresh.nranks = r->nranks;
	fresh.has = r->valid_mask & (NCCL_COMMS_HAS_COMM_ID | NCCL_COMMS_HAS_RANK | NCCL_COMMS_HAS_NRANKS);
	if (bpf_map_update_elem(&comms, &key, &fresh, BPF_ANY))
		count_full(FULL_COMMS);
}

static __always_inline void emit_call(__u32 table, struct open_call *call)
{
	if (table == TABLE_CUDA_CALLS)
		EMIT(cuda_calls, TABLE_CUDA_CALLS, &call->record.cuda_calls);
	else if (table == TABLE_NCCL_CALLS)
		EMIT(nccl_calls, TABLE_NCCL_CALLS, &call->record.nccl_calls);
	else if (table == TABLE_NCCL_COMMS)
		EMIT(nccl_comms, TABLE_NCCL_COMMS, &call->record.nccl_comms);
}

#define FILL_ENTRY(name)                             \
	({                                           \
		call->record.name.start_ns = start;  \
		call->record.name.pid = call->tgid;  \
		call->record.name.tid = tid;         \
		call->record.name.op = op_id;        \
	})

static __always_inline int enter(struct pt_regs *regs, __u64 cookie)
{
	__u64 start = bpf_ktime_get_boot_ns(), who = bpf_get_current_pid_tgid();
	__u32 tgid = who >> 32, tid = who, op_id = cookie, probe = cookie >> 32;
	struct call_key key = {.tid = tid, .probe = probe, .sp = regs->sp};
	struct open_call *call;
	struct op *op = bpf_map_lookup_elem(&ops, &op_id);

	if (!op)
		return 0;
	if (op->flags & OP_COUNT_ONLY) {
		count_hit(probe);
		return 0;
	}
	if (!wanted(tgid))
		return 0;
	count_hit(probe);
	call = bpf_map_lookup_elem(&open_calls, &key);
	if (call) { /* left without a return (longjmp, a thread that died in it): the row stays, its end is unknown */
		count_unmatched(probe);
		forget_pointees(op, call);
		emit_call(op->table, call);
	}
	if (bpf_map_update_elem(&open_calls, &key, &blank_call, BPF_ANY) ||
	    !(call = bpf_map_lookup_elem(&open_calls, &key))) {
		count_unmatched(probe);
		count_full(FULL_CALLS);
		return 0;
	}
	call->op = op_id;
	call->tgid = tgid;
	if (op->table == TABLE_CUDA_CALLS)
		FILL_ENTRY(cuda_calls);
	else if (op->table == TABLE_NCCL_CALLS)
		FILL_ENTRY(nccl_calls);
	else
		FILL_ENTRY(nccl_comms);
	read_arguments(regs, op, call);
	if (op->flags & OP_SIZE)
		size_of_call(&call->record.nccl_calls);
	if (op->flags & OP_FIND_COMM)
		find_comm(op, call);
	return 0;
}

#define FILL_RETURN(name, NAME)                                                                     \
	({                                                                                          \
		call->record.name.duration_ns = end - call->record.name.start_ns;                   \
		call->record.name.return_code = code;                                               \
		call->record.name.valid_mask |= NAME##_HAS_DURATION_NS | NAME##_HAS_RETURN_CODE;    \
	})

static __always_inline int leave(struct pt_regs *regs, __u64 cookie)
{
	__u64 end = bpf_ktime_get_boot_ns(), who = bpf_get_current_pid_tgid();
	__u32 tgid = who >> 32, op_id = cookie, probe = cookie >> 32, code = regs->ax;
	/* the return has popped the return address that the entry's stack pointer was at */
	struct call_key key = {.tid = (__u32)who, .probe = probe, .sp = regs->sp - 8};
	struct op *op = bpf_map_lookup_elem(&ops, &op_id);
	struct open_call *call;
	bool ok;

	if (!op)
		return 0;
	if (op->flags & OP_COUNT_ONLY) {
		count_unmatched(probe); /* here: returns seen, to compare with the hits */
		return 0;
	}
	if (!wanted(tgid))
		return 0;
	call = bpf_map_lookup_elem(&open_calls, &key);
	if (!call) {
		count_unmatched(probe);
		return 0;
	}
	if (op->table == TABLE_CUDA_CALLS)
		FILL_RETURN(cuda_calls, CUDA_CALLS);
	else if (op->table == TABLE_NCCL_CALLS)
		FILL_RETURN(nccl_calls, NCCL_CALLS);
	else
		FILL_RETURN(nccl_comms, NCCL_COMMS);
	ok = code < 32 && (op->success >> code) & 1;
	if (ok)
		read_pointees(op, call);
	else
		forget_pointees(op, call);
	if (ok && (op->flags & OP_MAKE_COMM))
		make_comm(call);
	emit_call(op->table, call);
	bpf_map_delete_elem(&open_calls, &key);
	return 0;
}

/* The same two twice: the kernel wants to know at load time which way a program will be attached. */
SEC("uprobe")
int enter_perf(struct pt_regs *regs)
{
	return enter(regs, bpf_get_attach_cookie(regs));
}

SEC("uretprobe")
int leave_perf(struct pt_regs *regs)
{
	return leave(regs, bpf_get_attach_cookie(regs));
}

SEC("uprobe")
int enter_multi(struct pt_regs *regs)
{
	return enter(regs, bpf_get_attach_cookie(regs));
}

SEC("uretprobe")
int leave_multi(struct pt_regs *regs)
{
	return leave(regs, bpf_get_attach_cookie(regs));
}
