/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * System calls: ioctl(2) on the watched devices, one row each, and sends and receives of traced processes, added up per
 * socket. Every system call of the host comes through here, so the first thing looked at is its number.
 */
#include "shared.h"
#include "thread.h"
#include "files.h"

RING(ring_ioctls);
RING(ring_socket_io);

/* arch/x86/entry/syscalls/syscall_64.tbl */
enum number {
	NR_READ = 0,
	NR_WRITE = 1,
	NR_IOCTL = 16,
	NR_READV = 19,
	NR_WRITEV = 20,
	NR_SENDFILE = 40,
	NR_SENDTO = 44,
	NR_RECVFROM = 45,
	NR_SENDMSG = 46,
	NR_RECVMSG = 47,
	NR_RECVMMSG = 299,
	NR_SENDMMSG = 307,
};
#define ONE(number) (1ULL << (number))
#define RECEIVES (ONE(NR_READ) | ONE(NR_READV) | ONE(NR_RECVFROM) | ONE(NR_RECVMSG))
#define SENDS (ONE(NR_WRITE) | ONE(NR_WRITEV) | ONE(NR_SENDFILE) | ONE(NR_SENDTO) | ONE(NR_SENDMSG))
#define NUMBERS (ONE(NR_IOCTL) | RECEIVES | SENDS)

static __always_inline bool is_ours(__u64 number)
{
	if (number < 64)
		return NUMBERS & (1ULL << number);
	return number == NR_RECVMMSG || number == NR_SENDMMSG;
}

static __always_inline bool receives(__u64 number)
{
	return number < 64 ? RECEIVES & (1ULL << number) : number == NR_RECVMMSG;
}

#define EAGAIN 11

/* Written by user space. */
struct watched {
	__u32 ioctls;
	__u32 sockets;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watched);
} watched SEC(".maps");

/* Character devices whose ioctls are recorded: by major number, and the type of the request or ANY_TYPE. */
#define ANY_TYPE 0xffffffff
struct device_key {
	__u32 major;
	__u32 type;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct device_key);
	__type(value, __u32);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32); /* tid */
	__type(value, struct ioctls_record);
} open_ioctls SEC(".maps");

/* A send or receive that has not returned. */
struct transfer {
	__u64 start_ns;
	__u64 inode;
	__u32 fd;
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct transfer);
} open_transfers SEC(".maps");

struct sum_key {
	__u64 inode;
	__u32 tgid;
	__u32 receive;
};

/*
 * Two maps of sums take turns: programs add to one while the other is sent and emptied. Between the turn and the
 * emptying user space waits until every program that had looked up the turn before has ended, so nothing is added to a
 * sum that has been sent.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct sum_key);
	__type(value, struct socket_io_record);
} sums_even SEC(".maps"), sums_odd SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} turn SEC(".maps");

static __always_inline void *sums_now(void)
{
	__u32 zero = 0, *odd = bpf_map_lookup_elem(&turn, &zero);

	return odd && *odd ? (void *)&sums_odd : (void *)&sums_even;
}

static __always_inline void ioctl_begins(struct task_struct *task, struct pt_regs *regs)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tgid = id >> 32, tid = id, rdev = 0;
	struct target *t = bpf_map_lookup_elem(&targets, &tgid);
	struct config *c = config();
	struct ioctls_record r = {};
	struct inode___file *inode;
	struct file___file *file;
	struct device_key key;
	__u16 mode = 0;

	/* also of processes that map no probed library: a CUDA runtime that is linked statically cannot be probed */
	if (!c || (t ? t->flags & TARGET_EXCLUDED : c->selected_only))
		return;
	if (t && c->selected_only && !(t->flags & TARGET_SELECTED))
		return;
	file = file_of(task, regs->di);
	if (!file)
		return;
	inode = BPF_CORE_READ(file, f_inode);
	BPF_CORE_READ_INTO(&mode, inode, i_mode);
	if ((mode & S_IFMT) != S_IFCHR)
		return;
	BPF_CORE_READ_INTO(&rdev, inode, i_rdev);
	r.request = regs->si;
	r.number = r.request & 0xff;
	r.type = r.request >> 8 & 0xff;
	r.size_bytes = r.request >> 16 & 0x3fff;
	r.major = rdev >> MINORBITS;
	r.minor = rdev & ((1 << MINORBITS) - 1);
	key.major = r.major;
	key.type = ANY_TYPE;
	if (!bpf_map_lookup_elem(&devices, &key)) {
		key.type = r.type;
		if (!bpf_map_lookup_elem(&devices, &key))
			return;
	}
	r.pid = tgid;
	r.tid = tid;
	r.start_ns = bpf_ktime_get_boot_ns();
	if (bpf_map_update_elem(&open_ioctls, &tid, &r, BPF_ANY))
		count_full(FULL_IOCTLS);
}

