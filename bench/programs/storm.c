/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * storm LIBRARY: a launch loop with work between the launches. Says how long a unit of work takes here, then for each
 * line "UNITS CALLS" on stdin makes so many launches, each after so many units of work, and answers with the
 * nanoseconds that it took. The work is the same whether the calls are probed or not: what a capture adds is seen as time.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

typedef struct {
	unsigned int x, y, z;
} dim3;
typedef int (*launch_t)(const void *, dim3, dim3, void **, size_t, void *);

static long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static volatile uint64_t sink;

/* A chain of dependent multiplications: the same time on an idle and on a busy core. */
static void work(long units)
{
	uint64_t x = sink | 1;

	for (long i = 0; i < units; i++) {
		x *= 6364136223846793005ULL;
		__asm__ volatile("" : "+r"(x));
	}
	sink = x;
}

int main(int argc, char **argv)
{
	void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
	const dim3 grid = {1024, 1, 1}, block = {256, 1, 1};
	double best = 1e18;
	long units, calls;
	launch_t launch = NULL;

	if (library)
		*(void **)&launch = dlsym(library, "cudaLaunchKernel");
	if (!launch) {
		fprintf(stderr, "storm: %s\n", argc == 2 ? dlerror() : "usage: storm LIBRARY");
		return 2;
	}
	for (int i = 0; i < 50; i++) {
		long long start = now_ns();

		work(200000);
		if ((now_ns() - start) / 200000.0 < best)
			best = (now_ns() - start) / 200000.0;
	}
	printf("%.6f\n", best);
	fflush(stdout);
	while (scanf("%ld %ld", &units, &calls) == 2) {
		long long start = now_ns();

		for (long i = 0; i < calls; i++) {
			work(units);
			launch((void *)main, grid, block, NULL, 0, NULL);
		}
		printf("%lld\n", now_ns() - start);
		fflush(stdout);
	}
	return 0;
}
