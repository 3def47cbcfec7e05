/* What every workload program shares: the clock of the evidence, waiting for a file, and writing down the truth. */
#ifndef WORKLOAD_TRUTH_H
#define WORKLOAD_TRUTH_H

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t boottime_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int thread_id(void)
{
	return (int)syscall(SYS_gettid);
}

static inline void nap_us(uint64_t us)
{
	struct timespec t = {(time_t)(us / 1000000u), (long)(us % 1000000u * 1000u)};

	while (nanosleep(&t, &t))
		;
}

static inline void spin_us(uint64_t us)
{
	uint64_t end = boottime_ns() + us * 1000u;

	while (boottime_ns() < end)
		;
}

/* The program tells that it has come to a point, and goes on once the file is there. */
static inline void pause_for(const char *point, const char *file)
{
	printf("at %s\n", point);
	fflush(stdout);
	while (file && access(file, F_OK))
		nap_us(2000);
}

/* The value of "--name value" on the command line. */
static inline const char *option(int argc, char **argv, const char *name, const char *fallback)
{
	for (int i = 1; i + 1 < argc; i++) {
		if (!strncmp(argv[i], "--", 2) && !strcmp(argv[i] + 2, name))
			return argv[i + 1];
	}
	return fallback;
}

static inline long number(int argc, char **argv, const char *name, long fallback)
{
	const char *text = option(argc, argv, name, NULL);

	return text ? strtol(text, NULL, 10) : fallback;
}

static inline void die(const char *what, const char *detail)
{
	fprintf(stderr, "%s: %s\n", what, detail ? detail : "failed");
	exit(3);
}

#endif
