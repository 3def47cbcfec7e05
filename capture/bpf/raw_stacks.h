/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* What is sent of a stack that was not seen before, and the room to put it together in. */
#pragma once

#include "shared.h"

#define NATIVE_FRAMES 64
#define PYTHON_FRAMES 32
#define PYTHON_FRAME_WORDS 3 /* code object, instruction, line table */
#define RAW_WORDS (PYTHON_FRAMES * PYTHON_FRAME_WORDS)
#define PYTHON_FRAME_BYTES 128

enum raw_kind {
	RAW_NATIVE = 0, /* words: addresses, innermost first */
	RAW_PYTHON = 1,
};

/* How a walk ended. */
enum stack_end {
	END_WHOLE = 0,
	END_CUT = 1,	    /* more frames than are kept */
	END_UNREADABLE = 2, /* a page that is not in memory, or an address that is none */
	END_THREADS = 3,    /* the thread's state was not among those that were looked at */
};

/* The record of the ring raw_stacks; capture/stack_records.py has the same layout and numbers. */
struct raw_stack {
	__u64 start_ns;
	__u64 stack;   /* identity; never 0 */
	__u64 born_ns; /* start of the process, CLOCK_BOOTTIME */
	__u64 exec_id; /* differs after an exec */
	__u32 pid;
	__u32 tid;
	__u32 kind;
	__u32 end;   /* enum stack_end */
	__u32 count; /* frames */
	__u32 pad;
	__u64 word[RAW_WORDS];
};
RING(raw_stacks);

/* Room to work in. A program may be preempted by another one on the same CPU, so each takes one that is free. */
#define SCRATCHES 4
struct stack_scratch {
	__u64 busy;
	__u64 next_frame;
	struct raw_stack raw;
	__u8 frame[PYTHON_FRAME_BYTES];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCHES);
	__type(key, __u32);
	__type(value, struct stack_scratch);
} stack_scratch SEC(".maps");

static __always_inline struct stack_scratch *take_scratch(void)
{
	for (__u32 i = 0; i < SCRATCHES; i++) {
		__u32 key = i;
		struct stack_scratch *s = bpf_map_lookup_elem(&stack_scratch, &key);

		if (s && !__sync_lock_test_and_set(&s->busy, 1))
			return s;
	}
	return 0;
}
