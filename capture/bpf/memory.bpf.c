// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* Pages allocated for traced processes, threads that had to reclaim memory, and processes killed for want of it. */
#include "shared.h"
#include "cgroups.h"

RING(ring_page_allocations);
RING(ring_reclaims);
RING(ring_oom_kills);

/*
 * Allocations are too many for a row each. They are added up in one of two maps for a window of time; then user space
 * has the programs turn to the other one (turn_pages), waits until every program that was running has ended, and has
 * the first one emptied into the ring (send_pages). So no allocation is counted twice, and none is forgotten.
 */
struct page_key {
	__u32 pid;
	__u32 order;
};
struct page_sum {
	__u64 first_ns;
	__u64 last_ns;
	__u64 count;
};
struct page_sums {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct page_key);
	__type(value, struct page_sum);
};
struct page_sums pages_even SEC(".maps"), pages_odd SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} page_window SEC(".maps");

static __always_inline void add_page(void *sums, struct page_key *key)
{
	struct page_sum *sum = bpf_map_lookup_elem(sums, key), fresh = {};
	__u64 now = bpf_ktime_get_boot_ns();

	if (!sum) {
		fresh.first_ns = now;
		bpf_map_update_elem(sums, key, &fresh, BPF_NOEXIST);
		sum = bpf_map_lookup_elem(sums, key);
	}
	if (!sum) {
		count_full(FULL_PAGES);
		return;
	}
	__sync_fetch_and_add(&sum->count, 1);
	sum->last_ns = now;
}

static __always_inline int page_allocated(__u32 order)
{
	struct page_key key = {.pid = bpf_get_current_pid_tgid() >> 32, .order = order};
	__u32 zero = 0, *window;

	if (!key.pid || !traced(key.pid))
		return 0;
	window = bpf_map_lookup_elem(&page_window, &zero);
	if (!window)
		return 0;
	if (*window & 1)
		add_page(&pages_odd, &key);
	else
		add_page(&pages_even, &key);
	return 0;
}

/*
 * include/linux/gfp_types.h, the same since 4.4: __GFP_IO, __GFP_FS, __GFP_DIRECT_RECLAIM. An allocation with none of
 * them may do nothing to get its page: it is an interrupt's, for which the current thread is not to blame, or that of a
 * thread that holds a spinlock. Whether an interrupt is served can not be asked on every kernel.
 */
#define GFP_THREAD (0x40 | 0x80 | 0x400)

/* A page that could not be had is told of too, as NULL. */
SEC("tp_btf/mm_page_alloc")
int on_mm_page_alloc(__u64 *ctx)
{
	__u32 order = ctx[1], gfp = ctx[2];

	return ctx[0] && (gfp & GFP_THREAD) ? page_allocated(order) : 0;
}

SEC("raw_tp/turn_pages")
int turn_pages(void *ctx)
{
	__u32 zero = 0, *window = bpf_map_lookup_elem(&page_window, &zero);

	if (window)
		__sync_fetch_and_add(window, 1);
	return 0;
}

static long send_sum(void *sums, struct page_key *key, struct page_sum *sum, struct flushed *f)
{
	struct page_allocations_record r = {};

	if (!room_in(&ring_page_allocations, sizeof(r))) {
		f->left = 1; /* it stays, and grows on when its map's turn comes again */
		return 0;
	}
	r.start_ns = sum->first_ns;
	r.duration_ns = sum->last_ns > sum->first_ns ? sum->last_ns - sum->first_ns : 0;
	r.pid = key->pid;
	r.order = key->order;
	r.count = sum->count;
	EMIT(page_allocations, TABLE_PAGE_ALLOCATIONS, &r);
	bpf_map_delete_elem(sums, key);
	return 0;
}

