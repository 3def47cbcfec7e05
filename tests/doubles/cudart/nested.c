/*
 * A CUDA runtime whose functions call themselves and each other, and one that is left by longjmp: what a recorder must
 * not mix up. cudaMalloc(_, n) calls itself n times; cudaFree calls cudaMalloc; cudaMemcpy leaves through the jump
 * buffer in its first argument when its size is 0.
 */
#include "cuda_runtime_api.h"

#include <setjmp.h>

cudaError_t cudaMalloc(void **pointer, size_t size)
{
	void *inner;

	*pointer = (void *)(size + 1);
	if (size && cudaMalloc(&inner, size - 1) != (cudaError_t)(size - 1))
		return -1;
	return (cudaError_t)size;
}

cudaError_t cudaFree(void *pointer)
{
	void *inner;

	return cudaMalloc(&inner, (size_t)pointer);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
	(void)from, (void)kind;
	if (!size)
		longjmp(*(jmp_buf *)to, 1);
	return cudaSuccess;
}

/* Leave cudaMemcpy by longjmp `times` times, each time from the same depth of the stack. */
int leave_by_longjmp(int times)
{
	jmp_buf buffer;
	volatile int left = 0;

	if (setjmp(buffer))
		left++;
	if (left < times)
		cudaMemcpy(&buffer, (void *)0, 0, cudaMemcpyDefault);
	return left;
}
