// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* TCP packets that are sent again, and whose sockets they are: usually an interrupt sends them, not the owner. */
#include "shared.h"
#include "cgroups.h"

RING(ring_tcp_retransmits);

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_FIN_WAIT1 = 4,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
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
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr; /* only with CONFIG_IPV6 */
	struct in6_addr skc_v6_rcv_saddr;
};
struct sock_cgroup_data {
	struct cgroup *cgroup; /* Linux 5.15 and later */
};
struct sock_cgroup_data___value {
	__u64 val;
};
struct user_id {
	__u32 val;
};
struct inode {
	unsigned long i_ino;
};
struct socket;
struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	struct user_id sk_uid;
	__u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
	void *sk_user_data;
};
struct inet_connection_sock {
	const void *icsk_ulp_ops;
};
struct socket_alloc {
	struct inode vfs_inode;
};
struct request_sock {
	struct sock_common __req_common;
};
struct sk_buff {
	char cb[48];
};
struct tcp_skb_cb {
	__u16 tcp_gso_segs;
};
#pragma clang attribute pop

struct owner {
	__u32 pid;
	char comm[TASK_COMM_LEN];
};

/* By the address of the socket: the thread that connected it, listens on it, closed it, or last sent or received. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct owner);
} owners SEC(".maps");

/* By inode: who holds it, as user space read in /proc; for sockets that were there before. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct owner);
} holders SEC(".maps");

/* Inodes of sockets whose owner was wanted and is not known: user space looks for them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} unknown_holders SEC(".maps");

static __always_inline void learn(__u64 socket)
{
	struct owner o = {.pid = bpf_get_current_pid_tgid() >> 32}, *known;

	known = bpf_map_lookup_elem(&owners, &socket);
	if (known && known->pid == o.pid)
		return;
	bpf_get_current_comm(o.comm, sizeof(o.comm));
	bpf_map_update_elem(&owners, &socket, &o, BPF_ANY);
}

static __always_inline bool is_tcp(struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP;
}

/* What is closed already will not be told of again, and its address is soon another socket's. */
static __always_inline int learn_user(struct sock *sk)
{
	if (is_tcp(sk) && BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_CLOSE)
		learn((__u64)sk);
	return 0;
}

/* connect(2), listen(2), shutdown(2) and close(2) set a state in the thread that calls them; others an interrupt sets. */
static __always_inline bool set_by_owner(__s32 before, __s32 state)
{
	switch (state) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		return true;
	case TCP_FIN_WAIT1:
		return before == TCP_ESTABLISHED;
	case TCP_LAST_ACK:
		return before == TCP_CLOSE_WAIT;
	default:
		return false;
	}
}

SEC("tp_btf/inet_sock_set_state")
int on_inet_sock_set_state(__u64 *ctx)
{
	__u64 socket = ctx[0];
	__s32 before = ctx[1], state = ctx[2];

	if (state == TCP_CLOSE)
		bpf_map_delete_elem(&owners, &socket);
	else if (set_by_owner(before, state) && is_tcp((void *)socket))
		learn(socket);
	return 0;
}

SEC("tp_btf/sock_send_length") /* Linux 6.3 and later, as the next one */
int on_sock_send_length(__u64 *ctx)
{
	return learn_user((void *)ctx[0]);
}

SEC("tp_btf/sock_recv_length")
int on_sock_recv_length(__u64 *ctx)
{
	return learn_user((void *)ctx[0]);
}

/*
 * Before that: every receive from TCP comes through here, in the thread that receives; but where the kernel itself reads
 * the stream (NFS, kTLS, sockmap), an interrupt may.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int on_tcp_rcv_space_adjust(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct inet_connection_sock *connection = (void *)sk;

	if (BPF_CORE_READ(sk, sk_user_data) || BPF_CORE_READ(connection, icsk_ulp_ops))
		return 0;
	return learn_user(sk);
}

static __always_inline void put_ipv4(char *to, __be32 address)
{
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, sizeof(address));
}

static __always_inline void put_ends(struct tcp_retransmits_record *r, struct sock_common *c)
{
	__be16 port = BPF_CORE_READ(c, skc_dport);

	r->family = BPF_CORE_READ(c, skc_family);
	r->state = BPF_CORE_READ(c, skc_state);
	r->local_port = BPF_CORE_READ(c, skc_num);
	r->remote_port = __builtin_bswap16(port);
	if (r->family == AF_INET) {
		put_ipv4(r->local_address, BPF_CORE_READ(c, skc_rcv_saddr));
		put_ipv4(r->remote_address, BPF_CORE_READ(c, skc_daddr));
	} else if (bpf_core_field_exists(c->skc_v6_daddr)) {
		BPF_CORE_READ_INTO(&r->local_address, c, skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&r->remote_address, c, skc_v6_daddr.in6_u.u6_addr8);
	}
}

static __always_inline __u64 socket_cgroup(struct sock *sk)
{
	struct sock_cgroup_data___value *before = (void *)&sk->sk_cgrp_data;
	__u64 value;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return cgroup_id(BPF_CORE_READ(sk, sk_cgrp_data.cgroup));
	if (!bpf_core_field_exists(before->val))
		return 0;
	value = BPF_CORE_READ(before, val);
	return value & 1 ? 0 : cgroup_id((void *)(value & ~3ULL)); /* 1: it holds a class of version 1 instead */
}

