/*
 * Calls the CUDA runtime from functions whose names and return addresses are known.
 *
 *   stacks CUDART PATHS
 *
 * Says "ready" and waits for a line on stdin. Then: CALLS allocations from one place (size 1), one from another place
 * (size 2), a device synchronisation that waits for a kernel, and 2^PATHS allocations (size 3), each through another
 * sequence of functions. Prints the return addresses as offsets from where the program was loaded, says "made" and waits
 * for another line.
 */
#include "truth.h"
#include "cuda_runtime_api.h"

#include <dlfcn.h>

#define CALLS 1000
#define PLACE __attribute__((noipa))
#define RETURN_ADDRESS ((char *)__builtin_return_address(0))

static cudaError_t (*allocate)(void **, size_t);
static cudaError_t (*launch)(const void *, dim3, dim3, void **, size_t, cudaStream_t);
static cudaError_t (*synchronise)(void);
static char *in_middle, *in_outer, *in_other;

PLACE int inner(size_t size)
{
	void *memory;

	if (size == 1)
		in_middle = RETURN_ADDRESS;
	return allocate(&memory, size) + 1;
}

PLACE int middle(size_t size)
{
	in_outer = RETURN_ADDRESS;
	return inner(size) + 1;
}

PLACE int outer(void)
{
	return middle(1) + 1;
}

static PLACE int hidden_other(void)
{
	in_other = RETURN_ADDRESS;
	return inner(2) + 1;
}

PLACE int wait_for_device(void)
{
	dim3 one = {1, 1, 1};

	launch((void *)wait_for_device, one, one, NULL, 0, NULL);
	return synchronise() + 1;
}

PLACE int left(unsigned path, int depth);
PLACE int right(unsigned path, int depth);

PLACE int left(unsigned path, int depth)
{
	if (!depth)
		return inner(3) + 1;
	return (path & 1 ? right(path >> 1, depth - 1) : left(path >> 1, depth - 1)) + 1;
}

PLACE int right(unsigned path, int depth)
{
	if (!depth)
		return inner(3) + 2;
	return (path & 1 ? right(path >> 1, depth - 1) : left(path >> 1, depth - 1)) + 2;
}

static void say(const char *text)
{
	puts(text);
	fflush(stdout);
	getchar();
}

int main(int argc, char **argv)
{
	int paths = argc > 2 ? atoi(argv[2]) : 0, sum = 0;
	void *runtime = dlopen(argv[1], RTLD_NOW);
	Dl_info info;

	if (!runtime || !dladdr((void *)main, &info))
		die("dlopen", dlerror());
	*(void **)&allocate = dlsym(runtime, "cudaMalloc");
	*(void **)&launch = dlsym(runtime, "cudaLaunchKernel");
	*(void **)&synchronise = dlsym(runtime, "cudaDeviceSynchronize");
	say("ready");
	for (int i = 0; i < CALLS; i++)
		sum += outer();
	sum += hidden_other();
	sum += wait_for_device();
	for (unsigned path = 0; paths && path < 1u << paths; path++)
		sum += left(path, paths);
	char *base = info.dli_fbase;
	printf("{\"middle\": %td, \"outer\": %td, \"main\": %td}\n", in_middle - base, in_outer - base,
	       in_other - base);
	say("made");
	return sum == 0;
}
