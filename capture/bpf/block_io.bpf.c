// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* Requests to block devices, from issue to completion, of the whole host: a disk is shared, and so is the wait for it. */
#include "shared.h"
#include "cgroups.h"

RING(ring_block_io);

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct gendisk {
	int major;
	int first_minor;
};
struct block_device {
	struct gendisk *bd_disk;
};
struct request_queue {
	struct gendisk *disk; /* Linux 5.15 and later */
};
struct address_space;
struct page {
	unsigned long compound_head;
	struct address_space *mapping;
};
struct bio_vec {
	struct page *bv_page;
};
struct cgroup_subsys_state {
	struct cgroup *cgroup;
};
struct blkcg {
	struct cgroup_subsys_state css;
};
struct blkcg_gq {
	struct blkcg *blkcg;
};
struct bio {
	struct bio_vec *bi_io_vec;
	struct blkcg_gq *bi_blkg; /* only with CONFIG_BLK_CGROUP */
};
struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	struct block_device *part;
};
struct request___disk { /* until Linux 5.16 */
	struct gendisk *rq_disk;
};
#pragma clang attribute pop

#define REQ_OP_MASK 0xff /* include/linux/blk_types.h */
#define REQ_OP_WRITE 1

/* A request from its first sight to its completion; its address is its own until then. */
struct open_request {
	struct block_io_record row;
	__u64 inserted_ns; /* 0: it went past the queue */
	__u32 started;	   /* seen in block_io_start, by the thread that made it */
	__u32 issued;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct open_request);
} open_requests SEC(".maps");

/* Who dirtied a page of a file last, by the address of the file's page cache: for whom a writeback is made. */
struct dirtier {
	__u32 pid;
	char comm[TASK_COMM_LEN];
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct dirtier);
} dirtiers SEC(".maps");

static __always_inline int dirtied(__u64 mapping)
{
	struct dirtier d = {.pid = bpf_get_current_pid_tgid() >> 32}, *known;

	if (!mapping)
		return 0;
	known = bpf_map_lookup_elem(&dirtiers, &mapping);
	if (known && known->pid == d.pid)
		return 0;
	bpf_get_current_comm(d.comm, sizeof(d.comm));
	bpf_map_update_elem(&dirtiers, &mapping, &d, BPF_ANY);
	return 0;
}

SEC("tp_btf/writeback_dirty_folio") /* Linux 5.17 and later */
int on_writeback_dirty_folio(__u64 *ctx)
{
	return dirtied(ctx[1]);
}

SEC("tp_btf/writeback_dirty_page")
int on_writeback_dirty_page(__u64 *ctx)
{
	return dirtied(ctx[1]);
}

static __always_inline void open_by_current(struct open_request *o)
{
	__u64 who = bpf_get_current_pid_tgid();

	o->row.pid = who >> 32;
	o->row.tid = who;
	bpf_get_current_comm(o->row.comm, sizeof(o->row.comm));
}

static __always_inline void keep(__u64 request, struct open_request *o)
{
	if (bpf_map_update_elem(&open_requests, &request, o, BPF_ANY))
		count_full(FULL_REQUESTS);
}

/* Linux 6.5 and later. The thread that makes a request; later steps may be a kernel worker's. */
SEC("tp_btf/block_io_start")
int on_block_io_start(__u64 *ctx)
{
	struct open_request o = {.started = 1};

	open_by_current(&o);
	keep(ctx[0], &o);
	return 0;
}

/*
 * The address may be that of a request that was given up before its issue: what was known of that one is forgotten,
 * where block_io_start does not do so. A request that was issued and comes back into the queue is the same one.
 */
SEC("tp_btf/block_rq_insert")
int on_block_rq_insert(__u64 *ctx)
{
	__u64 request = ctx[0];
	struct open_request *known = bpf_map_lookup_elem(&open_requests, &request), o = {};

	if (known && known->issued)
		return 0;
	if (known && known->started) {
		known->inserted_ns = bpf_ktime_get_boot_ns();
		return 0;
	}
	o.inserted_ns = bpf_ktime_get_boot_ns();
	open_by_current(&o);
	keep(request, &o);
	return 0;
}

/* It has become a part of another one. */
SEC("tp_btf/block_rq_merge")
int on_block_rq_merge(__u64 *ctx)
{
	__u64 request = ctx[0];

	bpf_map_delete_elem(&open_requests, &request);
	return 0;
}

static __always_inline struct gendisk *disk_of(struct request *rq)
{
	struct request___disk *before = (void *)rq;
	struct gendisk *disk = 0;

	if (bpf_core_field_exists(before->rq_disk))
		disk = BPF_CORE_READ(before, rq_disk);
	else if (bpf_core_field_exists(rq->q->disk))
		disk = BPF_CORE_READ(rq, q, disk);
	return disk ? disk : BPF_CORE_READ(rq, part, bd_disk);
}

#define MAPPING_FLAGS 3UL /* include/linux/page-flags.h: the page belongs to no file */