static __always_inline void ioctl_ends(long returned)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct ioctls_record *r = bpf_map_lookup_elem(&open_ioctls, &tid);

	if (!r)
		return;
	r->duration_ns = bpf_ktime_get_boot_ns() - r->start_ns;
	r->return_code = returned;
	r->valid_mask = IOCTLS_HAS_DURATION_NS | IOCTLS_HAS_RETURN_CODE;
	EMIT(ioctls, TABLE_IOCTLS, r);
	bpf_map_delete_elem(&open_ioctls, &tid);
}

/* The inode number of the socket behind a descriptor, 0 if it is none. */
static __always_inline __u64 socket_inode(struct task_struct *task, __u32 fd, struct file___file **file)
{
	struct inode___file *inode;
	__u16 mode = 0;

	*file = file_of(task, fd);
	if (!*file)
		return 0;
	inode = BPF_CORE_READ(*file, f_inode);
	BPF_CORE_READ_INTO(&mode, inode, i_mode);
	if ((mode & S_IFMT) != S_IFSOCK)
		return 0;
	return BPF_CORE_READ(inode, i_ino);
}

static __always_inline void transfer_begins(struct task_struct *task, struct pt_regs *regs)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct transfer x = {.fd = regs->di};
	struct file___file *file;
	__u32 tid = id;

	if (!traced(id >> 32))
		return;
	x.inode = socket_inode(task, x.fd, &file);
	if (!x.inode)
		return;
	x.start_ns = bpf_ktime_get_boot_ns();
	if (bpf_map_update_elem(&open_transfers, &tid, &x, BPF_ANY))
		count_full(FULL_SOCKETS);
}

#define AF_INET 2
#define AF_INET6 10

/* An IPv4 address as ::ffff:a.b.c.d. */
static __always_inline void map_address(char *out, __be32 address)
{
	out[10] = out[11] = 0xff;
	__builtin_memcpy(out + 12, &address, sizeof(address));
}

