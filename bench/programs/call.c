/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* call LIBRARY FUNCTION: for each line with a number on stdin, calls the function so often with a null pointer and
 * answers with the nanoseconds that it took. */
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

static long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW) : NULL;
	int (*function)(void *) = NULL;
	long count;

	if (library)
		*(void **)&function = dlsym(library, argv[2]);
	if (!function) {
		fprintf(stderr, "call: %s\n", argc == 3 ? dlerror() : "usage: call LIBRARY FUNCTION");
		return 2;
	}
	while (scanf("%ld", &count) == 1) {
		long long start = now_ns();

		for (long i = 0; i < count; i++)
			function(NULL);
		printf("%lld\n", now_ns() - start);
		fflush(stdout);
	}
	return 0;
}
