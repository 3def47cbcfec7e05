/*
 * Burns one CPU. Without --cudart it is the hog; with it, it makes one call first, so that it is a traced process and the
 * hog's victim.
 *
 * spin [--cpu N] [--ms 500] [--name spin] [--cudart PATH]
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>
#include <sched.h>

int main(int argc, char **argv)
{
	long cpu = number(argc, argv, "cpu", -1);
	const char *path = option(argc, argv, "cudart", NULL);

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
	spin_us((uint64_t)number(argc, argv, "ms", 500) * 1000u);
	return 0;
}
