/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The few kernel types the programs read. Kernel structures are relocated by libbpf against the running kernel's BTF
 * (CO-RE), so only the fields named here matter, not their offsets. pt_regs is the x86-64 user ABI and is not moved.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_CGROUP_ARRAY = 8,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum { BPF_F_MMAPABLE = 1024 };

enum {
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_RING_SIZE = 1,
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define TASK_COMM_LEN 16
#define TASK_DEAD 0x80 /* include/linux/sched.h: the last switch of an exiting thread */

/* include/linux/preempt.h: where the CPU is, as __preempt_count counts it */
#define SOFTIRQ_SERVING 0x00000100
#define HARDIRQ_MASK 0x000f0000
#define NMI_MASK 0x00f00000

/* arch/x86/include/asm/ptrace.h */
struct pt_regs {
	__u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct counter {
	int counter;
};
struct signal_struct {
	struct counter live;
	int group_exit_code;
	unsigned int flags;
};
struct task_struct {
	int pid;
	int tgid;
	char comm[TASK_COMM_LEN];
	unsigned int __state;
	__u64 start_boottime;
	__u64 self_exec_id;
	int exit_code;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct signal_struct *signal;
};
#pragma clang attribute pop

/* Linux before 6.2 and from 6.15 on; pcpu_hot between them. Kernels without KALLSYMS_ALL have neither. */
extern const int __preempt_count __ksym __weak;
struct pcpu_hot {
	int preempt_count;
} __attribute__((preserve_access_index));
extern const struct pcpu_hot pcpu_hot __ksym __weak;
