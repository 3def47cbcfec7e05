/*
 * A launcher some of whose launches are slow, for a cause that is planted: inside the slow launch itself, or, for the
 * twin that must explain nothing, between launches or on another thread of the process, while the slow launches compute.
 *
 * planted --cudart PATH --out FILE [--cause none|disk|futex|nap|memory] [--where inside|between|thread] [--calls 799]
 *         [--slow 8] [--busy-ms 10] [--hold-ms 20] [--rest-ms 20] [--disk FILE] [--map FILE] [--cpu N] [--priority N]
 *         [--name planted] [--pause-file FILE] [--settle-ms 0] [--linger-ms 0]
 *         [--stat CPU.STAT]
 *
 * FILE gets a line for the process, and one for each slow launch: when it began and ended, by how much the throttled time
 * of a cgroup grew meanwhile, and the spans of its cause and of time in which it was switched out (planted.h). The last
 * line has what a hypervisor took meanwhile, and how long the longest of the other launches took.
 */
#include "planted.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>
#include <stdatomic.h>

static struct planted *plan;
static atomic_int ended;
static int inside_the_call;

static void slow(void *argument)
{
	(void)argument;
	if (inside_the_call)
		planted_cause(plan);
	planted_work(plan);
}

static void *beside(void *argument)
{
	struct planted *p = argument;

	pthread_setname_np(pthread_self(), "beside");
	while (!ended) {
		planted_ready(p);
		planted_cause(p);
		p->count = 0;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const char *path = option(argc, argv, "cudart", NULL), *where = option(argc, argv, "where", "inside");
	void *library = path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
	FILE *out = fopen(option(argc, argv, "out", "planted"), "w");
	/* The slow ones are exactly the slowest hundredth: no other launch that the machine made long is among them. */
	long slow_calls = number(argc, argv, "slow", 8), calls = number(argc, argv, "calls", slow_calls * 100 - 1);
	uint64_t rest_us = (uint64_t)number(argc, argv, "rest-ms", 20) * 1000u, stolen, longest = 0;
	int aside = !strcmp(where, "thread");
	void (*next)(void (*)(void *), void *);
	__typeof__(&cudaLaunchKernel) launch;
	pthread_t thread;

	if (!library || !out)
		die("planted", path ? dlerror() : "--cudart PATH is needed");
	next = (__typeof__(next))dlsym(library, "inside_next");
	launch = (__typeof__(launch))dlsym(library, "cudaLaunchKernel");
	plan = planted_new(argc, argv, aside ? "none" : option(argc, argv, "cause", "none"));
	inside_the_call = !strcmp(where, "inside");
	pthread_setname_np(pthread_self(), option(argc, argv, "name", "planted"));
	planted_place(argc, argv);
	planted_look(plan); /* the first one makes what it reads, which takes time */
	fprintf(out, "{\"pid\":%d,\"tid\":%d}\n", getpid(), thread_id());
	if (aside && pthread_create(&thread, NULL, beside, planted_new(argc, argv, option(argc, argv, "cause", "none"))))
		die("pthread_create", NULL);
	for (long i = 0; i < calls - slow_calls; i++) {
		uint64_t before = boottime_ns(), took;

		launch((void *)main, (dim3){1, 1, 1}, (dim3){1, 1, 1}, NULL, 0, NULL);
		took = boottime_ns() - before;
		longest = took > longest ? took : longest;
	}
	if (option(argc, argv, "pause-file", NULL))
		pause_for("ready", option(argc, argv, "pause-file", NULL));
	nap_us((uint64_t)number(argc, argv, "settle-ms", 0) * 1000u);
	stolen = planted_stolen_ns();
	for (long i = 0; i < slow_calls; i++) {
		uint64_t before, after, throttled;

		nap_us(rest_us);
		planted_ready(plan);
		if (!strcmp(where, "between"))
			planted_cause(plan);
		plan->count = 0;
		next(slow, NULL);
		throttled = planted_throttled_ns(option(argc, argv, "stat", NULL));
		before = boottime_ns();
		launch((void *)main, (dim3){1, 1, 1}, (dim3){1, 1, 1}, NULL, 0, NULL);
		after = boottime_ns();
		throttled = planted_throttled_ns(option(argc, argv, "stat", NULL)) - throttled;
		fprintf(out, "{\"before_ns\":%llu,\"after_ns\":%llu,\"throttled_ns\":%llu,\"spans\":",
			(unsigned long long)before, (unsigned long long)after, (unsigned long long)throttled);
		planted_print(out, plan);
		fprintf(out, "}\n");
	}
	fprintf(out, "{\"stolen_ns\":%llu,\"other_ns\":%llu}\n", (unsigned long long)(planted_stolen_ns() - stolen),
		(unsigned long long)longest);
	ended = 1;
	fclose(out);
	nap_us((uint64_t)number(argc, argv, "linger-ms", 0) * 1000u);
	return 0;
}
