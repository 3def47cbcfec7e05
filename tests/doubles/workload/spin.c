/*
 * Burns one CPU. Without --cudart it is the hog; with it, it makes one call first, so that it is a traced process and the
 * hog's victim.
 *
 * With --burst-ms it runs at real-time priority (--priority) in bursts with pauses, as long unless told, so that it takes
 * the CPU from whoever has it.
 *
 * spin [--cpu N] [--ms 500] [--name spin] [--cudart PATH] [--burst-ms N] [--pause-ms N] [--priority 1]
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>
#include <sched.h>

int main(int argc, char **argv)
{
	long cpu = number(argc, argv, "cpu", -1);
	const char *path = option(argc, argv, "cudart", NULL);
	uint64_t burst_us = (uint64_t)number(argc, argv, "burst-ms", 0) * 1000u;
	uint64_t pause_us = (uint64_t)number(argc, argv, "pause-ms", (long)(burst_us / 1000u)) * 1000u;
	uint64_t end_ns = boottime_ns() + (uint64_t)number(argc, argv, "ms", 500) * 1000000u;

	pthread_setname_np(pthread_self(), option(argc, argv, "name", "spin"));
	if (cpu >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET((int)cpu, &set);
		if (sched_setaffinity(0, sizeof(set), &set))
			die("sched_setaffinity", NULL);
	}
	if (path) {
		void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
		__typeof__(&cudaDeviceSynchronize) synchronize;

		if (!library)
			die("dlopen", dlerror());
		synchronize = (__typeof__(synchronize))dlsym(library, "cudaDeviceSynchronize");
		synchronize();
	}
	printf("at spin\n");
	fflush(stdout);
	if (burst_us) {
		struct sched_param priority = {.sched_priority = (int)number(argc, argv, "priority", 1)};

		if (sched_setscheduler(0, SCHED_FIFO, &priority))
			die("sched_setscheduler", NULL);
		while (boottime_ns() < end_ns) {
			spin_us(burst_us);
			nap_us(pause_us);
		}
	} else {
		spin_us((uint64_t)number(argc, argv, "ms", 500) * 1000u);
	}
	return 0;
}
