/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* One entry and one return program for every probed function; the cookie says which: probe << 32 | op. */
#pragma once

#include "comms.h"
#include "totals.h"
#include "stacks.h"

/* The value that a slot names; false where it cannot be read. */
static __always_inline bool read_value(const struct slot *s, struct open_call *call, __u64 *out)
{
	__u64 argument = call->argument[s->index & (ARGUMENTS - 1)], address = 0;
	bool fold = s->from == FROM_STACK_ID || s->from == FROM_POINTER_ID || s->from == FROM_POINTEE_ID;

	if (s->from == FROM_REGISTER) {
		*out = argument;
	} else if (s->from == FROM_CONSTANT) {
		*out = s->index;
	} else {
		if (s->from == FROM_STACK || s->from == FROM_STACK_ID)
			address = call->sp + 8 + 8 * (__u64)s->index;
		else if (argument)
			address = argument + s->behind;
		if (!address)
			return false;
		if (fold) {
			if (!fold_id(address, out))
				return false;
		} else if (s->bytes == 8 || s->from == FROM_STACK) {
			if (bpf_probe_read_user(out, 8, (void *)address))
				return false;
		} else {
			*out = 0;
			if (bpf_probe_read_user(out, s->bytes & 7, (void *)address))
				return false;
		}
	}
	*out >>= s->shift & 63;
	if (s->bytes < 8)
		*out &= (1ULL << (8 * (s->bytes & 7))) - 1;
	return true;
}

/* Put a value into its column, or make the column null. */
static __always_inline void apply(const struct slot *s, struct open_call *call, bool read, __u64 value)
{
	__u32 at = s->at;

	if (at > sizeof(call->record) - 8)
		return;
	if (s->mode == MODE_SET) {
		if (!read)
			return;
		if (s->width == 8)
			*(__u64 *)(call->record.bytes + at) = value;
		else
			*(__u32 *)(call->record.bytes + at) = value;
		call->valid |= s->valid;
		return;
	}
	if (read && s->mode == MODE_UNLESS && !value)
		return;
	if (read && s->mode == MODE_TIMES && (call->valid & s->valid)) {
		__u64 old = *(__u64 *)(call->record.bytes + at), most = old ? ~0ULL / old : ~0ULL;

		asm volatile("" : "+r"(most)); /* or the compiler multiplies with 128 bits, which BPF cannot */
		if (value <= most) {
			*(__u64 *)(call->record.bytes + at) = old * value;
			return;
		}
	}
	call->dead |= s->valid;
}

/* Read one value into its column; one that cannot be read because the call failed is missing. */
__noinline int take_slot(struct slot *s, struct open_call *call, __u32 readable)
{
	__u64 value = 0;

	if (s && call)
		apply(s, call, readable && read_value(s, call, &value), value);
	return 0;
}

static __always_inline void take_slots(struct op *op, struct open_call *call, bool pointees, bool readable)
{
	for (__u32 i = 0; i < SLOTS; i++) {
		struct slot *s = &op->slot[i];

		if (i >= op->slots)
			break;
		if ((s->from == FROM_POINTEE || s->from == FROM_POINTEE_ID) == pointees)
			take_slot(s, call, readable);
		else if (!pointees && s->mode != MODE_SET)
			call->half |= s->valid;
	}
	call->valid &= ~call->dead;
}

