/*
 * Causes to plant, each of which writes down what it took on CLOCK_BOOTTIME: time asleep on a disk, on a lock that a
 * sibling thread holds, on the answer of a server, in a nap ("disk", "futex", "socket", "nap"); time in which it had to
 * free memory, as the kernel counts it ("memory"); and time in which a thread that had work to do was switched out
 * ("gap"). What interrupts or a hypervisor take of a thread that has its CPU
 * is in none of them: the clock jumps there too, but nobody else ran.
 */
#ifndef WORKLOAD_PLANTED_H
#define WORKLOAD_PLANTED_H

#include "delays.h"
#include "truth.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define PLANTED_MAX 65536
#define PLANTED_GAP_NS 50000u /* shorter than this between two looks at the clock is the looking itself */
#define PLANTED_BLOCK (4u << 20) /* large: each one is a wake-up, which takes time of its own where a CPU is emulated */
#define PLANTED_PAGE 4096
#define PLANTED_PAGES 64 /* are touched between two looks at the clock */
#define PLANTED_QUESTION 512u /* bytes; the answer has one */

struct planted_span {
	const char *what;
	uint64_t from_ns, to_ns;
};

struct planted {
	const char *cause; /* none, disk, futex, socket, post, nap, memory */
	long busy_ms, hold_ms;
	int disk, server;
	off_t disk_at, disk_bytes, map_at, map_bytes;
	const volatile char *map;
	void *block;
	pthread_mutex_t lock;
	sem_t wanted, held;
	struct {
		uint64_t at_ns, on_cpu_ns, waited_ns;
	} look; /* the last one */
	size_t count;
	struct planted_span spans[PLANTED_MAX];
};

static inline void planted_note(struct planted *p, const char *what, uint64_t from_ns, uint64_t to_ns)
{
	if (to_ns > from_ns && p->count < PLANTED_MAX)
		p->spans[p->count++] = (struct planted_span){what, from_ns, to_ns};
}

static inline uint64_t planted_cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* How long this thread had a CPU, with what interrupts and a hypervisor took of that: planted_cpu_ns() is without. */
static inline uint64_t planted_on_cpu_ns(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_TASK_CLOCK,
	};
	static __thread int fd = -1;
	uint64_t ns;

	if (fd < 0)
		fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	if (read(fd, &ns, sizeof(ns)) != sizeof(ns))
		die("perf_event_open", "does not count the time on a CPU");
	return ns;
}

/* How long this thread was ready to run and had no CPU. */
static inline uint64_t planted_waited_ns(void)
{
	static __thread int fd = -1;
	unsigned long long ns;
	char text[96] = "";

	if (fd < 0)
		fd = open("/proc/thread-self/schedstat", O_RDONLY);
	if (pread(fd, text, sizeof(text) - 1, 0) <= 0 || sscanf(text, "%*u %llu", &ns) != 1)
		die("schedstat", "does not count the time without a CPU");
	return ns;
}

/*
 * What a hypervisor took of this thread's CPU, or of all where it has no CPU of its own, while they had something to do,
 * their waking up included; in ticks of 10 ms.
 */
static inline uint64_t planted_stolen_ns(void)
{
	FILE *stat = fopen("/proc/stat", "r");
	char line[256], wanted[16] = "cpu", name[16];
	unsigned long long ticks;
	cpu_set_t set;

	if (!sched_getaffinity(0, sizeof(set), &set) && CPU_COUNT(&set) == 1)
		snprintf(wanted, sizeof(wanted), "cpu%d", sched_getcpu());
	while (stat && fgets(line, sizeof(line), stat))
		if (sscanf(line, "%15s %*u %*u %*u %*u %*u %*u %*u %llu", name, &ticks) == 2 && !strcmp(name, wanted)) {
			fclose(stat);
			return ticks * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
		}
	die("/proc/stat", "does not tell the stolen time");
	return 0;
}

/* How long a cgroup was held back so far, by its file cpu.stat: ns in version 1 of the hierarchy, else us. */
static inline uint64_t planted_throttled_ns(const char *path)
{
	FILE *in = path ? fopen(path, "r") : NULL;
	unsigned long long value, ns = 0;
	char name[64];

	while (in && fscanf(in, "%63s %llu", name, &value) == 2) {
		if (!strcmp(name, "throttled_time"))
			ns = value;
		else if (!strcmp(name, "throttled_usec"))
			ns = value * 1000u;
	}
	if (in)
		fclose(in);
	return ns;
}

