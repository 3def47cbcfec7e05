/*
 * Loads CUDA runtimes in the middle of its life, and calls them at once: with each load and each call it notes the time
 * before and after. Sizes of allocations count upwards, so that every call is known by its own.
 *
 * visitor --out FILE --first PATH [--second PATH] [--calls 5] [--start-file FILE] [--go-file FILE] [--name NAME]
 *         [--nap-us 0]
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>

static __typeof__(&cudaMalloc) allocate[2];
static unsigned long size = 1;
static FILE *out;

static void load(int index, const char *path)
{
	uint64_t before = boottime_ns();
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (!library)
		die("dlopen", dlerror());
	fprintf(out, "{\"event\": \"load\", \"path\": \"%s\", \"pid\": %d, \"before_ns\": %lu, \"after_ns\": %lu}\n", path,
		getpid(), before, boottime_ns());
	allocate[index] = (__typeof__(allocate[0]))dlsym(library, "cudaMalloc");
}

static void call(int index, long times, uint64_t nap)
{
	for (long i = 0; allocate[index] && i < times; i++, size++) {
		uint64_t before = boottime_ns();
		void *memory;

		allocate[index](&memory, size);
		fprintf(out, "{\"event\": \"call\", \"size\": %lu, \"before_ns\": %lu, \"after_ns\": %lu}\n", size, before,
			boottime_ns());
		if (nap)
			nap_us(nap);
	}
}

int main(int argc, char **argv)
{
	const char *first = option(argc, argv, "first", NULL), *second = option(argc, argv, "second", NULL);
	const char *go = option(argc, argv, "go-file", NULL), *name = option(argc, argv, "name", NULL);
	long calls = number(argc, argv, "calls", 5);
	uint64_t nap = (uint64_t)number(argc, argv, "nap-us", 0);

	out = fopen(option(argc, argv, "out", "visitor.jsonl"), "w");
	if (!out || !first)
		die("usage", "visitor --out FILE --first PATH [--second PATH]");
	pause_for("start", option(argc, argv, "start-file", NULL));
	if (name)
		pthread_setname_np(pthread_self(), name);
	load(0, first);
	call(0, calls, nap);
	if (second) {
		load(1, second);
		call(1, calls, nap);
	}
	if (go) {
		fflush(out);
		pause_for("loaded", go);
		call(0, calls, nap);
		call(1, calls, nap);
	}
	fclose(out);
	return 0;
}
