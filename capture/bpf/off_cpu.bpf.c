/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Intervals in which a thread of a traced process is not on a CPU: why, who woke it, who ran instead; and its moves. */
#include "shared.h"
#include "thread.h"

RING(ring_off_cpu);
RING(ring_migrations);
RING(ring_cpu_occupants);

struct open_interval {
	struct off_cpu_record row;
	__u64 switches; /* how often the thread had been switched out by then, this time included: the kernel's own count */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct open_interval);
} open_off_cpu SEC(".maps");

static __always_inline __u64 switches_of(struct task_struct *task)
{
	struct task_struct___thread *t = (void *)task;

	return t->nvcsw + t->nivcsw;
}

/*
 * The last turns on this CPU, whoever had them. They are remembered at every switch, because who waits for the CPU is
 * known only when it gets it; they are told when it was one of ours that had waited. The last turn ends with the next
 * switch, every other one where the turn after it began.
 */
struct turn {
	__u64 start_ns;
	__u64 cgroup_id;
	__u32 pid;
	__u32 tid;
	__s32 priority;
	__u32 told;
	char comm[TASK_COMM_LEN];
};
struct turns {
	__u64 count;
	struct turn last[MAX_OCCUPANTS];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct turns);
} turns_here SEC(".maps");

static __always_inline struct turn *turn(struct turns *t, __u64 index)
{
	return &t->last[index & (MAX_OCCUPANTS - 1)];
}

_Static_assert((MAX_OCCUPANTS & (MAX_OCCUPANTS - 1)) == 0, "an index is masked");

static __always_inline void begin_turn(struct turns *t, struct task_struct *task, __u64 now)
{
	struct turn *its = turn(t, t->count);

	its->start_ns = now;
	its->cgroup_id = thread_cgroup(task);
	its->pid = task->tgid;
	its->tid = task->pid;
	its->priority = thread_priority(task);
	its->told = 0;
	((__u64 *)its->comm)[0] = ((__u64 *)task->comm)[0];
	((__u64 *)its->comm)[1] = ((__u64 *)task->comm)[1];
	t->count++;
}

/* Turns that share a moment with [since, now), the last one first; each is told once, whoever waited. */
static __always_inline void tell_turns(struct turns *t, __u64 since, __u64 now)
{
	struct cpu_occupants_record r = {};
	__u64 end = now;
	struct turn *its;

	for (__u64 i = 1; i <= MAX_OCCUPANTS; i++) {
		if (i > t->count || end <= since)
			return;
		its = turn(t, t->count - i);
		if (!its->told) {
			its->told = 1;
			r.start_ns = its->start_ns;
			r.duration_ns = end - its->start_ns;
			r.pid = its->pid;
			r.tid = its->tid;
			r.priority = its->priority;
			r.cgroup_id = its->cgroup_id;
			__builtin_memcpy(r.comm, its->comm, sizeof(r.comm));
			EMIT(cpu_occupants, TABLE_CPU_OCCUPANTS, &r);
		}
		end = its->start_ns;
	}
}

static __always_inline struct turns *turns_until(struct task_struct *prev)
{
	__u32 zero = 0;
	struct turns *t = bpf_map_lookup_elem(&turns_here, &zero);
	struct turn *last;

	if (t && t->count) {
		last = turn(t, t->count - 1);
		if (last->tid != (__u32)prev->pid) {
			last->told = 1; /* a switch was not seen: nobody knows when it ended, nor who came after it */
			/* Of ours the interval is missing then. exec() by another thread than the first gives it that one's id. */
			if (traced(last->pid) && !(last->pid == (__u32)prev->tgid && prev->pid == prev->tgid))
				count_full(FULL_SWITCHES);
		}
	}
	return t;
}

