/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * Calls that are too many for a row each are added up: exactly, per thread, operation, nesting and bucket of durations.
 * There are two maps. Programs add to one of them; once a second user space turns to the other one (turn_totals), waits
 * until every program that was running has ended, and sends the sums of the first (empty_totals).
 */
#pragma once

#include "open_calls.h"

RING(ring_call_totals);

struct totals_key {
	__u32 tgid;
	__u32 tid;
	__u16 op;
	__u8 bucket;
	__u8 nested;
};
struct totals_sum {
	__u64 start_ns;
	__u64 end_ns;
	__u64 count;
	__u64 sum_ns;
	__u64 min_ns;
	__u64 max_ns;
	__u64 size_bytes;
	__u64 errors;
};
#define TOTALS_MAP(name)                              \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_HASH);      \
		__uint(max_entries, 16384);           \
		__type(key, struct totals_key);       \
		__type(value, struct totals_sum);     \
	} name SEC(".maps")
TOTALS_MAP(totals_even);
TOTALS_MAP(totals_odd);

struct totals_state {
	__u32 odd;     /* which map programs add to */
	__u32 used[2]; /* whether a map may hold something */
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals_state);
} totals_state SEC(".maps");

static __always_inline struct totals_state *totals(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&totals_state, &zero);
}

/*
 * Rows in the running window. What is left of the budget is handed to CPUs in small portions, so that they meet seldom;
 * a window is WINDOW_SHIFT: 2^26 ns, 67 ms.
 */
#define WINDOW_SHIFT 26
#define TOTALS_DOUBLINGS 40 /* a call of 2^40 ns, 18 minutes, or more is always a row */
#define PORTION 16
struct window {
	__u64 number;
	__u64 taken; /* of all CPUs: rows handed out. Of one CPU: rows it may still write */
	__u64 spent; /* of one CPU: there is nothing left in this window */
	__u64 calls; /* of one CPU: since the beginning, for the sample */
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct window);
} all_windows SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct window);
} cpu_windows SEC(".maps");

static __always_inline bool within_budget(struct window *mine, __u64 budget, __u64 now)
{
	__u64 number = now >> WINDOW_SHIFT, old;
	struct window *all;
	__u32 zero = 0;

	if (mine->number != number) {
		mine->number = number;
		mine->taken = mine->spent = 0;
	}
	if (mine->taken && mine->taken < PORTION) { /* not below 0 where two programs take the last one at once */
		mine->taken--;
		return true;
	}
	if (mine->spent)
		return false;
	all = bpf_map_lookup_elem(&all_windows, &zero);
	if (!all)
		return true;
	old = all->number;
	if (old != number && __sync_val_compare_and_swap(&all->number, old, number) == old)
		all->taken = 0;
	if (__sync_fetch_and_add(&all->taken, PORTION) >= budget) {
		mine->spent = 1;
		return false;
	}
	mine->taken = PORTION - 1;
	return true;
}

/* Whether more than `quarters` quarters of the table's ring wait for the recorder. */
static __always_inline bool ring_over(__u32 table, __u32 quarters)
{
	__u64 used, size;

	if (table == TABLE_CUDA_CALLS) {
		used = bpf_ringbuf_query(&ring_cuda_calls, BPF_RB_AVAIL_DATA);
		size = bpf_ringbuf_query(&ring_cuda_calls, BPF_RB_RING_SIZE);
	} else if (table == TABLE_NCCL_CALLS) {
		used = bpf_ringbuf_query(&ring_nccl_calls, BPF_RB_AVAIL_DATA);
		size = bpf_ringbuf_query(&ring_nccl_calls, BPF_RB_RING_SIZE);
	} else {
		used = bpf_ringbuf_query(&ring_nccl_comms, BPF_RB_AVAIL_DATA);
		size = bpf_ringbuf_query(&ring_nccl_comms, BPF_RB_RING_SIZE);
	}
	return used * 4 > size * quarters;
}

enum verdict {
	IN_TOTALS,
	ROW,
	ROW_WITH_STACKS,
};

/*
 * Slow calls are rows, and so is one in so many of the others. Below the budget all are. Above it those are that change
 * what exists, and those of NCCL, which are few and each mean something to other ranks, while half of the ring is free;
 * the rest is added up. So is what would fill the last quarter of a ring that the recorder is late to drain: that stays
 * for slow calls.
 */
__noinline int judge_call(__u32 table, __u32 flags, struct open_call *call, __u64 now)
{
	struct config *c = config();
	struct window *mine;
	__u32 zero = 0;

	if (!c || !call)
		return ROW;
	if (call->duration_ns >= c->slow_ns)
		return c->flags & CONFIG_STACKS ? ROW_WITH_STACKS : ROW;
	mine = bpf_map_lookup_elem(&cpu_windows, &zero);
	if (!mine)
		return ROW;
	if (c->sample_every && ++mine->calls >= c->sample_every) {
		mine->calls = 0;
		return c->flags & CONFIG_STACKS ? ROW_WITH_STACKS : ROW;
	}
	if (!c->budget || call->duration_ns >> TOTALS_DOUBLINGS)
		return ROW;
	if (flags & OP_STATE || table != TABLE_CUDA_CALLS)
		return ring_over(table, 2) ? IN_TOTALS : ROW;
	return within_budget(mine, c->budget, now) && !ring_over(table, 3) ? ROW : IN_TOTALS;
}

