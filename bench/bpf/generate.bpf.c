/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * Writes cuda_calls records as fast as it is told to, through the ring, the counters and the code path of the capture's
 * own programs (EMIT). Driven by BPF_PROG_TEST_RUN, which repeats it inside the kernel. Compiled by bench.compile.
 */
#include "shared.h"

RING(ring_cuda_calls);

#define RECORDS_PER_RUN 64 /* bench/producer.py has the same */

SEC("tc")
int generate(void *ctx)
{
	struct cuda_calls_record r = {};
	__u64 who = bpf_get_current_pid_tgid();

	r.pid = who >> 32;
	r.tid = who;
	r.stream = 0x55550000;
	r.function = 0x7f0000001000;
	r.grid_x = 1024;
	r.block_x = 256;
	r.grid_y = r.grid_z = r.block_y = r.block_z = 1;
	r.valid_mask = CUDA_CALLS_HAS_DURATION_NS | CUDA_CALLS_HAS_RETURN_CODE | CUDA_CALLS_HAS_FUNCTION |
		       CUDA_CALLS_HAS_STREAM | CUDA_CALLS_HAS_GRID_X | CUDA_CALLS_HAS_GRID_Y | CUDA_CALLS_HAS_GRID_Z |
		       CUDA_CALLS_HAS_BLOCK_X | CUDA_CALLS_HAS_BLOCK_Y | CUDA_CALLS_HAS_BLOCK_Z;
	for (int i = 0; i < RECORDS_PER_RUN; i++) {
		r.start_ns = bpf_ktime_get_boot_ns();
		r.duration_ns = 4000 + i;
		r.op = 1 + i % 8;
		EMIT(cuda_calls, TABLE_CUDA_CALLS, &r);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