/* The kernel did not tell of its switch back. That it slept until somebody woke it is known all the same. */
static __always_inline void came_back_unseen(struct off_cpu_record *r)
{
	count_full(FULL_SWITCHES);
	if (!r->prev_state || !(r->valid_mask & OFF_CPU_HAS_WAKE_NS))
		return;
	r->duration_ns = r->wake_ns - r->start_ns;
	r->valid_mask |= OFF_CPU_HAS_DURATION_NS;
	EMIT(off_cpu, TABLE_OFF_CPU, r);
}

static __always_inline void came_back(struct task_struct *next, struct turns *turns, __u64 now)
{
	__u32 tid = next->pid;
	struct open_interval *open;
	struct off_cpu_record *r;

	open = bpf_map_lookup_elem(&open_off_cpu, &tid); /* it was traced when it left */
	if (!open)
		return;
	r = &open->row;
	if (open->switches != switches_of(next)) { /* it ran meanwhile, and left once more */
		came_back_unseen(r);
		bpf_map_delete_elem(&open_off_cpu, &tid);
		return;
	}
	r->duration_ns = now - r->start_ns;
	r->valid_mask |= OFF_CPU_HAS_DURATION_NS;
	if (!r->prev_state) {
		r->runqueue_ns = r->duration_ns;
		r->valid_mask |= OFF_CPU_HAS_RUNQUEUE_NS;
	} else if (r->valid_mask & OFF_CPU_HAS_WAKE_NS) {
		r->runqueue_ns = now - r->wake_ns;
		r->valid_mask |= OFF_CPU_HAS_RUNQUEUE_NS;
	}
	bpf_probe_read_kernel(r->comm, sizeof(r->comm), next->comm);
	EMIT(off_cpu, TABLE_OFF_CPU, r);
	if (turns && r->runqueue_ns >= OCCUPANTS_FROM_NS)
		tell_turns(turns, now - r->runqueue_ns, now);
	bpf_map_delete_elem(&open_off_cpu, &tid);
}

/* What is known of a thread that is not on a CPU, whoever runs instead. */
static __always_inline void describe(struct off_cpu_record *r, struct task_struct *task, __u64 now)
{
	r->start_ns = now;
	r->pid = task->tgid;
	r->tid = task->pid;
	r->priority = thread_priority(task);
	r->cgroup_id = thread_cgroup(task);
	r->valid_mask |= OFF_CPU_HAS_PRIORITY | OFF_CPU_HAS_CGROUP_ID;
	if (thread_syscall(task, &r->syscall, &r->syscall_arg))
		r->valid_mask |= OFF_CPU_HAS_SYSCALL | OFF_CPU_HAS_SYSCALL_ARG;
	bpf_probe_read_kernel(r->comm, sizeof(r->comm), task->comm);
}

static __always_inline void left(struct task_struct *prev, struct task_struct *next, __u32 state, __u64 now)
{
	__u32 tid = prev->pid;
	struct open_interval *unended, open = {};
	struct off_cpu_record *r = &open.row;

	if (!tid || !(traced(prev->tgid) || state & TASK_DEAD))
		return;
	unended = bpf_map_lookup_elem(&open_off_cpu, &tid);
	if (unended && !(unended->row.valid_mask & OFF_CPU_HAS_BEGAN_BEFORE))
		came_back_unseen(&unended->row);
	if (state & TASK_DEAD) { /* no longer traced when it is the last thread; on_asleep may have come too late for it */
		bpf_map_delete_elem(&open_off_cpu, &tid);
		return;
	}
	open.switches = switches_of(prev);
	describe(r, prev, now);
	r->prev_state = state;
	r->next_pid = next->tgid;
	r->next_tid = next->pid;
	r->next_priority = thread_priority(next);
	r->next_cgroup_id = thread_cgroup(next);
	r->valid_mask |= OFF_CPU_HAS_NEXT_PID | OFF_CPU_HAS_NEXT_TID | OFF_CPU_HAS_NEXT_COMM | OFF_CPU_HAS_NEXT_PRIORITY |
			OFF_CPU_HAS_NEXT_CGROUP_ID;
	r->cpu_out = bpf_get_smp_processor_id();
	bpf_probe_read_kernel(r->next_comm, sizeof(r->next_comm), next->comm);
	if (bpf_map_update_elem(&open_off_cpu, &tid, &open, BPF_ANY))
		count_full(FULL_OFF_CPU);
}

