/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The stack that a call was made from, native and CPython. A stack has an identity, which the rows of calls carry; its
 * frames go to user space once, when it is first seen in a run of a program, through a ring that the attacher drains.
 *
 * Native stacks are unwound by frame pointers, which is all the kernel offers without a table of the program: callers
 * that were compiled without are missed, and user space says where the stack ends.
 */
#pragma once

#include "python.h"

#define BPF_F_USER_STACK (1ULL << 8) /* include/uapi/linux/bpf.h */

/* Stacks whose frames were sent, or would have been: identity → of whom, and whether the ring had room. */
enum stack_state {
	STACK_SENT = 1,
	STACK_LOST = 2,
};
struct known_stack {
	__u64 start_ns;
	__u32 pid;
	__u32 tid;
	__u32 kind;
	__u32 state;
};
#define MAX_STACKS 65536
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_STACKS);
	__type(key, __u64);
	__type(value, struct known_stack);
} known_stacks SEC(".maps");

static __always_inline __u64 fold_word(__u64 h, __u64 word)
{
	h = (h ^ word) * 0x9fb21c651e98df25ULL; /* an odd constant with well spread bits; any will do */
	return h ^ (h >> 32);
}

/* Identity of the frames in *raw, within this run of this process. Not static: verified once, see ops.h. */
__noinline int identify(struct raw_stack *raw)
{
	__u32 words;
	__u64 h;

	if (!raw)
		return 0;
	h = fold_word(raw->born_ns + raw->exec_id, (__u64)raw->pid << 32 | raw->kind << 16 | raw->end);
	words = raw->kind == RAW_PYTHON ? raw->count * PYTHON_FRAME_WORDS : raw->count;
	for (__u32 i = 0; i < RAW_WORDS; i++) {
		if (i >= words)
			break;
		h = fold_word(h, raw->word[i]);
	}
	raw->stack = h ? h : 1;
	return 0;
}

/* Send the frames unless that was done. The identity, or 0 where no more stacks can be known. */
__noinline __u64 tell_stack(struct raw_stack *raw)
{
	struct known_stack fresh = {.state = STACK_SENT}, *known;
	__u64 stack;
	long failed;

	if (!raw)
		return 0;
	stack = raw->stack; /* a key must lie on the stack, before Linux 5.17 */
	known = bpf_map_lookup_elem(&known_stacks, &stack);
	if (known && known->state == STACK_SENT)
		return stack;
	if (!known) {
		fresh.start_ns = raw->start_ns;
		fresh.pid = raw->pid;
		fresh.tid = raw->tid;
		fresh.kind = raw->kind;
		failed = bpf_map_update_elem(&known_stacks, &stack, &fresh, BPF_NOEXIST);
		if (failed == -17 /* EEXIST: another thread was faster, and sends it */)
			return stack;
		if (failed) {
			count_full(FULL_STACKS);
			return 0;
		}
	}
	/* No BPF_RB_NO_WAKEUP: a first sight is rare, and its process may be gone soon. */
	failed = bpf_ringbuf_output(&raw_stacks, raw, sizeof(*raw), 0);
	known = bpf_map_lookup_elem(&known_stacks, &stack);
	if (known)
		known->state = failed ? STACK_LOST : STACK_SENT;
	return stack;
}

static __always_inline void take_python(struct stack_scratch *s, const struct python_process *p, __u64 *python)
{
	struct raw_stack *raw = &s->raw;

	raw->kind = RAW_PYTHON;
	walk_python(p, s);
	if (!raw->count && raw->end == END_WHOLE)
		return; /* no Python thread, or none that is in Python code */
	identify(raw);
	*python = tell_stack(raw);
}

/*
 * The stacks of the calling thread, at the return of a probed function: the innermost native frame is its caller. 0
 * means that there is none. `ctx` is the context of the program itself.
 */
static __always_inline void take_stacks(struct pt_regs *ctx, __u32 tgid, __u32 tid, __u64 *native, __u64 *python)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct stack_scratch *s = take_scratch();
	const struct python_process *p;
	long bytes;

	*native = *python = 0;
	if (!s) {
		count_full(FULL_STACK_SCRATCH);
		return;
	}
	s->raw.start_ns = bpf_ktime_get_boot_ns();
	s->raw.born_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	s->raw.exec_id = BPF_CORE_READ(task, self_exec_id);
	s->raw.pid = tgid;
	s->raw.tid = tid;
	bytes = bpf_get_stack(ctx, s->raw.word, NATIVE_FRAMES * 8, BPF_F_USER_STACK);
	if (bytes > 0) {
		s->raw.kind = RAW_NATIVE;
		s->raw.count = bytes / 8;
		s->raw.end = bytes == NATIVE_FRAMES * 8 ? END_CUT : END_WHOLE;
		identify(&s->raw);
		*native = tell_stack(&s->raw);
	}
	p = bpf_map_lookup_elem(&python_processes, &tgid);
	if (p)
		take_python(s, p, python);
	*(volatile __u64 *)&s->busy = 0;
}
