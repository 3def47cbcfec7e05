/*
 * One thread that only sleeps, beside a thread whose calls are slow because its kernels are long: the sleep explains
 * nothing. Prints {"sleeper_tid":N,"caller_tid":N,"naps":N} when it ends.
 *
 * With --realtime 1 no other load on the host can take the CPU from the sleeping thread when it is awake.
 *
 * sleeper --cudart PATH [--naps 20] [--nap-ms 10] [--realtime 0] [--pause-file FILE]
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>
#include <sched.h>

static long naps, nap_ms, realtime;
static int sleeper_tid;

static void *nap(void *argument)
{
	struct sched_param priority = {.sched_priority = 1};

	(void)argument;
	sleeper_tid = thread_id();
	if (realtime && sched_setscheduler(0, SCHED_FIFO, &priority))
		die("sched_setscheduler", NULL);
	pthread_setname_np(pthread_self(), "sleeper");
	for (long i = 0; i < naps; i++)
		nap_us((uint64_t)nap_ms * 1000u);
	return NULL;
}

int main(int argc, char **argv)
{
	const char *path = option(argc, argv, "cudart", NULL);
	void *library = path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
	__typeof__(&cudaLaunchKernel) launch;
	__typeof__(&cudaDeviceSynchronize) synchronize;
	pthread_t thread;

	if (!library)
		die("dlopen", path ? dlerror() : "--cudart PATH is needed");
	launch = (__typeof__(launch))dlsym(library, "cudaLaunchKernel");
	synchronize = (__typeof__(synchronize))dlsym(library, "cudaDeviceSynchronize");
	naps = number(argc, argv, "naps", 20);
	nap_ms = number(argc, argv, "nap-ms", 10);
	realtime = number(argc, argv, "realtime", 0);
	if (option(argc, argv, "pause-file", NULL))
		pause_for("start", option(argc, argv, "pause-file", NULL));
	synchronize();
	if (pthread_create(&thread, NULL, nap, NULL))
		die("pthread_create", NULL);
	for (long i = 0; i < naps; i++) {
		launch((void *)nap, (dim3){1, 1, 1}, (dim3){1, 1, 1}, NULL, 0, NULL);
		synchronize();
	}
	pthread_join(thread, NULL);
	printf("{\"sleeper_tid\":%d,\"caller_tid\":%d,\"naps\":%ld}\n", sleeper_tid, thread_id(), naps);
	return 0;
}