/* Four buckets in each doubling of the duration: twice the place of its highest bit, then the two bits below that. */
static __always_inline __u32 highest_bit(__u64 x)
{
	__u32 at = 0;

	if (x >> 32)
		at += 32, x >>= 32;
	if (x >> 16)
		at += 16, x >>= 16;
	if (x >> 8)
		at += 8, x >>= 8;
	if (x >> 4)
		at += 4, x >>= 4;
	if (x >> 2)
		at += 2, x >>= 2;
	return at + (x >> 1);
}

static __always_inline __u8 bucket_of(__u64 ns)
{
	__u32 high = highest_bit(ns);

	return 4 * high + ((ns << 2 >> high) & 3);
}

static __always_inline __u64 bucket_low(__u32 bucket)
{
	return bucket ? (__u64)(4 + (bucket & 3)) << (bucket >> 2) >> 2 : 0;
}

static __always_inline __u64 bucket_high(__u32 bucket)
{
	__u64 low = (__u64)(4 + (bucket & 3)) << (bucket >> 2) >> 2;
	__u64 high = (__u64)(5 + (bucket & 3)) << (bucket >> 2) >> 2;

	return high > low ? high : low + 1; /* below 4 ns a bucket is 1 ns wide */
}

/* 0 when there is no room, or the sum of bytes would leave 64 bits. Nothing else adds to a key than the thread that it names. */
__noinline int add_to_totals(__u32 table, struct open_call *call, __u32 ok)
{
	struct totals_state *state = totals();
	struct totals_key key = {};
	struct totals_sum *sum, fresh = {};
	__u64 bytes = 0;
	bool odd;

	if (!call || !state)
		return 0;
	if (table == TABLE_CUDA_CALLS && (call->valid & CUDA_CALLS_HAS_SIZE_BYTES))
		bytes = call->record.cuda_calls.size_bytes;
	else if (table == TABLE_NCCL_CALLS && (call->valid & NCCL_CALLS_HAS_SIZE_BYTES))
		bytes = call->record.nccl_calls.size_bytes;
	key.tgid = call->tgid;
	key.tid = call->tid;
	key.op = call->op;
	key.bucket = bucket_of(call->duration_ns);
	key.nested = call->parent_ns != 0;
	odd = *(volatile __u32 *)&state->odd;
	sum = odd ? bpf_map_lookup_elem(&totals_odd, &key) : bpf_map_lookup_elem(&totals_even, &key);
	if (sum) {
		if (sum->size_bytes + bytes < bytes)
			return 0;
		sum->end_ns = call->start_ns + call->duration_ns;
		if (call->start_ns < sum->start_ns)
			sum->start_ns = call->start_ns;
		sum->count++;
		sum->sum_ns += call->duration_ns;
		if (call->duration_ns < sum->min_ns)
			sum->min_ns = call->duration_ns;
		if (call->duration_ns > sum->max_ns)
			sum->max_ns = call->duration_ns;
		sum->size_bytes += bytes;
		sum->errors += !ok;
		return 1;
	}
	fresh.start_ns = call->start_ns;
	fresh.end_ns = call->start_ns + call->duration_ns;
	fresh.count = 1;
	fresh.sum_ns = fresh.min_ns = fresh.max_ns = call->duration_ns;
	fresh.size_bytes = bytes;
	fresh.errors = !ok;
	if (odd ? bpf_map_update_elem(&totals_odd, &key, &fresh, BPF_NOEXIST)
		: bpf_map_update_elem(&totals_even, &key, &fresh, BPF_NOEXIST))
		return 0;
	state->used[odd] = 1;
	return 1;
}

static long send_total(void *map, struct totals_key *key, struct totals_sum *sum, struct flushed *f)
{
	struct call_totals_record r = {};

	if (f->left || !room_in(&ring_call_totals, sizeof(r))) {
		f->left = 1;
		return 1;
	}
	r.start_ns = sum->start_ns;
	r.duration_ns = sum->end_ns - sum->start_ns;
	r.low_ns = bucket_low(key->bucket);
	r.high_ns = bucket_high(key->bucket);
	r.count = sum->count;
	r.sum_ns = sum->sum_ns;
	r.min_ns = sum->min_ns;
	r.max_ns = sum->max_ns;
	r.size_bytes = sum->size_bytes;
	r.errors = sum->errors;
	r.pid = key->tgid;
	r.tid = key->tid;
	r.op = key->op;
	r.nested = key->nested;
	EMIT(call_totals, TABLE_CALL_TOTALS, &r);
	bpf_map_delete_elem(map, key);
	return 0;
}

/* Send what one of the maps holds; 1 when there was no room for all of it. */
static __always_inline int send_totals(struct totals_state *state, bool odd)
{
	struct flushed f = {};

	if (!state->used[odd])
		return 0;
	/* One call that two maps reach is refused by Linux 6.1: what follows keeps the compiler from merging the two. */
	if (odd) {
		bpf_for_each_map_elem(&totals_odd, send_total, &f, 0);
		asm volatile("r1 = 1" ::: "r1");
	} else {
		bpf_for_each_map_elem(&totals_even, send_total, &f, 0);
		asm volatile("r1 = 0" ::: "r1");
	}
	if (!f.left)
		state->used[odd] = 0;
	return f.left;
}

/* First of the two that run every second. Nothing turns before what was left of the other map has been sent. */
SEC("raw_tp/turn_totals")
int turn_totals(void *ctx)
{
	struct totals_state *state = totals();
	bool odd;

	if (!state)
		return 0;
	odd = state->odd;
	if (state->used[odd] && !state->used[!odd])
		state->odd = !odd;
	return 0;
}

SEC("raw_tp/empty_totals")
int empty_totals(void *ctx)
{
	struct totals_state *state = totals();

	return state ? send_totals(state, !state->odd) : 0;
}
