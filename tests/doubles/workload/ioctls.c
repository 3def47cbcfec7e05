/*
 * ioctls on two kinds of character devices, from several threads, that succeed, fail, or never return; and some that a
 * filter by device and type must leave out. Waits for a line on its standard input before and after them. Writes every
 * one that belongs in, in order per thread: {"tid":N,"request":N,"major":N,"minor":N,"returned":N,"took_ns":N}, and at
 * last prints {"waiting_tid":N}: a thread that is still in one, 0 where the host has no virtual terminal for it.
 *
 * ioctls --out FILE [--threads 2] [--rounds 50]
 */
#include "truth.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vt.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define RNDGETENTCNT _IOR('R', 0x00, int)	 /* linux/random.h */
#define RND_UNKNOWN _IOC(3, 'R', 0x7f, 200)	 /* /dev/random knows no such request */
#define OTHER_TYPE _IOC(2, 'q', 0x01, 8)

static FILE *out;
static pthread_mutex_t one_writes = PTHREAD_MUTEX_INITIALIZER;
static long rounds;
static volatile int waiting_tid;

static void call(int fd, unsigned request, int belongs)
{
	int value[64], returned;
	uint64_t began_ns = boottime_ns(), took_ns;
	struct stat s;

	returned = ioctl(fd, request, value);
	took_ns = boottime_ns() - began_ns;
	if (returned < 0)
		returned = -errno;
	if (!belongs)
		return;
	if (fstat(fd, &s))
		die("fstat", NULL);
	pthread_mutex_lock(&one_writes);
	fprintf(out, "{\"tid\":%d,\"request\":%u,\"major\":%u,\"minor\":%u,\"returned\":%d,\"took_ns\":%lu}\n", thread_id(),
		request, major(s.st_rdev), minor(s.st_rdev), returned, (unsigned long)took_ns);
	pthread_mutex_unlock(&one_writes);
}

static void *work(void *index)
{
	int random = open("/dev/random", O_RDONLY), null = open("/dev/null", O_RDONLY), terminals = open("/dev/ptmx", O_RDWR);
	int file = open("/proc/self/exe", O_RDONLY), pair[2];

	if (random < 0 || null < 0 || terminals < 0 || file < 0 || pipe(pair))
		die("open", NULL);
	for (long i = 0; i < rounds + (long)index; i++) {
		call(random, RNDGETENTCNT, 1);
		if (i % 3 == 0)
			call(random, RND_UNKNOWN, 1);
		if (i % 5 == 0)
			call(null, RNDGETENTCNT, 1); /* same major number, and no ioctls at all */
		call(random, OTHER_TYPE, 0);
		call(terminals, RNDGETENTCNT, 0);
		call(file, RNDGETENTCNT, 0);
		call(pair[0], RNDGETENTCNT, 0);
		call(1 << 20, RNDGETENTCNT, 0);
	}
	return NULL;
}

static void *wait_for_terminal(void *fd)
{
	waiting_tid = thread_id();
	ioctl((int)(long)fd, VT_WAITACTIVE, 62); /* nobody will switch to it */
	return NULL;
}

int main(int argc, char **argv)
{
	long threads = number(argc, argv, "threads", 2);
	int terminal = open("/dev/tty0", O_RDWR | O_NOCTTY);
	pthread_t thread[16], waiting;

	rounds = number(argc, argv, "rounds", 50);
	out = fopen(option(argc, argv, "out", "/dev/stdout"), "w");
	if (!out || threads > 16)
		die("ioctls", "--out FILE [--threads 2] [--rounds 50]");
	printf("at start\n");
	fflush(stdout);
	getchar();
	if (terminal >= 0) {
		pthread_create(&waiting, NULL, wait_for_terminal, (void *)(long)terminal);
		while (!waiting_tid)
			nap_us(1000);
	}
	for (long t = 0; t < threads; t++)
		pthread_create(&thread[t], NULL, work, (void *)t);
	for (long t = 0; t < threads; t++)
		pthread_join(thread[t], NULL);
	fclose(out);
	printf("{\"waiting_tid\":%d}\n", waiting_tid);
	fflush(stdout);
	getchar();
	_exit(0);
}
