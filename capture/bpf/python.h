/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * Frames of CPython threads, read from the interpreter's own structures: interpreters, their thread states, frames. No
 * lock of the interpreter is needed: a thread that is in a call of ours does not change its own frames meanwhile.
 * User space says where things lie (capture/cpython.py), once per process, and decodes the code objects.
 *
 * A thread state is matched by thread_id, which is pthread_self(): on x86-64 that is the thread's FS base, with glibc and
 * musl alike. Unlike the native thread id it means the same in every PID namespace, and stays right after fork.
 */
#pragma once

#include "raw_stacks.h"

#define PYTHON_STEPS 384      /* thread states and interpreters looked at, at most */
#define PYTHON_FRAME_STEPS 48 /* frames looked at, those between C and Python included */
#define PYTHON_NO_FIELD 0xffffffffU

/* Where CPython keeps things in one process; struct PythonProcess in capture/cpython.py packs it. Offsets in bytes. */
struct python_process {
	__u64 interpreters;	    /* address of the pointer to the first interpreter */
	__u64 code_mask;	    /* of a frame's executable: the bits that are an address */
	__u32 interpreter_next;
	__u32 interpreter_threads;
	__u32 thread_next;
	__u32 thread_id;
	__u32 thread_frame;	    /* the current frame, or the C frame that has it */
	__u32 cframe_frame;	    /* the current frame in the C frame; PYTHON_NO_FIELD without one */
	__u32 frame_bytes;	    /* read of each frame: the fields below lie in them */
	__u32 frame_previous;
	__u32 frame_code;
	__u32 frame_instruction;
	__u32 frame_owner;	    /* one byte; PYTHON_NO_FIELD before 3.11 */
	__u32 first_hidden_owner;   /* owners from here on are no Python code: frames between C and Python */
	__u32 instruction_bytes;    /* 8: an address, 4: an index */
	__u32 code_line_table;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct python_process);
} python_processes SEC(".maps");

/* A child of fork has its parent's memory, until it calls exec. */
static __always_inline void inherit_python(__u32 from, __u32 to)
{
	struct python_process *p = bpf_map_lookup_elem(&python_processes, &from);

	if (p)
		bpf_map_update_elem(&python_processes, &to, p, BPF_ANY);
}

static __always_inline void forget_python(__u32 tgid)
{
	bpf_map_delete_elem(&python_processes, &tgid);
}

/* arch/x86/include/asm/processor.h */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct thread_struct {
	unsigned long fsbase;
};
struct task_struct___python {
	struct thread_struct thread;
};
#pragma clang attribute pop

#define READ_USER(out, address) bpf_probe_read_user(&(out), sizeof(out), (void *)(address))

/* The current frame of the calling thread: 0 with *end = END_WHOLE where it has none, so is no Python thread. */
__noinline __u64 python_current_frame(const struct python_process *p, __u32 *end)
{
	struct task_struct___python *task = (void *)bpf_get_current_task();
	__u64 self = BPF_CORE_READ(task, thread.fsbase), interpreter = 0, thread = 0, id = 0, frame = 0;

	if (!p || !end)
		return 0;
	*end = END_UNREADABLE;
	if (READ_USER(interpreter, p->interpreters))
		return 0;
	for (int i = 0; i < PYTHON_STEPS; i++) {
		if (!thread) {
			if (!interpreter) {
				*end = END_WHOLE;
				return 0;
			}
			if (READ_USER(thread, interpreter + p->interpreter_threads) ||
			    READ_USER(interpreter, interpreter + p->interpreter_next))
				return 0;
			continue;
		}
		if (READ_USER(id, thread + p->thread_id))
			return 0;
		if (id == self) {
			if (READ_USER(frame, thread + p->thread_frame))
				return 0;
			if (frame && p->cframe_frame != PYTHON_NO_FIELD && READ_USER(frame, frame + p->cframe_frame))
				return 0;
			if (frame) { /* a thread may have a state in several interpreters: the one that runs */
				*end = END_WHOLE;
				return frame;
			}
		}
		if (READ_USER(thread, thread + p->thread_next))
			return 0;
	}
	*end = END_THREADS;
	return 0;
}

static __always_inline __u64 frame_word(const struct stack_scratch *s, __u32 offset)
{
	return *(const __u64 *)(s->frame + (offset & (PYTHON_FRAME_BYTES - 8)));
}

/* One frame of the chain; false at its end. All state is in *s: the verifier then sees every turn of the loop alike. */
static __always_inline bool python_frame(const struct python_process *p, struct stack_scratch *s)
{
	__u64 code, instruction, line_table, frame = s->next_frame;
	__u32 size = p->frame_bytes, n = s->raw.count;

	if (!frame)
		return false;
	if (n >= PYTHON_FRAMES) {
		s->raw.end = END_CUT;
		return false;
	}
	if (size > PYTHON_FRAME_BYTES)
		size = PYTHON_FRAME_BYTES;
	s->raw.end = END_UNREADABLE;
	if (bpf_probe_read_user(s->frame, size, (void *)frame))
		return false;
	s->next_frame = frame_word(s, p->frame_previous);
	if (p->frame_owner != PYTHON_NO_FIELD &&
	    s->frame[p->frame_owner & (PYTHON_FRAME_BYTES - 1)] >= p->first_hidden_owner)
		return true;
	code = frame_word(s, p->frame_code) & p->code_mask;
	instruction = frame_word(s, p->frame_instruction);
	if (p->instruction_bytes == 4)
		instruction = (__u32)instruction;
	if (READ_USER(line_table, code + p->code_line_table))
		return false;
	s->raw.count = n + 1;
	barrier_var(n); /* or the compiler drops the mask, without which the verifier sees no bound */
	n = (n & (PYTHON_FRAMES - 1)) * PYTHON_FRAME_WORDS;
	s->raw.word[n] = code;
	s->raw.word[n + 1] = instruction;
	s->raw.word[n + 2] = line_table;
	return true;
}

/* The frames of the calling thread, innermost first, into s->raw. */
__noinline int walk_python(const struct python_process *p, struct stack_scratch *s)
{
	__u32 end;
	int i;

	if (!p || !s)
		return 0;
	s->raw.count = 0;
	s->next_frame = python_current_frame(p, &end);
	s->raw.end = end;
	if (!s->next_frame)
		return 0;
	for (i = 0; i < PYTHON_FRAME_STEPS; i++)
		if (!python_frame(p, s))
			break;
	if (!s->next_frame) /* the outermost frame was seen */
		s->raw.end = END_WHOLE;
	else if (i == PYTHON_FRAME_STEPS)
		s->raw.end = END_CUT;
	return 0;
}
