/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Ids of cgroups: what stat(2) gives as the inode of the cgroup's directory. */
#pragma once

#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct kernfs_node {
	__u64 id;
};
struct cgroup {
	struct kernfs_node *kn;
};
struct css_set {
	struct cgroup *dfl_cgrp;
};
struct task_struct___cgroups {
	struct css_set *cgroups;
};
#pragma clang attribute pop

/* 0: none. No cgroup has that id. */
static __always_inline __u64 cgroup_id(struct cgroup *cgroup)
{
	return cgroup ? BPF_CORE_READ(cgroup, kn, id) : 0;
}

/* In the version 2 hierarchy. */
static __always_inline __u64 task_cgroup_id(struct task_struct *task)
{
	struct task_struct___cgroups *in = (void *)task;

	return cgroup_id(BPF_CORE_READ(in, cgroups, dfl_cgrp));
}
