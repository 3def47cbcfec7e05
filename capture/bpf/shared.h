/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * Maps that every part of the capture uses. They are made once, by the object `calls`; the other objects are loaded
 * with the same maps. User space sets the sizes of rings and counters before it loads an object.
 */
#pragma once

#include "kernel.h"
#include "tables.h"

#define RING(name)                                    \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_RINGBUF);   \
		__uint(max_entries, 1 << 20);         \
	} name SEC(".maps")

/*
 * Attempts and losses of each table on each CPU: index cpu * TABLES + table - 1. Read through mmap by the recorder. An
 * episode of losses ends when nothing was lost for LOSS_EPISODE_NS. Of the last episode: when it began, when something
 * was lost last, and how much had been lost before it.
 */
#define LOSS_EPISODE_NS 100000000ULL
struct table_counter {
	__u64 attempts;
	__u64 lost;
	__u64 first_lost_ns;
	__u64 last_lost_ns;
	__u64 episodes;
	__u64 lost_before;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, TABLES);
	__type(key, __u32);
	__type(value, struct table_counter);
} counters SEC(".maps");

/* Processes of interest. */
enum target_flags {
	TARGET_TRACED = 1,   /* maps a probed library: its threads' off-CPU time is recorded */
	TARGET_SELECTED = 2, /* named by the user, or a descendant of one that was */
	TARGET_EXCLUDED = 4, /* the recorder and the attacher, and what the user left out: never evidence */
	TARGET_KNOWN = 8,    /* was traced: its end is told of, also when it runs another program by then */
	TARGET_TREE = 16,    /* excluded with the children it will have */
	TARGET_RELATED = 32, /* descends from a traced process: its life is recorded */
};
struct target {
	__u32 flags;
	__u32 parent;
	__u64 began_ns; /* the fork or exec that this run of the process began with, 0 if it was not seen */
	__u64 start_ns; /* start of the process, 0 if it was not seen: a number that is given again has another one */
	char comm[TASK_COMM_LEN];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct target);
} targets SEC(".maps");

/* Set by user space; capture/settings.py packs it. */
enum config_flags {
	CONFIG_STACKS = 1,     /* the stacks of slow and of sampled calls are taken */
	CONFIG_NO_ENTRIES = 2, /* the capture ends: entry programs do nothing */
	CONFIG_NO_RETURNS = 4, /* and neither do return programs */
};
struct config {
	__u32 selected_only; /* 0: every process that is not excluded */
	__u32 flags;
	__u64 slow_ns;	    /* a call that takes so long is a row of its own, whatever there are */
	__u32 sample_every; /* so is one in so many of the others; 0: none */
	__u32 budget;	    /* rows of calls in a window of totals.h before calls are added up; 0: no limit */
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
	FULL_STACKS,
	FULL_STACK_SCRATCH,
	FULL_ENDED,
	FULL_PAGES,
	FULL_RECLAIMS,
	FULL_REQUESTS,
	FULL_IOCTLS,
	FULL_SOCKETS,
	FULL_SWITCHES, /* not a full map: the kernel did not tell of a switch */
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

static __always_inline struct table_counter *counters_here(__u32 table, __u32 *cpu)
{
	__u32 key;

	*cpu = bpf_get_smp_processor_id();
	key = *cpu * TABLES + table - 1;
	return bpf_map_lookup_elem(&counters, &key);
}

static __always_inline void count_lost(struct table_counter *n)
{
	__u64 now = bpf_ktime_get_boot_ns();

	if (now - n->last_lost_ns > LOSS_EPISODE_NS) {
		n->first_lost_ns = now;
		n->lost_before = n->lost;
		__sync_fetch_and_add(&n->episodes, 1);
	}
	n->last_lost_ns = now;
	__sync_fetch_and_add(&n->lost, 1); /* last: whoever sees it sees when it was, too */
}

/*
 * Submit a copy of *record with cpu and seq filled in, or count it as lost. A program may be preempted by another one
 * on the same CPU, so the counters are atomic. A lost record leaves a hole in seq.
 */
#define EMIT(name, table, record)                                                                      \
	({                                                                                             \
		struct name##_record *__out;                                                           \
		__u32 __cpu;                                                                           \
		struct table_counter *__n = counters_here(table, &__cpu);                               \
		if (__n) {                                                                             \
			__u64 __seq = __sync_fetch_and_add(&__n->attempts, 1);                         \
			__out = bpf_ringbuf_reserve(&ring_##name, sizeof(*__out), 0);                  \
			if (__out) {                                                                   \
				*__out = *(record);                                                    \
				__out->seq = __seq;                                                    \
				__out->cpu = __cpu;                                                    \
				bpf_ringbuf_submit(__out, BPF_RB_NO_WAKEUP);                           \
			} else {                                                                       \
				count_lost(__n);                                                       \
			}                                                                              \
		}                                                                                      \
	})

/* What is still open when the capture ends leaves its map only when there is room for it: see the flush programs. */
static __always_inline bool room_in(void *ring, __u64 bytes)
{
	return bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) + bytes + 8 <= bpf_ringbuf_query(ring, BPF_RB_RING_SIZE);
}

struct flushed {
	__u64 left;
};

static __always_inline struct config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline bool traced(__u32 tgid)
{
	struct target *t = bpf_map_lookup_elem(&targets, &tgid);

	return t && (t->flags & (TARGET_TRACED | TARGET_EXCLUDED)) == TARGET_TRACED;
}
