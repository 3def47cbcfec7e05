/*
 * How long the kernel made a thread free memory itself before it got some, by the kernel's own delay accounting
 * (Documentation/accounting/delay-accounting.rst), asked for over taskstats. It counts for threads that began while
 * the setting kernel.task_delayacct was 1.
 */
#ifndef WORKLOAD_DELAYS_H
#define WORKLOAD_DELAYS_H

#include "truth.h"

#include <linux/genetlink.h>
#include <linux/taskstats.h>
#include <stddef.h>
#include <sys/socket.h>

struct delays_message {
	struct nlmsghdr head;
	struct genlmsghdr generic;
	char attributes[4096];
};

static inline int delays_socket(void)
{
	static __thread int fd = -1;
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};

	if (fd < 0) {
		fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
		if (fd < 0 || connect(fd, (const struct sockaddr *)&kernel, sizeof(kernel)))
			die("netlink", NULL);
	}
	return fd;
}

/* One question with one attribute; the answer is in the same place. */
static inline void delays_ask(struct delays_message *m, int family, int command, int type, const void *value, size_t bytes)
{
	struct nlattr attribute = {.nla_len = (__u16)(NLA_HDRLEN + bytes), .nla_type = (__u16)type};

	*m = (struct delays_message){
		.head = {.nlmsg_type = (__u16)family, .nlmsg_flags = NLM_F_REQUEST},
		.generic = {.cmd = (__u8)command, .version = 1},
	};
	memcpy(m->attributes, &attribute, sizeof(attribute));
	memcpy(m->attributes + NLA_HDRLEN, value, bytes);
	m->head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN) + NLA_ALIGN(attribute.nla_len);
	if (send(delays_socket(), m, m->head.nlmsg_len, 0) < 0 || recv(delays_socket(), m, sizeof(*m), 0) < 0 ||
	    m->head.nlmsg_type == NLMSG_ERROR)
		die("taskstats", "does not answer");
}

/* The value of an attribute in a list of them. */
static inline char *delays_attribute(char *list, size_t bytes, int type)
{
	struct nlattr a;

	for (size_t at = 0; at + NLA_HDRLEN <= bytes; at += NLA_ALIGN(a.nla_len)) {
		memcpy(&a, list + at, sizeof(a));
		if ((a.nla_type & NLA_TYPE_MASK) == type)
			return list + at + NLA_HDRLEN;
		if (a.nla_len < NLA_HDRLEN)
			break;
	}
	die("taskstats", "answers without what was asked for");
	return NULL;
}

static inline size_t delays_bytes(const struct delays_message *m)
{
	return m->head.nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN);
}

/* So far, of the calling thread: ns. */
static inline uint64_t delays_reclaim_ns(void)
{
	static const char name[] = TASKSTATS_GENL_NAME;
	static __thread int family;
	static __thread struct delays_message m;
	uint32_t tid = (uint32_t)thread_id();
	struct taskstats stats;
	char *found;

	if (!family) {
		uint16_t number;

		delays_ask(&m, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, name, sizeof(name));
		memcpy(&number, delays_attribute(m.attributes, delays_bytes(&m), CTRL_ATTR_FAMILY_ID), sizeof(number));
		family = number;
	}
	delays_ask(&m, family, TASKSTATS_CMD_GET, TASKSTATS_CMD_ATTR_PID, &tid, sizeof(tid));
	found = delays_attribute(m.attributes, delays_bytes(&m), TASKSTATS_TYPE_AGGR_PID);
	found = delays_attribute(found, delays_bytes(&m) - (size_t)(found - m.attributes), TASKSTATS_TYPE_STATS);
	memcpy(&stats, found, offsetof(struct taskstats, freepages_delay_total) + sizeof(stats.freepages_delay_total));
	return stats.freepages_delay_total;
}

#endif
