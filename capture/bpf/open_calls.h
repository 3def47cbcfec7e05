/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The calls that each thread has made and that have not returned, innermost last. One look-up finds the caller of a
 * call; none is put into a map or taken out of it for a call.
 */
#pragma once

#include "ops.h"
#include "targets.h"

RING(ring_cuda_calls);
RING(ring_nccl_calls);
RING(ring_nccl_comms);

union any_record {
	struct cuda_calls_record cuda_calls;
	struct nccl_calls_record nccl_calls;
	struct nccl_comms_record nccl_comms;
	__u8 bytes[sizeof(struct cuda_calls_record)];
};

#define ARGUMENTS 8 /* six are used; a power of two bounds an index without a branch */
struct open_call {
	__u64 start_ns; /* 0: none */
	__u64 duration_ns;
	__u64 sp; /* at entry, where the return address lies: tells calls of a function that calls itself apart */
	__u64 ip; /* at entry */
	__u64 parent_ns;
	__u64 native_stack;
	__u64 python_stack;
	__u64 argument[ARGUMENTS];
	__u32 probe;
	__u32 op;
	__u32 tgid;
	__u32 tid;
	__u32 parent_op;
	__u32 valid; /* valid_mask of the record to be */
	__u32 dead;  /* its columns that stay null whatever comes */
	__u32 code;
	__u32 split; /* number of this split of its parent */
	__u32 half;  /* columns that are not whole before the return */
	union any_record record;
};

#define DEPTH 8
struct thread {
	__u64 run;	  /* see this_run(); 0: not read yet */
	__u64 trampoline; /* what the kernel puts in place of a return address; 0: not read yet */
	__u32 tgid;
	__u32 open; /* call[0] to call[open - 1] may be open */
	struct open_call call[DEPTH];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct thread);
} threads SEC(".maps");

static const struct thread blank_thread;

/* kernel/events/uprobes.c: the page with the trampoline, one per address space. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct xol_area {
	unsigned long vaddr;
};
struct uprobes_state {
	struct xol_area *xol_area;
};
struct mm_struct {
	struct uprobes_state uprobes_state;
};
struct task_struct___mm {
	struct mm_struct *mm;
};
#pragma clang attribute pop

/* Differs between two processes that got the same number, and before and after an exec. */
static __always_inline __u64 this_run(struct thread *t)
{
	struct task_struct *task;

	if (!t->run) {
		task = (void *)bpf_get_current_task();
		t->run = BPF_CORE_READ(task, group_leader, start_boottime) + BPF_CORE_READ(task, self_exec_id);
	}
	return t->run;
}

/* The entry of this thread, made when there is none; NULL when there is no room. */
static __always_inline struct thread *my_thread(__u32 tgid, __u32 tid)
{
	struct thread *t = bpf_map_lookup_elem(&threads, &tid);

	if (t && t->tgid == tgid)
		return t;
	bpf_map_update_elem(&threads, &tid, &blank_thread, BPF_ANY);
	t = bpf_map_lookup_elem(&threads, &tid);
	if (t)
		t->tgid = tgid;
	return t;
}

enum liveness {
	DEAD,	 /* it was left without a return: longjmp, an exception through C code */
	ALIVE,	 /* it will return */
	UNKNOWN, /* its stack cannot be read */
};

/*
 * Whether a call that began at or above the stack pointer of a new one is still open. The kernel has put the address
 * of its trampoline in place of the return address; where something else lies, the call is over. At the stack pointer
 * of the new call itself the trampoline lies when one function ended by jumping to the other.
 */
__noinline int liveness(struct thread *t, __u64 at)
{
	struct task_struct___mm *task;
	struct xol_area *area = 0;
	__u64 there;

	if (!t)
		return UNKNOWN;
	if (!t->trampoline && bpf_core_field_exists(area->vaddr)) {
		task = (void *)bpf_get_current_task();
		area = BPF_CORE_READ(task, mm, uprobes_state.xol_area);
		if (area)
			t->trampoline = BPF_CORE_READ(area, vaddr);
	}
	if (!t->trampoline || bpf_probe_read_user(&there, sizeof(there), (void *)at))
		return UNKNOWN;
	return there == t->trampoline ? ALIVE : DEAD;
}