/* From now on counts what planted_off() notes. */
static inline void planted_look(struct planted *p)
{
	p->look.waited_ns = planted_waited_ns();
	p->look.on_cpu_ns = planted_on_cpu_ns();
	p->look.at_ns = boottime_ns();
}

/*
 * Note how long this thread was off its CPU since the last look, in a time that began at from_ns and ends now: asleep
 * for a cause first, unless that is NULL, then ready to run ("gap").
 */
static inline void planted_off(struct planted *p, const char *cause, uint64_t from_ns)
{
	__typeof__(p->look) last = p->look;
	int64_t off, waited;

	planted_look(p);
	off = (int64_t)(p->look.at_ns - last.at_ns) - (int64_t)(p->look.on_cpu_ns - last.on_cpu_ns);
	waited = (int64_t)(p->look.waited_ns - last.waited_ns);
	if (waited > off)
		waited = off;
	if (cause && off > waited)
		planted_note(p, cause, from_ns, from_ns + (uint64_t)(off - waited));
	if (waited > 0)
		planted_note(p, "gap", p->look.at_ns - (uint64_t)waited, p->look.at_ns);
}

/* So much CPU time; the clock jumps where the thread was switched out, or where the machine stood still. */
static inline void planted_work(struct planted *p)
{
	uint64_t end = planted_cpu_ns() + (uint64_t)p->busy_ms * 1000000u, last = boottime_ns(), now;
	int done;

	planted_look(p);
	do {
		done = planted_cpu_ns() >= end; /* asked first: what comes between the two is the last one's */
		now = boottime_ns();
		if (now - last > PLANTED_GAP_NS) {
			planted_off(p, "gap", last);
			now = p->look.at_ns;
		}
		last = now;
	} while (!done);
}

/* A lock whose holder naps: it takes it when wanted, and says so. */
static inline void *planted_holder(void *argument)
{
	struct planted *p = argument;

	pthread_setname_np(pthread_self(), "holder");
	for (;;) {
		while (sem_wait(&p->wanted))
			;
		pthread_mutex_lock(&p->lock);
		sem_post(&p->held);
		nap_us((uint64_t)p->hold_ms * 1000u);
		pthread_mutex_unlock(&p->lock);
	}
	return NULL;
}

/* Before the time that counts: the lock is held when this returns. */
static inline void planted_ready(struct planted *p)
{
	if (!strcmp(p->cause, "futex")) {
		sem_post(&p->wanted);
		while (sem_wait(&p->held))
			;
	}
}

/* The next pages of the mapped file: those that are not in memory get there, and others are pushed out. */
static inline void planted_touch(struct planted *p)
{
	for (int i = 0; i < PLANTED_PAGES; i++) {
		(void)p->map[p->map_at];
		p->map_at = (p->map_at + PLANTED_PAGE) % p->map_bytes;
	}
}

/* The cause, for as long as it takes; the cache has nothing of what is read from the disk, nor gets it. */
static inline void planted_cause(struct planted *p)
{
	uint64_t before = boottime_ns();

	planted_look(p);
	if (!strcmp(p->cause, "disk")) {
		do {
			uint64_t from = p->look.at_ns;

			if (pread(p->disk, p->block, PLANTED_BLOCK, p->disk_at) != PLANTED_BLOCK)
				die("pread", "no whole block");
			planted_off(p, "disk", from);
			p->disk_at = (p->disk_at + PLANTED_BLOCK) % p->disk_bytes;
		} while (boottime_ns() < before + (uint64_t)p->hold_ms * 1000000u);
	} else if (!strcmp(p->cause, "futex")) {
		pthread_mutex_lock(&p->lock);
		planted_off(p, "futex", before);
		pthread_mutex_unlock(&p->lock);
	} else if (!strcmp(p->cause, "socket")) {
		if (send(p->server, p->block, PLANTED_QUESTION, MSG_NOSIGNAL) != PLANTED_QUESTION ||
		    recv(p->server, p->block, 1, 0) != 1)
			die("the server", "does not answer");
		planted_off(p, "socket", before);
	} else if (!strcmp(p->cause, "post")) {
		if (send(p->server, p->block, PLANTED_QUESTION, MSG_NOSIGNAL) != PLANTED_QUESTION)
			die("the server", "takes nothing");
	} else if (!strcmp(p->cause, "nap")) {
		nap_us((uint64_t)p->hold_ms * 1000u);
		planted_off(p, "nap", before);
	} else if (!strcmp(p->cause, "memory")) {
		uint64_t reclaim_ns = delays_reclaim_ns();

		do
			planted_touch(p);
		while (boottime_ns() < before + (uint64_t)p->hold_ms * 1000000u);
		planted_note(p, "memory", before, before + delays_reclaim_ns() - reclaim_ns);
		planted_off(p, NULL, before);
	}
}

