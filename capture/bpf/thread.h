/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* What the kernel knows of a thread besides its name: priority, cgroup, CPU, the system call that it is in. */
#pragma once

#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct kernfs_node___thread {
	__u64 id;
};
struct cgroup___thread {
	struct kernfs_node___thread *kn;
};
struct css_set___thread {
	struct cgroup___thread *dfl_cgrp;
};
struct thread_info___thread {
	__u32 status;
	__u32 cpu; /* Linux 5.16 and later */
};
struct task_struct___thread {
	struct thread_info___thread thread_info;
	void *stack;
	unsigned int flags;
	int on_cpu;
	int prio;
	unsigned long nvcsw;
	unsigned long nivcsw;
	struct css_set___thread *cgroups;
};
struct bpf_iter__task {
	struct task_struct *task;
};
struct task_struct___cpu {
	unsigned int cpu; /* before Linux 5.16 */
};
#pragma clang attribute pop

/* Helpers that only some kernels have, by their numbers in include/uapi/linux/bpf.h. */
enum bpf_func_id___thread {
	BPF_FUNC_task_pt_regs___thread = 175, /* Linux 5.15 and later */
};

/* include/linux/sched.h: threads that never run a program of their own, and have no registers of one */
#define PF_IO_WORKER 0x00000010
#define PF_USER_WORKER 0x00004000 /* Linux 6.4 and later */
#define PF_KTHREAD 0x00200000
#define NO_PROGRAM (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD)

#define TS_COMPAT 0x0002     /* arch/x86/include/asm/thread_info.h: in a system call of the 32-bit table */
#define STACK_BYTES (4 * 4096) /* arch/x86/include/asm/page_64_types.h: THREAD_SIZE */
#define SYSCALLS_END 1024    /* no number of the 64-bit table is as high */

/*
 * These take a pointer that the verifier knows to lead to a task_struct: an argument of a tp_btf program, or what
 * bpf_get_current_task_btf() returned.
 */
static __always_inline __s32 thread_priority(struct task_struct *task)
{
	return ((struct task_struct___thread *)task)->prio;
}

/* Its cgroup of version 2. Where version 2 is not in use every thread is in the root, whose id is 1. */
static __always_inline __u64 thread_cgroup(struct task_struct *task)
{
	return ((struct task_struct___thread *)task)->cgroups->dfl_cgrp->kn->id;
}

static __always_inline __u32 thread_cpu(struct task_struct *task)
{
	struct task_struct___thread *t = (void *)task;

	if (bpf_core_field_exists(t->thread_info.cpu))
		return t->thread_info.cpu;
	return ((struct task_struct___cpu *)task)->cpu;
}

/*
 * Number and first argument of the system call that the thread entered the kernel with; false when it entered
 * otherwise (a page fault, an interrupt), which leaves -1 in orig_ax, or with a number of the 32-bit table.
 */
static __always_inline bool thread_syscall(struct task_struct *task, __s32 *number, __u64 *first)
{
	struct task_struct___thread *t = (void *)task;
	struct pt_regs *regs;
	__u64 nr = 0;

	if ((t->flags & NO_PROGRAM) || (t->thread_info.status & TS_COMPAT))
		return false;
	if (bpf_core_enum_value_exists(enum bpf_func_id___thread, BPF_FUNC_task_pt_regs___thread))
		regs = (void *)bpf_task_pt_regs(task);
	else
		regs = (void *)(t->stack + STACK_BYTES - sizeof(*regs));
	if (bpf_probe_read_kernel(&nr, sizeof(nr), &regs->orig_ax) || nr >= SYSCALLS_END)
		return false;
	if (bpf_probe_read_kernel(first, sizeof(*first), &regs->di))
		return false;
	*number = nr;
	return true;
}
