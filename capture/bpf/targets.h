/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Which processes are recorded, and how that follows fork, exec and exit. */
#pragma once

#include "shared.h"

/* Whether calls of this process are evidence; its first call makes it a traced process at once. */
static __always_inline bool wanted(__u32 tgid)
{
	struct target *t = bpf_map_lookup_elem(&targets, &tgid);
	struct config *c = config();
	struct target fresh = {.flags = TARGET_TRACED};

	if (!c)
		return false;
	if (t) {
		if (t->flags & TARGET_EXCLUDED)
			return false;
		if (c->selected_only && !(t->flags & TARGET_SELECTED))
			return false;
		if (!(t->flags & TARGET_TRACED))
			__sync_fetch_and_or(&t->flags, TARGET_TRACED);
		return true;
	}
	if (c->selected_only)
		return false;
	bpf_get_current_comm(fresh.comm, sizeof(fresh.comm));
	if (bpf_map_update_elem(&targets, &tgid, &fresh, BPF_NOEXIST) == -7 /* E2BIG */)
		count_full(FULL_TARGETS);
	return true;
}

/* A child is selected when its parent is, and maps what its parent maps until it calls exec. */
SEC("tp_btf/sched_process_fork")
int on_fork(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	__u32 from = parent->tgid, to = child->tgid;
	struct target *t, fresh = {};

	if (from == to)
		return 0; /* a thread */
	t = bpf_map_lookup_elem(&targets, &from);
	if (!t || (t->flags & TARGET_EXCLUDED))
		return 0;
	fresh.flags = t->flags;
	fresh.parent = from;
	fresh.began_ns = bpf_ktime_get_boot_ns();
	bpf_probe_read_kernel(fresh.comm, sizeof(fresh.comm), child->comm);
	if (bpf_map_update_elem(&targets, &to, &fresh, BPF_ANY))
		count_full(FULL_TARGETS);
	return 0;
}

/*
 * The mappings are gone, and with them the reason to trace. Every process that begins is noted, so that user space
 * knows to the nanosecond whether a library can have been used before its probes were there.
 */
SEC("tp_btf/sched_process_exec")
int on_exec(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	__u32 tgid = task->tgid;
	struct target *t = bpf_map_lookup_elem(&targets, &tgid), fresh = {};
	struct config *c = config();

	if (t) {
		__sync_fetch_and_and(&t->flags, ~TARGET_TRACED);
		t->began_ns = bpf_ktime_get_boot_ns();
		bpf_probe_read_kernel(t->comm, sizeof(t->comm), task->comm);
		return 0;
	}
	if (!c || c->selected_only)
		return 0;
	fresh.began_ns = bpf_ktime_get_boot_ns();
	bpf_probe_read_kernel(fresh.comm, sizeof(fresh.comm), task->comm);
	if (bpf_map_update_elem(&targets, &tgid, &fresh, BPF_NOEXIST))
		count_full(FULL_TARGETS);
	return 0;
}

/* The entry stays, with the time of the exit, until user space has written it down and removed it. */
SEC("tp_btf/sched_process_exit")
int on_exit(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	__u32 tgid = task->tgid;
	struct target *t;

	if (task->signal->live.counter > 0)
		return 0; /* other threads go on */
	t = bpf_map_lookup_elem(&targets, &tgid);
	if (!t)
		return 0;
	if (t->flags & (TARGET_TRACED | TARGET_SELECTED))
		t->exit_ns = bpf_ktime_get_boot_ns();
	else
		bpf_map_delete_elem(&targets, &tgid);
	return 0;
}