/* Family, addresses and ports of the socket, unless the descriptor has come to mean another file meanwhile. */
static __noinline void describe(struct socket_io_record *r, __u32 fd)
{
	struct file___file *file;
	struct socket *socket;
	struct sock *sk;
	__be16 far = 0;

	if (!r || socket_inode(bpf_get_current_task_btf(), fd, &file) != r->inode)
		return;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	BPF_CORE_READ_INTO(&r->family, sk, __sk_common.skc_family);
	if (r->family != AF_INET && r->family != AF_INET6)
		return;
	BPF_CORE_READ_INTO(&r->local_port, sk, __sk_common.skc_num);
	BPF_CORE_READ_INTO(&far, sk, __sk_common.skc_dport);
	r->remote_port = __builtin_bswap16(far);
	if (r->family == AF_INET) {
		map_address(r->local_address, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		map_address(r->remote_address, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else {
		BPF_CORE_READ_INTO(&r->local_address, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&r->remote_address, sk, __sk_common.skc_v6_daddr);
	}
	if (r->local_port)
		r->valid_mask |= SOCKET_IO_HAS_LOCAL_ADDRESS | SOCKET_IO_HAS_LOCAL_PORT;
	if (r->remote_port) /* 0: not connected */
		r->valid_mask |= SOCKET_IO_HAS_REMOTE_ADDRESS | SOCKET_IO_HAS_REMOTE_PORT;
}

static __always_inline struct socket_io_record *sum_of(void *sums, struct sum_key *key, struct transfer *x)
{
	struct socket_io_record *r = bpf_map_lookup_elem(sums, key), fresh = {};

	if (r)
		return r;
	fresh.start_ns = x->start_ns;
	fresh.pid = key->tgid;
	fresh.inode = key->inode;
	fresh.receive = key->receive;
	fresh.valid_mask = SOCKET_IO_HAS_NOT_READY;
	describe(&fresh, x->fd);
	bpf_map_update_elem(sums, key, &fresh, BPF_NOEXIST); /* or another thread was faster */
	return bpf_map_lookup_elem(sums, key);
}

/* Of many messages in one call, the kernel says in user memory how long each was: struct mmsghdr, msg_len. */
#define MMSGHDR_BYTES 64
#define MSG_LEN_AT 56
#define UIO_MAXIOV 1024
static __noinline __u64 messages_bytes(__u64 vector, __u64 count)
{
	__u64 sum = 0;
	__u32 length;

	for (__u32 i = 0; i < UIO_MAXIOV; i++) {
		if (i >= count)
			break;
		if (!bpf_probe_read_user(&length, sizeof(length), (void *)(vector + i * MMSGHDR_BYTES + MSG_LEN_AT)))
			sum += length;
	}
	return sum;
}

#define TRIES 8 /* as often as other CPUs may come between */

static __always_inline void raise(__u64 *most, __u64 value)
{
	for (int i = 0; i < TRIES; i++) {
		__u64 old = *(volatile __u64 *)most;

		if (old >= value || __sync_val_compare_and_swap(most, old, value) == old)
			return;
	}
}

static __always_inline void lower(__u64 *least, __u64 value)
{
	for (int i = 0; i < TRIES; i++) {
		__u64 old = *(volatile __u64 *)least;

		if (old <= value || __sync_val_compare_and_swap(least, old, value) == old)
			return;
	}
}

static __always_inline void transfer_ends(struct pt_regs *regs, __u64 number, long returned)
{
	__u64 id = bpf_get_current_pid_tgid(), now, took, size = 0;
	__u32 tid = id;
	struct transfer *open = bpf_map_lookup_elem(&open_transfers, &tid), x;
	struct sum_key key = {.tgid = id >> 32, .receive = receives(number)};
	struct socket_io_record *r;

	if (!open)
		return;
	x = *open;
	bpf_map_delete_elem(&open_transfers, &tid);
	now = bpf_ktime_get_boot_ns();
	key.inode = x.inode;
	r = sum_of(sums_now(), &key, &x);
	if (!r) {
		count_full(FULL_SOCKETS);
		return;
	}
	if (returned > 0)
		size = number < 64 ? (__u64)returned : messages_bytes(regs->si, returned);
	took = now - x.start_ns;
	__sync_fetch_and_add(&r->count, 1);
	__sync_fetch_and_add(&r->errors, returned < 0);
	__sync_fetch_and_add(&r->not_ready, returned == -EAGAIN);
	__sync_fetch_and_add(&r->size_bytes, size);
	__sync_fetch_and_add(&r->sum_ns, took);
	raise(&r->max_ns, took);
	lower(&r->start_ns, x.start_ns);
	raise(&r->duration_ns, now); /* the end, until it is sent */
}

SEC("tp_btf/sys_enter")
int on_sys_enter(__u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	__u64 number = ctx[1];
	struct task_struct *task;
	struct watched *w;
	__u32 zero = 0;

	if (!is_ours(number))
		return 0;
	w = bpf_map_lookup_elem(&watched, &zero);
	if (!w || !(number == NR_IOCTL ? w->ioctls : w->sockets))
		return 0;
	task = bpf_get_current_task_btf();
	if (((struct task_struct___thread *)task)->thread_info.status & TS_COMPAT)
		return 0;
	if (number == NR_IOCTL)
		ioctl_begins(task, regs);
	else
		transfer_begins(task, regs);
	return 0;
}

SEC("tp_btf/sys_exit")
int on_sys_exit(__u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	__u64 number = regs->orig_ax;

	if (!is_ours(number))
		return 0;
	if (number == NR_IOCTL)
		ioctl_ends(ctx[1]);
	else
		transfer_ends(regs, number, ctx[1]);
	return 0;
}

SEC("raw_tp/turn_sums")
int turn_sums(void *ctx)
{
	__u32 zero = 0, *odd = bpf_map_lookup_elem(&turn, &zero);

	if (odd)
		*odd = !*odd;
	return 0;
}

static long send_sum(void *map, struct sum_key *key, struct socket_io_record *r, struct flushed *f)
{
	if (!room_in(&ring_socket_io, sizeof(*r))) {
		f->left = 1; /* it stays, and more is added to it after the next turn */
		return 0;
	}
	r->duration_ns -= r->start_ns;
	EMIT(socket_io, TABLE_SOCKET_IO, r);
	bpf_map_delete_elem(map, key);
	return 0;
}

/* Run when no program adds to the map whose turn is over. */
SEC("raw_tp/send_sums")
int send_sums(void *ctx)
{
	__u32 zero = 0, *odd = bpf_map_lookup_elem(&turn, &zero);
	struct flushed f = {};

	/* Two calls, which must stay two: the verifier of Linux 6.1 wants to know the map of each. */
	if (odd && *odd) {
		bpf_for_each_map_elem(&sums_even, send_sum, &f, 0);
		asm volatile("r1 = 1" ::: "r1");
	} else {
		bpf_for_each_map_elem(&sums_odd, send_sum, &f, 0);
		asm volatile("r1 = 0" ::: "r1");
	}
	return 0;
}

static long flush_ioctl(void *map, __u32 *tid, struct ioctls_record *r, struct flushed *f)
{
	if (!room_in(&ring_ioctls, sizeof(*r))) {
		f->left = 1;
		return 0;
	}
	EMIT(ioctls, TABLE_IOCTLS, r);
	bpf_map_delete_elem(map, tid);
	return 0;
}

/* As flush_calls in calls.bpf.c, when nothing is attached any more: both maps of sums, and ioctls without an end. */
SEC("raw_tp/flush_syscalls")
int flush_syscalls(void *ctx)
{
	struct flushed f = {};

	bpf_for_each_map_elem(&open_ioctls, flush_ioctl, &f, 0);
	bpf_for_each_map_elem(&sums_even, send_sum, &f, 0);
	bpf_for_each_map_elem(&sums_odd, send_sum, &f, 0);
	return f.left;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
