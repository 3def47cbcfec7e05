// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* The lives of the processes that are followed, and of their children: fork, exec, exit, and signals that kill. */
#include "shared.h"
#include "cgroups.h"

RING(ring_lifecycle);

enum event {
	EVENT_FORK,
	EVENT_EXEC,
	EVENT_EXIT,
	EVENT_SIGNAL,
};

#define SIGNAL_GROUP_EXIT 4 /* include/linux/sched/signal.h */
#define SIGNAL_DELIVERED 0  /* include/trace/events/signal.h: queued for the process, or woken to deal with it */

enum { SIGHUP = 1, SIGKILL = 9, SIGCHLD = 17, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH = 28 };
#define SIGNALS 64

struct kernel_siginfo {
	int si_code;
} __attribute__((preserve_access_index));
struct sigaction {
	void *sa_handler;
} __attribute__((preserve_access_index));
struct k_sigaction {
	struct sigaction sa;
} __attribute__((preserve_access_index));
struct sighand_struct {
	struct k_sigaction action[SIGNALS];
} __attribute__((preserve_access_index));
struct task_struct___signals {
	struct sighand_struct *sighand;
} __attribute__((preserve_access_index));

static __always_inline bool followed(__u32 tgid)
{
	struct target *t = bpf_map_lookup_elem(&targets, &tgid);

	return t && !(t->flags & TARGET_EXCLUDED) &&
	       t->flags & (TARGET_TRACED | TARGET_SELECTED | TARGET_RELATED);
}

static __always_inline void describe(struct lifecycle_record *r, struct task_struct *task, enum event event)
{
	r->start_ns = bpf_ktime_get_boot_ns();
	r->pid = task->tgid;
	r->tid = task->pid;
	r->event = event;
	bpf_probe_read_kernel(r->comm, sizeof(r->comm), task->group_leader->comm);
	r->cgroup_id = task_cgroup_id(task);
	if (r->cgroup_id)
		r->valid_mask |= LIFECYCLE_HAS_CGROUP_ID;
}

SEC("tp_btf/sched_process_fork")
int on_life_fork(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	struct lifecycle_record r = {};

	if (parent->tgid == child->tgid || !followed(parent->tgid))
		return 0; /* a thread, or nobody of interest */
	describe(&r, parent, EVENT_FORK);
	r.other_pid = child->tgid;
	r.valid_mask |= LIFECYCLE_HAS_OTHER_PID;
	EMIT(lifecycle, TABLE_LIFECYCLE, &r);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int on_life_exec(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct lifecycle_record r = {};

	if (!followed(task->tgid))
		return 0;
	describe(&r, task, EVENT_EXEC);
	EMIT(lifecycle, TABLE_LIFECYCLE, &r);
	return 0;
}

/* Told once for a process, by the last of its threads; before `calls` forgets the process. */
SEC("tp_btf/sched_process_exit")
int on_life_exit(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct signal_struct *signal = task->signal;
	struct lifecycle_record r = {};
	int code;

	if (signal->live.counter > 0 || !followed(task->tgid))
		return 0;
	describe(&r, task, EVENT_EXIT);
	code = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : task->group_leader->exit_code;
	if (code & 0x7f) {
		r.signal = code & 0x7f;
		r.valid_mask |= LIFECYCLE_HAS_SIGNAL;
	} else {
		r.exit_code = code >> 8 & 0xff;
		r.valid_mask |= LIFECYCLE_HAS_EXIT_CODE;
	}
	EMIT(lifecycle, TABLE_LIFECYCLE, &r);
	return 0;
}

/* Whether the process would not survive it: SIGKILL, or a signal that ends and that it does not handle. */
static __always_inline bool kills(struct task_struct *task, int sig)
{
	struct task_struct___signals *of = (void *)task;
	__u64 action, handler = 0;

	if (sig == SIGKILL)
		return true;
	if (sig < SIGHUP || sig > SIGNALS || (sig >= SIGCHLD && sig <= SIGURG) || sig == SIGWINCH)
		return false;
	action = (__u64)BPF_CORE_READ(of, sighand) + bpf_core_field_offset(struct sighand_struct, action);
	action += (__u64)(sig - 1) * bpf_core_type_size(struct k_sigaction);
	action += bpf_core_field_offset(struct k_sigaction, sa) + bpf_core_field_offset(struct sigaction, sa_handler);
	return !bpf_probe_read_kernel(&handler, sizeof(handler), (void *)action) && !handler; /* SIG_DFL */
}

/* The current process is the sender, unless the kernel sends: si_code says so, and two values that are no address. */
SEC("tp_btf/signal_generate")
int on_signal_generate(__u64 *ctx)
{
	int sig = ctx[0], result = ctx[4];
	__u64 info = ctx[1], who = bpf_get_current_pid_tgid();
	struct task_struct *task = (void *)ctx[2];
	struct lifecycle_record r = {};
	bool by_process = !info; /* SEND_SIG_NOINFO */

	if (result != SIGNAL_DELIVERED || !followed(task->tgid) || !kills(task, sig))
		return 0;
	if (info > 1 && !bpf_core_read(&r.signal_code, sizeof(r.signal_code), &((struct kernel_siginfo *)info)->si_code)) {
		r.valid_mask |= LIFECYCLE_HAS_SIGNAL_CODE;
		by_process = r.signal_code <= 0;
	}
	describe(&r, task, EVENT_SIGNAL);
	r.signal = sig;
	r.valid_mask |= LIFECYCLE_HAS_SIGNAL;
	if (by_process) {
		r.other_pid = who >> 32;
		bpf_get_current_comm(r.other_comm, sizeof(r.other_comm));
		r.valid_mask |= LIFECYCLE_HAS_OTHER_PID | LIFECYCLE_HAS_OTHER_COMM;
	}
	EMIT(lifecycle, TABLE_LIFECYCLE, &r);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