static inline void planted_print(FILE *to, const struct planted *p)
{
	fprintf(to, "[");
	for (size_t i = 0; i < p->count; i++)
		fprintf(to, "%s[\"%s\",%llu,%llu]", i ? "," : "", p->spans[i].what,
			(unsigned long long)p->spans[i].from_ns, (unsigned long long)p->spans[i].to_ns);
	fprintf(to, "]");
}

static inline int planted_server(const char *address, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	if (!address || inet_pton(AF_INET, address, &to.sin_addr) != 1 ||
	    connect(fd, (const struct sockaddr *)&to, sizeof(to)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		die(address, "cannot be connected to");
	return fd;
}

/* Mapped, and as much of it in memory as may be. */
static inline void planted_map(struct planted *p, const char *path)
{
	int fd = open(path, O_RDONLY);
	void *map = MAP_FAILED;

	p->map_bytes = fd < 0 ? 0 : lseek(fd, 0, SEEK_END) / PLANTED_PAGE * PLANTED_PAGE;
	if (p->map_bytes)
		map = mmap(NULL, (size_t)p->map_bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED || madvise(map, (size_t)p->map_bytes, MADV_RANDOM))
		die(path, "cannot be mapped");
	p->map = map;
	do
		planted_touch(p);
	while (p->map_at);
}

/*
 * --busy-ms N, --hold-ms N, --disk FILE, --map FILE, --server ADDRESS --port N; cause: none, disk, futex, socket, post
 * (to the server, without waiting for its answer), nap or memory
 */
static inline struct planted *planted_new(int argc, char **argv, const char *cause)
{
	struct planted *p = calloc(1, sizeof(*p));
	const char *disk = option(argc, argv, "disk", NULL);

	if (!p || posix_memalign(&p->block, 4096, PLANTED_BLOCK))
		die("memory", NULL);
	p->cause = cause;
	p->busy_ms = number(argc, argv, "busy-ms", 10);
	p->hold_ms = number(argc, argv, "hold-ms", 20);
	if (disk) {
		p->disk = open(disk, O_RDONLY | O_DIRECT);
		if (p->disk < 0)
			die(disk, "cannot be opened");
		p->disk_bytes = lseek(p->disk, 0, SEEK_END) / PLANTED_BLOCK * PLANTED_BLOCK;
		if (!p->disk_bytes)
			die(disk, "is shorter than a block");
	}
	if (option(argc, argv, "map", NULL))
		planted_map(p, option(argc, argv, "map", NULL));
	if (!strcmp(p->cause, "socket") || !strcmp(p->cause, "post"))
		p->server = planted_server(option(argc, argv, "server", NULL), (int)number(argc, argv, "port", 0));
	pthread_mutex_init(&p->lock, NULL);
	sem_init(&p->wanted, 0, 0);
	sem_init(&p->held, 0, 0);
	if (!strcmp(p->cause, "futex")) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, planted_holder, p))
			die("pthread_create", NULL);
	}
	return p;
}

/* --cpu N, --priority N: threads made later have both too. */
static inline void planted_place(int argc, char **argv)
{
	struct sched_param priority = {.sched_priority = (int)number(argc, argv, "priority", 0)};
	long cpu = number(argc, argv, "cpu", -1);
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((int)(cpu < 0 ? 0 : cpu), &set);
	if (cpu >= 0 && sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity", NULL);
	if (priority.sched_priority && sched_setscheduler(0, SCHED_FIFO, &priority))
		die("sched_setscheduler", NULL);
}

#endif
