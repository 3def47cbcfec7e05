/*
 * Forks many children that live shortly, a few at a time. Every --every-th of them loads a CUDA runtime, makes --calls
 * calls and ends with a code of its own; the next one runs this program again, for nothing. Says what was made.
 *
 * crowd --children N --cudart PATH [--every 50] [--calls 3] [--at-once 8] [--start-file FILE]
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>
#include <errno.h>
#include <sys/wait.h>

static void child(long index, long every, long calls, const char *path, char **argv)
{
	if (index % every == 0) {
		void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *memory;
		__typeof__(&cudaMalloc) allocate;

		if (!library)
			die("dlopen", dlerror());
		allocate = (__typeof__(allocate))dlsym(library, "cudaMalloc");
		for (long i = 0; i < calls; i++)
			allocate(&memory, (size_t)index + 1);
		_exit((int)(index / every % 7));
	}
	if (index % every == 1)
		execl(argv[0], argv[0], "--children", "0", (char *)NULL);
	_exit(0);
}

static void reap(long *running)
{
	if (wait(NULL) < 0)
		die("wait", strerror(errno));
	--*running;
}

int main(int argc, char **argv)
{
	long children = number(argc, argv, "children", 0), every = number(argc, argv, "every", 50), running = 0;
	long calls = number(argc, argv, "calls", 3), at_once = number(argc, argv, "at-once", 8), loaded = 0, executed = 0;
	const char *path = option(argc, argv, "cudart", NULL), *start = option(argc, argv, "start-file", NULL);

	if (start)
		pause_for("start", start);
	for (long i = 0; i < children; i++) {
		pid_t pid;

		while (running >= at_once)
			reap(&running);
		pid = fork();
		if (pid < 0)
			die("fork", strerror(errno));
		if (!pid)
			child(i, every, calls, path, argv);
		running++;
		loaded += i % every == 0;
		executed += i % every == 1;
	}
	while (running)
		reap(&running);
	if (children)
		printf("{\"children\": %ld, \"loaded\": %ld, \"executed\": %ld, \"calls\": %ld}\n", children, loaded, executed,
		       loaded * calls);
	return 0;
}
