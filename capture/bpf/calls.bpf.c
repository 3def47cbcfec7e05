/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* Processes, and the functions that they call. Built by scripts/build-bpf. */
#include "shared.h"
#include "targets.h"
#include "calls.h"

/*
 * What is still open when the capture ends goes through the same rings: run once, after all probes are detached, by
 * BPF_PROG_TEST_RUN. A row leaves its map only when there is room for it, so that user space can run this again.
 */
static long flush_thread(void *map, __u32 *tid, struct thread *t, struct flushed *f)
{
	for (int i = 0; i < DEPTH; i++) {
		__u32 op_id = t->call[i].op;
		struct op *op = bpf_map_lookup_elem(&ops, &op_id);

		if (!t->call[i].start_ns || !op)
			continue;
		if (!room_for_call(op->table)) {
			f->left = 1;
			return 1;
		}
		end_unseen(&t->call[i]);
	}
	bpf_map_delete_elem(map, tid);
	return 0;
}

SEC("raw_tp/flush_calls")
int flush_calls(void *ctx)
{
	struct totals_state *state = totals();
	struct flushed f = {};

	bpf_for_each_map_elem(&threads, flush_thread, &f, 0);
	if (state)
		f.left |= send_totals(state, false) | send_totals(state, true);
	return f.left; /* 1: run me again, once the rings have been drained */
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