#define FILL(name, NAME)                                                                               \
	({                                                                                             \
		struct name##_record *r = &call->record.name;                                          \
		_Static_assert(NAME##_HAS_DURATION_NS == HAS_DURATION, "duration_ns");                 \
		_Static_assert(NAME##_HAS_RETURN_CODE == HAS_CODE, "return_code");                     \
		r->start_ns = call->start_ns;                                                          \
		r->duration_ns = call->duration_ns;                                                    \
		r->pid = call->tgid;                                                                   \
		r->tid = call->tid;                                                                    \
		r->op = call->op;                                                                      \
		r->return_code = call->code;                                                           \
		r->probe = call->probe;                                                                \
		r->parent_ns = call->parent_ns;                                                        \
		r->parent_op = call->parent_op;                                                        \
		r->native_stack = call->native_stack;                                                  \
		r->python_stack = call->python_stack;                                                  \
		r->valid_mask = call->valid | NAME##_HAS_PROBE |                                       \
				(call->parent_ns ? NAME##_HAS_PARENT_NS | NAME##_HAS_PARENT_OP : 0) |  \
				(call->native_stack ? NAME##_HAS_NATIVE_STACK : 0) |                   \
				(call->python_stack ? NAME##_HAS_PYTHON_STACK : 0);                    \
		EMIT(name, TABLE_##NAME, r);                                                           \
	})
#define HAS_DURATION (1u << 0)
#define HAS_CODE (1u << 1)

__noinline int emit_call(__u32 table, struct open_call *call)
{
	if (!call)
		return 0;
	if (table == TABLE_CUDA_CALLS)
		FILL(cuda_calls, CUDA_CALLS);
	else if (table == TABLE_NCCL_CALLS)
		FILL(nccl_calls, NCCL_CALLS);
	else
		FILL(nccl_comms, NCCL_COMMS);
	return 0;
}

static __always_inline bool room_for_call(__u32 table)
{
	if (table == TABLE_CUDA_CALLS)
		return room_in(&ring_cuda_calls, sizeof(struct cuda_calls_record));
	if (table == TABLE_NCCL_CALLS)
		return room_in(&ring_nccl_calls, sizeof(struct nccl_calls_record));
	return room_in(&ring_nccl_comms, sizeof(struct nccl_comms_record));
}

/* A call whose return will not be seen: the row stays, its end is unknown. */
__noinline int end_unseen(struct open_call *call)
{
	__u32 op_id;
	struct op *op;

	if (!call || !call->start_ns)
		return 0;
	op_id = call->op;
	op = bpf_map_lookup_elem(&ops, &op_id);
	call->valid &= ~call->half;
	if (op)
		emit_call(op->table, call);
	call->start_ns = 0;
	return 0;
}

/* Give back what is free at the end of the list. */
static __always_inline void trim(struct thread *t)
{
	__u32 n = t->open;

	for (int i = 0; i < DEPTH; i++) {
		if (!n || n > DEPTH || t->call[(n - 1) & (DEPTH - 1)].start_ns)
			break;
		n--;
	}
	t->open = n;
}

/*
 * Find the call that a new one is made inside, and end those that are found to be over. Calls below the stack pointer
 * are left alone: they are over, or belong to another stack of the same thread (a coroutine, a signal handler's).
 */
static __always_inline struct open_call *find_parent(struct thread *t, __u64 sp, __u32 probe)
{
	__u32 n = t->open;

	for (int i = 0; i < DEPTH; i++) {
		struct open_call *call;
		int state;

		if (!n || n > DEPTH)
			break;
		n--;
		call = &t->call[n & (DEPTH - 1)];
		if (!call->start_ns || call->sp < sp)
			continue;
		state = liveness(t, call->sp);
		if (state == UNKNOWN && call->sp == sp && call->probe == probe)
			state = DEAD;
		if (state == ALIVE)
			return call;
		if (state == UNKNOWN)
			return call->sp > sp ? call : 0;
		count_unmatched(call->probe);
		end_unseen(call);
	}
	return 0;
}

#define TWIN -2
#define SAME_HIT_NS 100000000ULL /* between two programs at one breakpoint, however late the second one gets a CPU */

/*
 * Whether another probe has just begun this very call: one file is probed twice where it is mounted twice under different
 * numbers (overlayfs: two containers of one image), which shows nowhere but here. A call at the same instruction and
 * stack pointer that is older was left by longjmp, in a library that lay at this address before.
 */
static __always_inline bool begun_by_a_twin(struct thread *t, __u64 sp, __u64 ip, __u32 probe, __u64 start_ns)
{
	for (__u32 i = 0; i < DEPTH; i++) {
		struct open_call *call = &t->call[i];

		if (i >= t->open)
			break;
		if (call->start_ns && call->sp == sp && call->ip == ip && call->probe != probe &&
		    start_ns - call->start_ns < SAME_HIT_NS) {
			note_twin(probe, call->probe);
			return true;
		}
	}
	return false;
}

/* Begin a call at this stack pointer: its place in the list, -1 when DEPTH calls are open, or TWIN. */
__noinline int begin_call(struct thread *t, __u64 sp, __u64 ip, __u32 probe, __u64 start_ns)
{
	struct open_call *parent, *call, *last;
	__u64 parent_ns = 0;
	__u32 parent_op = 0, n;

	if (!t)
		return -1;
	if (t->open) {
		if (begun_by_a_twin(t, sp, ip, probe, start_ns))
			return TWIN;
		parent = find_parent(t, sp, probe);
		if (parent) {
			parent_ns = parent->start_ns;
			parent_op = parent->op;
		}
		trim(t);
	}
	last = &t->call[DEPTH - 1];
	if (t->open >= DEPTH && last->sp < sp) {
		count_unmatched(last->probe); /* not above us, as far as one can tell: it was left by longjmp */
		end_unseen(last);
		trim(t);
	}
	n = t->open;
	if (n >= DEPTH)
		return -1;
	t->open = n + 1;
	call = &t->call[n];
	call->start_ns = start_ns;
	call->sp = sp;
	call->ip = ip;
	call->probe = probe;
	call->parent_ns = parent_ns;
	call->parent_op = parent_op;
	return n;
}

/* The place of the open call that returns now, or -1. */
__noinline int find_call(struct thread *t, __u64 sp, __u32 probe)
{
	__u32 n;

	if (!t)
		return -1;
	n = t->open;
	for (int i = 0; i < DEPTH; i++) {
		struct open_call *call;

		if (!n || n > DEPTH)
			break;
		n--;
		call = &t->call[n & (DEPTH - 1)];
		if (call->start_ns && call->sp == sp && (call->probe == probe || twin_of(call->probe) == probe))
			return n;
	}
	return -1;
}

/* Take an ended call off the list. */
__noinline int drop_call(struct thread *t, __u32 place)
{
	if (!t || place >= DEPTH)
		return 0;
	t->call[place].start_ns = 0;
	if (place + 1 == t->open)
		t->open = place; /* what is free below it is given back by the next call */
	return 0;
}

static __always_inline void forget_thread(__u32 tid)
{
	struct thread *t = bpf_map_lookup_elem(&threads, &tid);

	if (!t)
		return;
	for (int i = 0; i < DEPTH; i++)
		end_unseen(&t->call[i]);
	bpf_map_delete_elem(&threads, &tid);
}

/* A thread that ends, and one that becomes another program, return from nothing any more. */
SEC("tp_btf/sched_process_exit")
int on_thread_exit(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];

	forget_thread(task->pid);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int on_thread_exec(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];

	forget_thread(task->pid);
	forget_thread(ctx[1]); /* its number until now, where it was not the first thread of its process */
	return 0;
}
