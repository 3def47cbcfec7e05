/*
 * Causes to plant, each of which writes down what it took on CLOCK_BOOTTIME: time asleep on a disk, on a lock that a
 * sibling thread holds, in a nap; and time in which a thread that had work to do did not run.
 */
#ifndef WORKLOAD_PLANTED_H
#define WORKLOAD_PLANTED_H

#include "truth.h"

#include <fcntl.h>
#include <sched.h>
#include <semaphore.h>

#define PLANTED_MAX 65536
#define PLANTED_GAP_NS 50000u /* shorter than this between two looks at the clock is the looking itself */
#define PLANTED_BLOCK (1u << 20)

struct planted_span {
	const char *what;
	uint64_t from_ns, to_ns;
};

struct planted {
	const char *cause; /* none, disk, futex, nap */
	long busy_ms, hold_ms;
	int disk;
	off_t disk_at, disk_bytes;
	void *block;
	pthread_mutex_t lock;
	sem_t wanted, held;
	size_t count;
	struct planted_span spans[PLANTED_MAX];
};

static inline void planted_note(struct planted *p, const char *what, uint64_t from_ns)
{
	if (p->count < PLANTED_MAX)
		p->spans[p->count++] = (struct planted_span){what, from_ns, boottime_ns()};
}

static inline uint64_t planted_cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* So much CPU time; the clock jumps where the thread did not run. */
static inline void planted_work(struct planted *p)
{
	uint64_t end = planted_cpu_ns() + (uint64_t)p->busy_ms * 1000000u, last = boottime_ns();

	while (planted_cpu_ns() < end) {
		uint64_t now = boottime_ns();

		if (now - last > PLANTED_GAP_NS)
			planted_note(p, "gap", last);
		last = now;
	}
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

/* The cause, for as long as it takes; the cache has nothing of what is read from the disk, nor gets it. */
static inline void planted_cause(struct planted *p)
{
	uint64_t before = boottime_ns();

	if (!strcmp(p->cause, "disk")) {
		do {
			uint64_t from = boottime_ns(), cpu = planted_cpu_ns();

			if (pread(p->disk, p->block, PLANTED_BLOCK, p->disk_at) != PLANTED_BLOCK)
				die("pread", "no whole block");
			planted_note(p, "disk", from);
			if (p->count) /* what it computed itself is no wait */
				p->spans[p->count - 1].to_ns -= planted_cpu_ns() - cpu;
			p->disk_at = (p->disk_at + PLANTED_BLOCK) % p->disk_bytes;
		} while (boottime_ns() < before + (uint64_t)p->hold_ms * 1000000u);
	} else if (!strcmp(p->cause, "futex")) {
		pthread_mutex_lock(&p->lock);
		planted_note(p, "futex", before);
		pthread_mutex_unlock(&p->lock);
	} else if (!strcmp(p->cause, "nap")) {
		nap_us((uint64_t)p->hold_ms * 1000u);
		planted_note(p, "nap", before);
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

/* --busy-ms N, --hold-ms N, --disk FILE; cause: none, disk, futex or nap */
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