static __always_inline void find_beneficiary(struct block_io_record *r, struct bio *bio)
{
	struct page *page = BPF_CORE_READ(bio, bi_io_vec, bv_page);
	unsigned long head;
	struct dirtier *d;
	__u64 mapping;

	if (!page)
		return;
	head = BPF_CORE_READ(page, compound_head);
	if (head & 1)
		page = (void *)(head - 1);
	mapping = (__u64)BPF_CORE_READ(page, mapping);
	if (!mapping || mapping & MAPPING_FLAGS)
		return;
	d = bpf_map_lookup_elem(&dirtiers, &mapping);
	if (!d)
		return;
	r->for_pid = d->pid;
	__builtin_memcpy(r->for_comm, d->comm, sizeof(r->for_comm));
	r->valid_mask |= BLOCK_IO_HAS_FOR_PID | BLOCK_IO_HAS_FOR_COMM;
}

static __always_inline void describe(struct block_io_record *r, struct request *rq)
{
	struct gendisk *disk = disk_of(rq);
	struct bio *bio = BPF_CORE_READ(rq, bio);

	r->operation = BPF_CORE_READ(rq, cmd_flags) & REQ_OP_MASK;
	r->sector = BPF_CORE_READ(rq, __sector);
	r->size_bytes = BPF_CORE_READ(rq, __data_len);
	if (disk) {
		r->major = BPF_CORE_READ(disk, major);
		r->minor = BPF_CORE_READ(disk, first_minor);
	}
	if (!bio)
		return;
	if (bpf_core_field_exists(bio->bi_blkg)) {
		r->cgroup_id = cgroup_id(BPF_CORE_READ(bio, bi_blkg, blkcg, css.cgroup));
		if (r->cgroup_id)
			r->valid_mask |= BLOCK_IO_HAS_CGROUP_ID;
	}
	if (r->operation == REQ_OP_WRITE && r->size_bytes)
		find_beneficiary(r, bio);
}

SEC("tp_btf/block_rq_issue")
int on_block_rq_issue(__u64 *ctx)
{
	__u64 request = ctx[0], now = bpf_ktime_get_boot_ns();
	struct open_request *o = bpf_map_lookup_elem(&open_requests, &request), fresh = {};

	if (!o) {
		open_by_current(&fresh);
		keep(request, &fresh);
		o = bpf_map_lookup_elem(&open_requests, &request);
		if (!o)
			return 0;
	}
	if (o->issued)
		return 0; /* tried again: the wait began with the first time */
	o->issued = 1;
	o->row.start_ns = now;
	if (o->inserted_ns) {
		o->row.queue_ns = now - o->inserted_ns;
		o->row.valid_mask |= BLOCK_IO_HAS_QUEUE_NS;
	}
	describe(&o->row, (void *)request);
	return 0;
}

/*
 * BLK_STS_* of include/linux/blk_types.h as errors, as blk_status_to_errno() has them. From 14 on the numbers are not
 * the same in all kernels (zones, duration limits); those are EIO here.
 */
static __always_inline __s32 error_of(__s32 status)
{
	if (status <= 0)
		return status; /* until Linux 5.15 it is an error already */
	switch (status) {
	case 1: return -95; /* EOPNOTSUPP */
	case 2: return -110; /* ETIMEDOUT */
	case 3: return -28; /* ENOSPC */
	case 4: return -67; /* ENOLINK */
	case 5: return -121; /* EREMOTEIO */
	case 6: return -52; /* EBADE */
	case 7: return -61; /* ENODATA */
	case 8: return -84; /* EILSEQ */
	case 9: return -12; /* ENOMEM */
	case 11: return -78; /* EREMCHG */
	case 12: return -11; /* EAGAIN */
	case 13: return -16; /* EBUSY */
	default: return -5; /* EIO */
	}
}

/* A request may complete in parts. Its row is told with the last one, and with the first error of them. */
SEC("tp_btf/block_rq_complete")
int on_block_rq_complete(__u64 *ctx)
{
	__u64 request = ctx[0];
	struct request *rq = (void *)request;
	__s32 status = ctx[1];
	__u32 done_bytes = ctx[2];
	struct open_request *o = bpf_map_lookup_elem(&open_requests, &request);

	if (!o)
		return 0;
	if (!o->issued) { /* refused before the device saw it */
		bpf_map_delete_elem(&open_requests, &request);
		return 0;
	}
	if (status && !o->row.error)
		o->row.error = error_of(status);
	if (BPF_CORE_READ(rq, __data_len) > done_bytes)
		return 0;
	o->row.duration_ns = bpf_ktime_get_boot_ns() - o->row.start_ns;
	o->row.valid_mask |= BLOCK_IO_HAS_DURATION_NS | BLOCK_IO_HAS_ERROR;
	EMIT(block_io, TABLE_BLOCK_IO, &o->row);
	bpf_map_delete_elem(&open_requests, &request);
	return 0;
}

static long flush_request(void *map, __u64 *request, struct open_request *o, struct flushed *f)
{
	if (o->issued) {
		if (!room_in(&ring_block_io, sizeof(o->row))) {
			f->left = 1;
			return 0;
		}
		EMIT(block_io, TABLE_BLOCK_IO, &o->row);
	}
	bpf_map_delete_elem(map, request);
	return 0;
}

/* As flush_calls in calls.bpf.c. */
SEC("raw_tp/flush_block_io")
int flush_block_io(void *ctx)
{
	struct flushed f = {};

	bpf_for_each_map_elem(&open_requests, flush_request, &f, 0);
	return f.left;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