/* One switch of a CPU: one moment for all that ends and begins with it. */
static __always_inline int switched(struct task_struct *prev, struct task_struct *next, __u32 state)
{
	struct turns *turns = turns_until(prev);
	__u64 now = bpf_ktime_get_boot_ns();

	left(prev, next, state, now);
	came_back(next, turns, now);
	if (turns)
		begin_turn(turns, next, now);
	return 0;
}

/*
 * A thread that is switched out under `preempt` stays runnable whatever its state says (it was about to sleep and had
 * not yet done so), so its state is recorded as 0, TASK_RUNNING.
 */
SEC("tp_btf/sched_switch") /* Linux 5.18 and later: the state is an argument, read before anybody could wake the thread */
int on_switch_state(__u64 *ctx)
{
	struct task_struct *prev = (void *)ctx[1], *next = (void *)ctx[2];
	bool preempt = ctx[0];
	__u32 state = ctx[3];

	return switched(prev, next, preempt ? 0 : state);
}

SEC("tp_btf/sched_switch")
int on_switch(__u64 *ctx)
{
	struct task_struct *prev = (void *)ctx[1], *next = (void *)ctx[2];
	bool preempt = ctx[0];

	return switched(prev, next, preempt ? 0 : prev->__state);
}

/*
 * The current thread is the waker, except in an interrupt (a timer, a device): then no thread is, and none is named.
 * The kernel's own count tells, where its symbol can be found; where not, six tracepoints keep watch instead.
 */
static __always_inline int note_wake(struct task_struct *task, bool interrupt)
{
	__u32 tid = task->pid;
	struct open_interval *open = bpf_map_lookup_elem(&open_off_cpu, &tid);
	struct off_cpu_record *r;
	__u64 who;

	if (!open || (open->row.valid_mask & OFF_CPU_HAS_WAKE_NS))
		return 0;
	r = &open->row;
	r->wake_ns = bpf_ktime_get_boot_ns();
	if (!interrupt) {
		who = bpf_get_current_pid_tgid();
		r->waker_pid = who >> 32;
		r->waker_tid = who;
		bpf_get_current_comm(r->waker_comm, sizeof(r->waker_comm));
		r->valid_mask |= OFF_CPU_HAS_WAKER_PID | OFF_CPU_HAS_WAKER_TID | OFF_CPU_HAS_WAKER_COMM;
	}
	r->valid_mask |= OFF_CPU_HAS_WAKE_NS;
	return 0;
}

#define IN_INTERRUPT (NMI_MASK | HARDIRQ_MASK | SOFTIRQ_SERVING)

SEC("tp_btf/sched_waking")
int on_waking(__u64 *ctx)
{
	return note_wake((void *)ctx[0], *(int *)bpf_this_cpu_ptr(&__preempt_count) & IN_INTERRUPT);
}

SEC("tp_btf/sched_waking") /* Linux 6.2 to 6.14 */
int on_waking_hot(__u64 *ctx)
{
	struct pcpu_hot *hot = bpf_this_cpu_ptr(&pcpu_hot);

	return note_wake((void *)ctx[0], hot->preempt_count & IN_INTERRUPT);
}

enum { IN_SOFTIRQ = 1, IN_IRQ = 2, IN_TIMER = 4 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} interrupts SEC(".maps");

static __always_inline int watch(__u32 clear, __u32 set)
{
	__u32 zero = 0, *here = bpf_map_lookup_elem(&interrupts, &zero);

	if (here)
		*here = (*here & ~clear) | set;
	return 0;
}

