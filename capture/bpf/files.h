/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* From a descriptor of the current process to its file, and from there to a device or a socket. */
#pragma once

#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct inode___file {
	__u16 i_mode;
	unsigned long i_ino;
	__u32 i_rdev;
};
struct file___file {
	void *private_data;
	struct inode___file *f_inode;
};
struct fdtable___file {
	unsigned int max_fds;
	struct file___file **fd;
};
struct files_struct___file {
	struct fdtable___file *fdt;
};
struct task_struct___file {
	struct files_struct___file *files;
};
struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};
struct sock {
	struct sock_common __sk_common;
};
struct socket {
	struct sock *sk;
};
#pragma clang attribute pop

/* include/uapi/linux/stat.h */
#define S_IFMT 0xf000
#define S_IFCHR 0x2000
#define S_IFSOCK 0xc000

/* include/linux/kdev_t.h: how the kernel itself keeps device numbers */
#define MINORBITS 20

/* NULL where the descriptor is not open. `task` is what bpf_get_current_task_btf() returned. */
static __always_inline struct file___file *file_of(struct task_struct *task, __u32 fd)
{
	struct fdtable___file *table = ((struct task_struct___file *)task)->files->fdt;
	struct file___file *file = NULL;

	if (fd >= table->max_fds)
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), table->fd + fd);
	return file;
}
