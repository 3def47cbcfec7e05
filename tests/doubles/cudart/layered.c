/*
 * A CUDA runtime on top of the driver double, which must be loaded before with RTLD_GLOBAL: a call inside a call, a
 * call that is left by jumping to another one, calls that threads and programs end in.
 */
#include "cuda_runtime_api.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cuMemAlloc_v2(unsigned long long *pointer, size_t size);
int cuMemFree_v2(unsigned long long pointer);

cudaError_t cudaMalloc(void **pointer, size_t size)
{
	return (cudaError_t)cuMemAlloc_v2((unsigned long long *)pointer, size);
}

/* The driver's function returns for this one: built with -foptimize-sibling-calls, a jump. */
cudaError_t cudaFree(void *pointer)
{
	return (cudaError_t)cuMemFree_v2((unsigned long long)pointer);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
	(void)from, (void)size, (void)kind;
	longjmp(*(jmp_buf *)to, 1);
}

cudaError_t cudaDeviceSynchronize(void)
{
	pthread_exit(NULL);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
	char *arguments[] = {"true", NULL};

	(void)stream;
	execv("/bin/true", arguments);
	return cudaSuccess;
}

static void *pinned;

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned int flags)
{
	(void)size, (void)flags;
	pinned = pointer;
	raise(SIGUSR1);
	return cudaSuccess;
}

static __attribute__((noinline)) int deeper(int levels)
{
	volatile char filled[512];
	void *pointer;

	memset((char *)filled, levels, sizeof(filled));
	return levels ? deeper(levels - 1) + filled[0] : (int)cudaMalloc(&pointer, 64);
}

/* Leave cudaMemcpy by longjmp, and allocate from deeper in the stack than it was. */
int leave_and_go_deeper(void)
{
	jmp_buf buffer;

	if (!setjmp(buffer))
		cudaMemcpy(&buffer, NULL, 0, cudaMemcpyDefault);
	return deeper(8);
}

static void *end_in_a_call(void *unused)
{
	(void)unused;
	cudaDeviceSynchronize();
	return NULL;
}

int thread_that_ends_in_a_call(void)
{
	pthread_t thread;

	return pthread_create(&thread, NULL, end_in_a_call, NULL) || pthread_join(thread, NULL);
}

static void on_signal(int number)
{
	(void)number;
	cudaFree(NULL);
}

/* cudaHostAlloc is interrupted by a signal, whose handler frees on a stack of its own, below the thread's. */
int call_from_a_signal_handler(void)
{
	static char low[1 << 16];
	stack_t stack = {.ss_sp = low, .ss_size = sizeof(low)};
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
	void *pointer;

	if (sigaltstack(&stack, NULL) || sigaction(SIGUSR1, &action, NULL))
		return -1;
	return (int)cudaHostAlloc(&pointer, 1, 0);
}
