/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Which processes are recorded, and how that follows fork, exec and exit. */
#pragma once

#include "python.h"
#include "shared.h"

/*
 * What the user chose or left out by property; written once by user space, ended by RULE_END. A process is selected
 * when it meets a rule of every kind that is asked for, and excluded when it meets one that excludes.
 */
enum rule_kind {
	RULE_END,
	RULE_UID,    /* real user id, in the host's user namespace */
	RULE_COMM,   /* name of the process, whatever its threads are called */
	RULE_CGROUP, /* in this cgroup of version 2 or below it: number is the index in `cgroups` */
};
struct rule {
	__u32 kind;
	__u32 excludes;
	__u32 number;
	__u32 pad;
	char comm[TASK_COMM_LEN];
};
#define MAX_RULES 64
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_RULES);
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, MAX_RULES);
	__type(key, __u32);
	__type(value, __u32);
} cgroups SEC(".maps");

/* A process that was of interest, when it has ended. Drained by the attacher. */
struct ended {
	__u64 start_ns;
	__u64 began_ns;
	__u64 exit_ns;
	__u64 cgroup_id;
	__u32 pid;
	__u32 parent;
	__u32 flags;
	__u32 uid;
	__s32 exit_code; /* as wait(2) has it */
	__u32 pad;
	char comm[TASK_COMM_LEN];
};
RING(raw_ended);

#define SIGNAL_GROUP_EXIT 4 /* include/linux/sched/signal.h */

static __always_inline bool same_comm(const char *a, const char *b)
{
	const __u64 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1];
}

/* TARGET_EXCLUDED, TARGET_SELECTED or nothing, by the properties of the current process. */
static __noinline __u32 judge(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 asked = 0, met = 0, uid = bpf_get_current_uid_gid();
	char comm[TASK_COMM_LEN] __attribute__((aligned(8))) = {};

	BPF_CORE_READ_STR_INTO(&comm, task, group_leader, comm);
	for (__u32 i = 0; i < MAX_RULES; i++) {
		__u32 key = i;
		struct rule *r = bpf_map_lookup_elem(&rules, &key);
		bool meets = false;

		if (!r || r->kind == RULE_END)
			break;
		if (r->kind == RULE_UID)
			meets = uid == r->number;
		else if (r->kind == RULE_COMM)
			meets = same_comm(comm, r->comm);
		else if (r->kind == RULE_CGROUP)
			meets = bpf_current_task_under_cgroup(&cgroups, r->number) == 1;
		if (r->excludes) {
			if (meets)
				return TARGET_EXCLUDED | TARGET_TREE;
			continue;
		}
		asked |= 1u << (r->kind & 31);
		if (meets)
			met |= 1u << (r->kind & 31);
	}
	return asked && met == asked ? TARGET_SELECTED : 0;
}

static __always_inline bool has_rules(void)
{
	__u32 zero = 0;
	struct rule *first = bpf_map_lookup_elem(&rules, &zero);

	return first && first->kind != RULE_END;
}

/* A process that is not traced yet calls a probed function. */
static __noinline __u32 first_call(__u32 tgid)
{
	struct target *t = bpf_map_lookup_elem(&targets, &tgid), fresh = {};
	__u32 flags = has_rules() ? judge() : 0;
	struct config *c = config();
	struct task_struct *task = (void *)bpf_get_current_task();

	if (!c)
		return 0;
	if (!(flags & TARGET_EXCLUDED)) {
		if (c->selected_only && !((flags | (t ? t->flags : 0)) & TARGET_SELECTED))
			return 0;
		flags |= TARGET_TRACED | TARGET_KNOWN | TARGET_RELATED;
	}
	if (t) {
		__sync_fetch_and_or(&t->flags, flags);
		return flags & TARGET_TRACED;
	}
	fresh.flags = flags;
	fresh.start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	BPF_CORE_READ_STR_INTO(&fresh.comm, task, group_leader, comm);
	if (bpf_map_update_elem(&targets, &tgid, &fresh, BPF_NOEXIST) == -7 /* E2BIG */)
		count_full(FULL_TARGETS);
	return flags & TARGET_TRACED;
}

