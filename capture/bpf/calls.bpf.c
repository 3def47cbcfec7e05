/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Processes, and the functions that they call. Built by scripts/build-bpf. */
#include "shared.h"
#include "targets.h"
#include "calls.h"

/*
 * What is still open when the capture ends goes through the same rings: run once, after all probes are detached, by
 * BPF_PROG_TEST_RUN. A row leaves its map only when there is room for it, so that user space can run this again.
 */
static long flush_call(void *map, struct call_key *key, struct open_call *call, struct flushed *f)
{
	__u32 op_id = call->op;
	struct op *op = bpf_map_lookup_elem(&ops, &op_id);
	bool room;

	if (!op)
		return 0;
	if (op->table == TABLE_CUDA_CALLS)
		room = room_in(&ring_cuda_calls, sizeof(struct cuda_calls_record));
	else if (op->table == TABLE_NCCL_CALLS)
		room = room_in(&ring_nccl_calls, sizeof(struct nccl_calls_record));
	else
		room = room_in(&ring_nccl_comms, sizeof(struct nccl_comms_record));
	if (!room) {
		f->left = 1;
		return 0;
	}
	forget_pointees(op, call);
	emit_call(op->table, call);
	bpf_map_delete_elem(map, key);
	return 0;
}

SEC("raw_tp/flush_calls")
int flush_calls(void *ctx)
{
	struct flushed f = {};

	bpf_for_each_map_elem(&open_calls, flush_call, &f, 0);
	return f.left; /* 1: run me again, once the rings have been drained */
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