SEC("raw_tp/send_pages")
int send_pages(void *ctx)
{
	__u32 zero = 0, *window = bpf_map_lookup_elem(&page_window, &zero);
	struct flushed f = {};

	if (!window)
		return 0;
	/* Two calls, which must stay two: until Linux 6.8 the verifier wants to know the map of each. */
	if (*window & 1) {
		bpf_for_each_map_elem(&pages_even, send_sum, &f, 0);
		asm volatile("r1 = 1" ::: "r1");
	} else {
		bpf_for_each_map_elem(&pages_odd, send_sum, &f, 0);
		asm volatile("r1 = 0" ::: "r1");
	}
	return f.left;
}

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct reclaims_record);
} open_reclaims SEC(".maps");

static __always_inline int reclaim_begins(__s32 order, bool cgroup_limit)
{
	__u64 who = bpf_get_current_pid_tgid();
	__u32 tid = who;
	struct reclaims_record r = {};

	if (!traced(who >> 32))
		return 0;
	r.start_ns = bpf_ktime_get_boot_ns();
	r.pid = who >> 32;
	r.tid = tid;
	r.order = order;
	r.cgroup_limit = cgroup_limit;
	bpf_get_current_comm(r.comm, sizeof(r.comm));
	if (bpf_map_update_elem(&open_reclaims, &tid, &r, BPF_ANY))
		count_full(FULL_RECLAIMS);
	return 0;
}