#define WATCH(tracepoint, clear, set)                 \
	SEC("tp_btf/" #tracepoint)                    \
	int on_##tracepoint(__u64 *ctx)               \
	{                                             \
		return watch(clear, set);             \
	}

WATCH(softirq_entry, 0, IN_SOFTIRQ)
WATCH(softirq_exit, IN_SOFTIRQ, 0)
WATCH(irq_handler_entry, 0, IN_IRQ)
WATCH(irq_handler_exit, IN_IRQ, 0)
WATCH(hrtimer_expire_entry, 0, IN_TIMER)
WATCH(hrtimer_expire_exit, IN_TIMER, 0)

SEC("tp_btf/sched_waking")
int on_waking_watched(__u64 *ctx)
{
	__u32 zero = 0, *here = bpf_map_lookup_elem(&interrupts, &zero);

	return note_wake((void *)ctx[0], !here || *here);
}

/* The waking can come before the switch is seen; then at least the time is known. */
SEC("tp_btf/sched_wakeup")
int on_wakeup(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	__u32 tid = task->pid;
	struct open_interval *open = bpf_map_lookup_elem(&open_off_cpu, &tid);

	if (!open || (open->row.valid_mask & OFF_CPU_HAS_WAKE_NS))
		return 0;
	open->row.wake_ns = bpf_ktime_get_boot_ns();
	open->row.valid_mask |= OFF_CPU_HAS_WAKE_NS;
	return 0;
}

#define ASLEEP 0xf /* include/linux/sched.h: TASK_INTERRUPTIBLE, TASK_UNINTERRUPTIBLE, __TASK_STOPPED, __TASK_TRACED */

/*
 * Threads that sleep already when their process is first followed: without this, one that hangs until the end would
 * leave no trace. User space reads this iterator over all threads whenever a process has become a traced one.
 *
 * A thread that runs leaves a record of its own when it next goes to sleep, which takes the place of ours. So ours is
 * only wrong for one that woke between the look at it and the update, and has not slept since: it is looked at again.
 */
SEC("iter/task")
int on_asleep(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_struct___thread *t = (void *)task;
	struct open_interval open = {};
	struct off_cpu_record *r = &open.row;
	__u32 tid;

	if (!task || !traced(task->tgid))
		return 0;
	tid = task->pid;
	open.switches = switches_of(task);
	r->prev_state = task->__state;
	if (!(r->prev_state & ASLEEP) || t->on_cpu)
		return 0; /* one that waits for a CPU has a row from its next switch on */
	describe(r, task, bpf_ktime_get_boot_ns());
	r->began_before = 1;
	r->valid_mask |= OFF_CPU_HAS_BEGAN_BEFORE;
	r->cpu_out = thread_cpu(task);
	if (bpf_map_update_elem(&open_off_cpu, &tid, &open, BPF_NOEXIST))
		return 0;
	if (!(task->__state & ASLEEP) || t->on_cpu || switches_of(task) != open.switches)
		bpf_map_delete_elem(&open_off_cpu, &tid);
	return 0;
}

SEC("tp_btf/sched_migrate_task")
int on_migrate(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct migrations_record r = {};

	if (!traced(task->tgid))
		return 0;
	r.start_ns = bpf_ktime_get_boot_ns();
	r.pid = task->tgid;
	r.tid = task->pid;
	r.from_cpu = thread_cpu(task);
	r.to_cpu = ctx[1];
	EMIT(migrations, TABLE_MIGRATIONS, &r);
	return 0;
}

static long flush_off_cpu(void *map, __u32 *tid, struct open_interval *open, struct flushed *f)
{
	struct off_cpu_record *r = &open->row;

	if (!room_in(&ring_off_cpu, sizeof(*r))) {
		f->left = 1;
		return 0;
	}
	EMIT(off_cpu, TABLE_OFF_CPU, r);
	bpf_map_delete_elem(map, tid);
	return 0;
}

/* As flush_calls in calls.bpf.c. */
SEC("raw_tp/flush_off_cpu")
int flush_off_cpu_open(void *ctx)
{
	struct flushed f = {};

	bpf_for_each_map_elem(&open_off_cpu, flush_off_cpu, &f, 0);
	return f.left;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
