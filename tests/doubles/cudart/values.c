/* A CUDA runtime that believes what it is told: for values that lie behind pointers, or are products. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

int cudaMallocPitch(void **pointer, size_t *pitch, size_t width, size_t height)
{
	if (!height)
		pthread_exit(NULL);
	if (width == 13)
		return 2;
	*pointer = (void *)0x1000;
	*pitch = (width + 511) / 512 * 512;
	return 0;
}

int cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind)
{
	(void)to, (void)to_pitch, (void)from, (void)from_pitch, (void)width, (void)height, (void)kind;
	return 0;
}

int cudaMemcpy3D(const void *parameters)
{
	(void)parameters;
	return 0;
}

static void *end_in_a_call(void *unused)
{
	void *pointer;
	size_t pitch;

	(void)unused;
	cudaMallocPitch(&pointer, &pitch, 100, 0);
	return NULL;
}

int thread_that_ends_in_a_call(void)
{
	pthread_t thread;

	return pthread_create(&thread, NULL, end_in_a_call, NULL) || pthread_join(thread, NULL);
}