/* Whether calls of this process are evidence; its first call makes it a traced process at once. */
static __always_inline bool wanted(__u32 tgid)
{
	struct target *t = bpf_map_lookup_elem(&targets, &tgid);
	struct config *c = config();

	if (!c || (t && (t->flags & TARGET_EXCLUDED)))
		return false;
	if (t && (t->flags & TARGET_TRACED) && (!c->selected_only || (t->flags & TARGET_SELECTED)))
		return true;
	return first_call(tgid);
}

/* A child is selected or left out when its parent is, and maps what its parent maps until it calls exec. */
SEC("tp_btf/sched_process_fork")
int on_fork(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	__u32 from = parent->tgid, to = child->tgid;
	struct target *t, fresh = {};

	if (from == to)
		return 0; /* a thread */
	inherit_python(from, to);
	t = bpf_map_lookup_elem(&targets, &from);
	if (!t || (t->flags & (TARGET_EXCLUDED | TARGET_TREE)) == TARGET_EXCLUDED)
		return 0;
	fresh.flags = (t->flags & ~TARGET_KNOWN) | (t->flags & TARGET_TRACED ? TARGET_RELATED : 0);
	fresh.parent = from;
	fresh.began_ns = bpf_ktime_get_boot_ns();
	fresh.start_ns = child->start_boottime;
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
	__u32 tgid = task->tgid, flags = has_rules() ? judge() : 0;
	struct target *t = bpf_map_lookup_elem(&targets, &tgid), fresh = {};
	struct config *c = config();

	forget_python(tgid);
	if (t) {
		__sync_fetch_and_and(&t->flags, ~TARGET_TRACED);
		__sync_fetch_and_or(&t->flags, flags);
		t->began_ns = bpf_ktime_get_boot_ns();
		bpf_probe_read_kernel(t->comm, sizeof(t->comm), task->comm);
		return 0;
	}
	if (!c || (c->selected_only && !flags))
		return 0;
	fresh.flags = flags;
	fresh.began_ns = bpf_ktime_get_boot_ns();
	fresh.start_ns = task->group_leader->start_boottime;
	bpf_probe_read_kernel(fresh.comm, sizeof(fresh.comm), task->comm);
	if (bpf_map_update_elem(&targets, &tgid, &fresh, BPF_NOEXIST))
		count_full(FULL_TARGETS);
	return 0;
}

static __always_inline void tell_ended(struct task_struct *task, struct target *t)
{
	struct ended *e = bpf_ringbuf_reserve(&raw_ended, sizeof(*e), 0);

	if (!e) {
		count_full(FULL_ENDED);
		return;
	}
	e->start_ns = task->group_leader->start_boottime;
	e->began_ns = t->began_ns;
	e->exit_ns = bpf_ktime_get_boot_ns();
	e->cgroup_id = bpf_get_current_cgroup_id();
	e->pid = task->tgid;
	e->parent = t->parent ? t->parent : task->real_parent->tgid;
	e->flags = t->flags;
	e->uid = bpf_get_current_uid_gid();
	e->exit_code = task->signal->flags & SIGNAL_GROUP_EXIT ? task->signal->group_exit_code
							       : task->group_leader->exit_code;
	e->pad = 0;
	bpf_probe_read_kernel(e->comm, sizeof(e->comm), task->group_leader->comm);
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

/*
 * The entry goes at once, so that the process that is given the number next has one of its own. Attached after the
 * programs of the other parts, which still ask for it.
 */
SEC("tp_btf/sched_process_exit")
int on_exit(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	__u32 tgid = task->tgid;
	struct target *t;

	if (task->signal->live.counter > 0)
		return 0; /* other threads go on */
	forget_python(tgid);
	t = bpf_map_lookup_elem(&targets, &tgid);
	if (!t)
		return 0;
	if (!(t->flags & TARGET_EXCLUDED) && (t->flags & (TARGET_TRACED | TARGET_KNOWN | TARGET_SELECTED)))
		tell_ended(task, t);
	bpf_map_delete_elem(&targets, &tgid);
	return 0;
}