/* Fills in whose it is. A socket that its process has closed has no inode any more, but is still known by its address. */
static __always_inline void put_owner(struct tcp_retransmits_record *r, struct sock *sk)
{
	struct socket_alloc *file = (void *)BPF_CORE_READ(sk, sk_socket); /* the socket is its first member */
	__u64 socket = (__u64)sk;
	struct owner *o = bpf_map_lookup_elem(&owners, &socket);

	if (file) {
		r->inode = BPF_CORE_READ(file, vfs_inode.i_ino);
		if (r->inode)
			r->valid_mask |= TCP_RETRANSMITS_HAS_INODE;
	}
	if (!o && r->inode) {
		o = bpf_map_lookup_elem(&holders, &r->inode);
		if (!o)
			bpf_map_update_elem(&unknown_holders, &r->inode, &r->start_ns, BPF_ANY);
	}
	if (o) {
		r->pid = o->pid;
		__builtin_memcpy(r->comm, o->comm, sizeof(r->comm));
		r->valid_mask |= TCP_RETRANSMITS_HAS_PID | TCP_RETRANSMITS_HAS_COMM;
	}
	r->uid = BPF_CORE_READ(sk, sk_uid.val);
	r->valid_mask |= TCP_RETRANSMITS_HAS_UID;
	r->cgroup_id = socket_cgroup(sk);
	if (r->cgroup_id)
		r->valid_mask |= TCP_RETRANSMITS_HAS_CGROUP_ID;
}

static __always_inline int retransmitted(struct sock *sk, struct sk_buff *packet, __s32 error, bool has_error)
{
	struct tcp_skb_cb *cb = (void *)packet + bpf_core_field_offset(struct sk_buff, cb);
	struct tcp_retransmits_record r = {.start_ns = bpf_ktime_get_boot_ns()};

	put_owner(&r, sk);
	put_ends(&r, (void *)sk + bpf_core_field_offset(struct sock, __sk_common));
	r.segments = BPF_CORE_READ(cb, tcp_gso_segs);
	if (has_error) {
		r.error = error;
		r.valid_mask |= TCP_RETRANSMITS_HAS_ERROR;
	}
	EMIT(tcp_retransmits, TABLE_TCP_RETRANSMITS, &r);
	return 0;
}

#define EBUSY 16

/*
 * Linux 6.15 and later: told of when it fails as well. With EBUSY nothing was to be sent again: the packet has not left
 * the host yet.
 */
SEC("tp_btf/tcp_retransmit_skb")
int on_retransmit_error(__u64 *ctx)
{
	__s32 error = ctx[2];

	return error == -EBUSY ? 0 : retransmitted((void *)ctx[0], (void *)ctx[1], error, true);
}

SEC("tp_btf/tcp_retransmit_skb")
int on_retransmit(__u64 *ctx)
{
	return retransmitted((void *)ctx[0], (void *)ctx[1], 0, false);
}

/* The answer to a SYN, sent again by a listening socket for a connection that is not one yet. */
SEC("tp_btf/tcp_retransmit_synack")
int on_tcp_retransmit_synack(__u64 *ctx)
{
	struct sock *listener = (void *)ctx[0];
	struct tcp_retransmits_record r = {.start_ns = bpf_ktime_get_boot_ns(), .segments = 1};

	put_owner(&r, listener);
	put_ends(&r, (void *)ctx[1] + bpf_core_field_offset(struct request_sock, __req_common));
	EMIT(tcp_retransmits, TABLE_TCP_RETRANSMITS, &r);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