static __always_inline int reclaim_ends(__u64 pages)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct reclaims_record *r = bpf_map_lookup_elem(&open_reclaims, &tid);

	if (!r)
		return 0;
	r->duration_ns = bpf_ktime_get_boot_ns() - r->start_ns;
	r->reclaimed_pages = pages;
	r->valid_mask = RECLAIMS_HAS_DURATION_NS | RECLAIMS_HAS_RECLAIMED_PAGES;
	EMIT(reclaims, TABLE_RECLAIMS, r);
	bpf_map_delete_elem(&open_reclaims, &tid);
	return 0;
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int on_mm_vmscan_direct_reclaim_begin(__u64 *ctx)
{
	return reclaim_begins(ctx[0], false);
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int on_mm_vmscan_direct_reclaim_end(__u64 *ctx)
{
	return reclaim_ends(ctx[0]);
}

/* Only in kernels with memory cgroups. */
SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int on_mm_vmscan_memcg_reclaim_begin(__u64 *ctx)
{
	return reclaim_begins(ctx[0], true);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int on_mm_vmscan_memcg_reclaim_end(__u64 *ctx)
{
	return reclaim_ends(ctx[0]);
}

#define PAGE_SHIFT 12 /* arch/x86/include/asm/page_types.h */

/* include/linux/mm_types_task.h */
enum { MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES, MM_COUNTERS };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct percpu_counter {
	__s64 count;
};
struct mm_struct___percpu { /* Linux 6.2 and later */
	struct percpu_counter rss_stat[MM_COUNTERS];
};
struct long_counter {
	__s64 counter;
};
struct mm_rss_stat {
	struct long_counter count[MM_COUNTERS];
};
struct mm_struct___atomic {
	struct mm_rss_stat rss_stat;
};
struct user_id {
	__u32 val;
};
struct cred {
	struct user_id uid;
};
struct task_struct___memory {
	void *mm;
	const struct cred *cred;
};
#pragma clang attribute pop

static __always_inline __u64 resident_bytes(void *mm)
{
	struct mm_struct___atomic *before = mm;
	struct mm_struct___percpu *now = mm;
	__s64 pages;

	if (bpf_core_type_exists(struct mm_rss_stat))
		pages = BPF_CORE_READ(before, rss_stat.count[MM_FILEPAGES].counter) +
			BPF_CORE_READ(before, rss_stat.count[MM_ANONPAGES].counter) +
			BPF_CORE_READ(before, rss_stat.count[MM_SHMEMPAGES].counter);
	else
		pages = BPF_CORE_READ(now, rss_stat[MM_FILEPAGES].count) +
			BPF_CORE_READ(now, rss_stat[MM_ANONPAGES].count) +
			BPF_CORE_READ(now, rss_stat[MM_SHMEMPAGES].count);
	return pages > 0 ? (__u64)pages << PAGE_SHIFT : 0;
}

static __always_inline void describe_victim(struct oom_kills_record *r, struct task_struct *victim)
{
	struct task_struct___memory *task = (void *)victim;
	void *mm = BPF_CORE_READ(task, mm);

	r->pid = BPF_CORE_READ(victim, tgid);
	BPF_CORE_READ_STR_INTO(&r->comm, victim, group_leader, comm);
	r->uid = BPF_CORE_READ(task, cred, uid.val);
	r->cgroup_id = task_cgroup_id(victim);
	r->valid_mask |= OOM_KILLS_HAS_UID | OOM_KILLS_HAS_CGROUP_ID;
	if (mm) {
		r->resident_bytes = resident_bytes(mm);
		r->valid_mask |= OOM_KILLS_HAS_RESIDENT_BYTES;
	}
}

/* The thread that asked for memory runs the killer, or a worker of the kernel where a person asked for it (SysRq). */
static __always_inline void send_victim(struct oom_kills_record *r)
{
	r->start_ns = bpf_ktime_get_boot_ns();
	r->killer_pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(r->killer_comm, sizeof(r->killer_comm));
	r->valid_mask |= OOM_KILLS_HAS_KILLER_PID | OOM_KILLS_HAS_KILLER_COMM;
	EMIT(oom_kills, TABLE_OOM_KILLS, r);
}

SEC("tp_btf/mark_victim") /* Linux 6.9 and later: the task is an argument */
int on_victim_task(__u64 *ctx)
{
	struct task_struct *victim = (void *)ctx[0];
	struct oom_kills_record r = {.pid = victim->tgid};

	describe_victim(&r, victim);
	send_victim(&r);
	return 0;
}

/*
 * Before that only a thread's number is. But the killer sends the victim SIGKILL just before, in the same thread, so the
 * last process that each thread sent one in the kernel's name is kept.
 */
#define SIGKILL 9
#define SEND_SIG_PRIV 1 /* include/linux/sched/signal.h */

struct marked {
	__u32 tid;
	__u32 pad;
	struct oom_kills_record row;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* tid of the sender */
	__type(value, struct marked);
} kills SEC(".maps");

SEC("tp_btf/signal_generate")
int on_victim_signal(__u64 *ctx)
{
	struct task_struct *victim = (void *)ctx[2];
	__u32 sender = bpf_get_current_pid_tgid();
	struct marked m = {};

	if ((__u32)ctx[0] != SIGKILL || ctx[1] != SEND_SIG_PRIV)
		return 0;
	m.tid = victim->pid;
	describe_victim(&m.row, victim);
	bpf_map_update_elem(&kills, &sender, &m, BPF_ANY);
	return 0;
}

SEC("tp_btf/mark_victim")
int on_victim_tid(__u64 *ctx)
{
	__u32 tid = ctx[0], sender = bpf_get_current_pid_tgid();
	struct marked *m = bpf_map_lookup_elem(&kills, &sender);
	struct oom_kills_record r = {.pid = tid};

	if (m && m->tid == tid)
		r = m->row;
	else if (tid == sender)
		describe_victim(&r, (void *)bpf_get_current_task());
	send_victim(&r);
	bpf_map_delete_elem(&kills, &sender);
	return 0;
}

static long flush_reclaim(void *map, __u32 *tid, struct reclaims_record *r, struct flushed *f)
{
	if (!room_in(&ring_reclaims, sizeof(*r))) {
		f->left = 1;
		return 0;
	}
	EMIT(reclaims, TABLE_RECLAIMS, r);
	bpf_map_delete_elem(map, tid);
	return 0;
}

/* As flush_calls in calls.bpf.c. */
SEC("raw_tp/flush_memory")
int flush_memory(void *ctx)
{
	struct flushed f = {};

	bpf_for_each_map_elem(&pages_even, send_sum, &f, 0);
	bpf_for_each_map_elem(&pages_odd, send_sum, &f, 0);
	bpf_for_each_map_elem(&open_reclaims, flush_reclaim, &f, 0);
	return f.left;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