static __always_inline int enter(struct pt_regs *regs, __u64 cookie)
{
	__u64 start = bpf_ktime_get_boot_ns(), who = bpf_get_current_pid_tgid();
	__u32 tgid = who >> 32, tid = who, op_id = cookie, probe = cookie >> 32;
	struct op *op = bpf_map_lookup_elem(&ops, &op_id);
	struct config *c = config();
	struct open_call *call;
	struct thread *t;
	int place;

	if (!op || !c || (c->flags & CONFIG_NO_ENTRIES))
		return 0;
	if (op->flags & OP_COUNT_ONLY) {
		count_hit(probe);
		return 0;
	}
	if (!wanted(tgid))
		return 0;
	t = my_thread(tgid, tid);
	place = t ? begin_call(t, regs->sp, regs->ip, probe, start) : -1;
	if (place == TWIN)
		return 0;
	count_hit(probe);
	asm volatile("" : "+r"(place)); /* the compiler knows its bounds, the verifier must be shown them */
	if (!t || place < 0 || place >= DEPTH) {
		count_unmatched(probe);
		count_full(FULL_CALLS);
		return 0;
	}
	call = &t->call[place];
	call->argument[0] = regs->di;
	call->argument[1] = regs->si;
	call->argument[2] = regs->dx;
	call->argument[3] = regs->cx;
	call->argument[4] = regs->r8;
	call->argument[5] = regs->r9;
	call->op = op_id;
	call->tgid = tgid;
	call->tid = tid;
	call->duration_ns = call->native_stack = call->python_stack = 0;
	call->valid = call->dead = call->half = call->code = call->split = 0;
	__builtin_memset(&call->record, 0, sizeof(call->record));
	take_slots(op, call, false, true);
	if (op->flags & COMM_FLAGS)
		comms_at_entry(t, op->table, op->flags, call);
	return 0;
}

static __always_inline int leave(struct pt_regs *regs, __u64 cookie, bool stacks)
{
	__u64 end = bpf_ktime_get_boot_ns(), who = bpf_get_current_pid_tgid();
	__u32 tgid = who >> 32, tid = who, op_id = cookie, probe = cookie >> 32, code = regs->ax;
	struct op *op = bpf_map_lookup_elem(&ops, &op_id);
	struct config *c = config();
	struct open_call *call;
	struct thread *t;
	int place = -1, verdict;
	bool ok;

	if (!op || !c || (c->flags & CONFIG_NO_RETURNS))
		return 0;
	if (op->flags & OP_COUNT_ONLY) {
		count_unmatched(probe); /* here: returns seen, to compare with the hits */
		return 0;
	}
	t = bpf_map_lookup_elem(&threads, &tid);
	/* the return has popped the return address that the entry's stack pointer was at */
	if (t && t->tgid == tgid)
		place = find_call(t, regs->sp - 8, probe);
	asm volatile("" : "+r"(place));
	if (!t || place < 0 || place >= DEPTH) {
		if (wanted(tgid) && !twin_of(probe))
			count_unmatched(probe);
		return 0;
	}
	call = &t->call[place];
	call->duration_ns = end - call->start_ns;
	call->code = code;
	ok = code < 32 && (op->success >> code) & 1;
	take_slots(op, call, true, ok);
	call->valid |= HAS_DURATION | HAS_CODE;
	if (ok && (op->flags & COMM_FLAGS))
		comms_at_return(t, op->flags, call);
	verdict = judge_call(op->table, op->flags, call, end);
	if (stacks && verdict == ROW_WITH_STACKS)
		take_stacks(regs, tgid, tid, &call->native_stack, &call->python_stack);
	if (verdict != IN_TOTALS || !add_to_totals(op->table, call, ok))
		emit_call(op->table, call);
	drop_call(t, place);
	return 0;
}

/*
 * The kernel wants to know at load time which way a program will be attached, and a program that can take stacks takes
 * long to verify: user space loads one that enters and one that leaves.
 */
#define FUNCTION_PROGRAMS(way)                                                      \
	SEC("uprobe")                                                               \
	int enter_##way(struct pt_regs *regs)                                       \
	{                                                                           \
		return enter(regs, bpf_get_attach_cookie(regs));                    \
	}                                                                           \
	SEC("uretprobe")                                                            \
	int leave_##way(struct pt_regs *regs)                                       \
	{                                                                           \
		return leave(regs, bpf_get_attach_cookie(regs), false);             \
	}                                                                           \
	SEC("uretprobe")                                                            \
	int leave_stacks_##way(struct pt_regs *regs)                                \
	{                                                                           \
		return leave(regs, bpf_get_attach_cookie(regs), true);              \
	}
FUNCTION_PROGRAMS(perf)
FUNCTION_PROGRAMS(multi)
