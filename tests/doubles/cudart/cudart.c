/*
 * A CUDA runtime without a device: the real binary interface over host memory. Every stream is a queue with a thread of
 * its own, so that work is asynchronous and a synchronisation waits for the work of its stream only, as it really does.
 *
 * DOUBLE_CUDA_KERNEL_US  how long a kernel runs (200)
 * DOUBLE_CUDA_MEMORY_MB  memory of the device (81920)
 */
#define _GNU_SOURCE
#include "cuda_runtime_api.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COPY_OVERHEAD_NS 5000u /* of an asynchronous copy */
#define COPY_BYTES_PER_NS 25u  /* 25 GB/s, a PCIe 4.0 x16 link */

struct work {
	struct work *next;
	uint64_t sleep_ns;
	cudaHostFn_t function;
	void *argument;
};

struct CUstream_st {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct work *first, *last;
	uint64_t queued, done;
	int ending;
	int watched; /* by device synchronisations, which keep it from being freed */
	pthread_t thread;
	struct CUstream_st *next;
};

enum kind { DEVICE, MANAGED, HOST };

struct block {
	struct block *next;
	void *memory;
	size_t size;
	enum kind kind;
};

/* The work of a stream up to the moment the event was recorded. */
struct CUevent_st {
	struct CUstream_st *stream;
	uint64_t target;
};

static pthread_mutex_t streams_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unwatched = PTHREAD_COND_INITIALIZER;
static struct CUstream_st *streams;
static pthread_once_t default_once = PTHREAD_ONCE_INIT;
static struct CUstream_st *default_stream;

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static size_t memory_used;

static __thread cudaError_t last_error;

static uint64_t setting(const char *name, uint64_t fallback)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : fallback;
}

static void sleep_ns(uint64_t ns)
{
	struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

	while (nanosleep(&t, &t))
		;
}

static cudaError_t result(cudaError_t error)
{
	if (error)
		last_error = error;
	return error;
}

static void *run_stream(void *argument)
{
	struct CUstream_st *s = argument;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		while (!s->first && !s->ending)
			pthread_cond_wait(&s->changed, &s->lock);
		if (!s->first)
			break;
		struct work *w = s->first;
		s->first = w->next;
		if (!s->first)
			s->last = NULL;
		pthread_mutex_unlock(&s->lock);
		if (w->sleep_ns)
			sleep_ns(w->sleep_ns);
		if (w->function)
			w->function(w->argument);
		free(w);
		pthread_mutex_lock(&s->lock);
		s->done++;
		pthread_cond_broadcast(&s->changed);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static struct CUstream_st *new_stream(void)
{
	struct CUstream_st *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	if (pthread_create(&s->thread, NULL, run_stream, s)) {
		free(s);
		return NULL;
	}
	pthread_mutex_lock(&streams_lock);
	s->next = streams;
	streams = s;
	pthread_mutex_unlock(&streams_lock);
	return s;
}

static void make_default_stream(void)
{
	default_stream = new_stream();
}

static struct CUstream_st *stream_of(cudaStream_t stream)
{
	if (stream)
		return stream;
	pthread_once(&default_once, make_default_stream);
	return default_stream;
}

static cudaError_t enqueue(cudaStream_t stream, uint64_t ns, cudaHostFn_t function, void *argument)
{
	struct CUstream_st *s = stream_of(stream);
	struct work *w = calloc(1, sizeof(*w));

	if (!s || !w) {
		free(w);
		return result(cudaErrorMemoryAllocation);
	}
	w->sleep_ns = ns;
	w->function = function;
	w->argument = argument;
	pthread_mutex_lock(&s->lock);
	if (s->last)
		s->last->next = w;
	else
		s->first = w;
	s->last = w;
	s->queued++;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return result(cudaSuccess);
}

static uint64_t queued_on(struct CUstream_st *s)
{
	uint64_t target;

	pthread_mutex_lock(&s->lock);
	target = s->queued;
	pthread_mutex_unlock(&s->lock);
	return target;
}

static cudaError_t wait_until(struct CUstream_st *s, uint64_t target)
{
	pthread_mutex_lock(&s->lock);
	while (s->done < target)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
	return result(cudaSuccess);
}

static cudaError_t wait_for(struct CUstream_st *s)
{
	return s ? wait_until(s, queued_on(s)) : result(cudaErrorMemoryAllocation);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
	*version = 13000;
	return result(cudaSuccess);
}

cudaError_t cudaGetDeviceCount(int *count)
{
	*count = 1;
	return result(cudaSuccess);
}

cudaError_t cudaSetDevice(int device)
{
	return result(device ? cudaErrorInvalidDevice : cudaSuccess);
}

/* Memory of the device is limited; managed memory may be more than the device has, and host memory is the host's. */
static cudaError_t allocate(void **pointer, size_t size, enum kind kind)
{
	size_t limit = setting("DOUBLE_CUDA_MEMORY_MB", 81920) << 20;
	struct block *b = calloc(1, sizeof(*b));
	cudaError_t error = cudaErrorMemoryAllocation;

	pthread_mutex_lock(&memory_lock);
	if (b && (kind != DEVICE || (size <= limit && memory_used <= limit - size))) {
		b->memory = malloc(size ? size : 1);
		if (b->memory) {
			b->size = size;
			b->kind = kind;
			b->next = blocks;
			blocks = b;
			memory_used += kind == DEVICE ? size : 0;
			*pointer = b->memory;
			error = cudaSuccess;
		}
	}
	pthread_mutex_unlock(&memory_lock);
	if (error)
		free(b);
	return result(error);
}

static cudaError_t release(void *pointer, int of_host)
{
	cudaError_t error = pointer ? cudaErrorInvalidValue : cudaSuccess;

	pthread_mutex_lock(&memory_lock);
	for (struct block **at = &blocks; *at; at = &(*at)->next) {
		struct block *b = *at;

		if (b->memory != pointer || (b->kind == HOST) != of_host)
			continue;
		*at = b->next;
		memory_used -= b->kind == DEVICE ? b->size : 0;
		free(b->memory);
		free(b);
		error = cudaSuccess;
		break;
	}
	pthread_mutex_unlock(&memory_lock);
	return result(error);
}

cudaError_t cudaMalloc(void **pointer, size_t size)
{
	return allocate(pointer, size, DEVICE);
}

cudaError_t cudaMallocManaged(void **pointer, size_t size, unsigned int flags)
{
	return flags == 1 || flags == 2 ? allocate(pointer, size, MANAGED) : result(cudaErrorInvalidValue);
}

cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t stream)
{
	enqueue(stream, 0, NULL, NULL);
	return allocate(pointer, size, DEVICE);
}

cudaError_t cudaMallocAsync_ptsz(void **pointer, size_t size, cudaStream_t stream)
{
	cudaError_t error = allocate(pointer, size, DEVICE);

	enqueue(stream, 0, NULL, NULL);
	return result(error);
}

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t size, cudaMemPool_t pool, cudaStream_t stream)
{
	(void)pool;
	enqueue(stream, 0, NULL, NULL);
	return allocate(pointer, size, DEVICE);
}

cudaError_t cudaMallocFromPoolAsync_ptsz(void **pointer, size_t size, cudaMemPool_t pool, cudaStream_t stream)
{
	cudaError_t error = allocate(pointer, size, DEVICE);

	(void)pool;
	enqueue(stream, 0, NULL, NULL);
	return result(error);
}

cudaError_t cudaMallocHost(void **pointer, size_t size)
{
	return allocate(pointer, size, HOST);
}

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned int flags)
{
	return flags < 8 ? allocate(pointer, size, HOST) : result(cudaErrorInvalidValue);
}

cudaError_t cudaFree(void *pointer)
{
	return release(pointer, 0);
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream)
{
	enqueue(stream, 0, NULL, NULL);
	return release(pointer, 0);
}

cudaError_t cudaFreeAsync_ptsz(void *pointer, cudaStream_t stream)
{
	cudaError_t error = release(pointer, 0);

	enqueue(stream, 0, NULL, NULL);
	return result(error);
}

cudaError_t cudaFreeHost(void *pointer)
{
	return release(pointer, 1);
}

static cudaError_t copy(void *to, const void *from, size_t size)
{
	if (size)
		memcpy(to, from, size);
	return result(cudaSuccess);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
	(void)kind;
	wait_for(stream_of(NULL));
	return copy(to, from, size);
}

cudaError_t cudaMemcpy_ptds(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
	(void)kind;
	return copy(to, from, size);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
	(void)kind;
	copy(to, from, size);
	return enqueue(stream, COPY_OVERHEAD_NS + size / COPY_BYTES_PER_NS, NULL, NULL);
}

cudaError_t cudaMemcpyAsync_ptsz(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
	(void)kind;
	enqueue(stream, COPY_OVERHEAD_NS + size / COPY_BYTES_PER_NS, NULL, NULL);
	return copy(to, from, size);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
	*stream = new_stream();
	return result(*stream ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
	if (!stream)
		return result(cudaErrorInvalidValue);
	pthread_mutex_lock(&streams_lock);
	for (struct CUstream_st **at = &streams; *at; at = &(*at)->next) {
		if (*at == stream) {
			*at = stream->next;
			break;
		}
	}
	pthread_mutex_unlock(&streams_lock);
	pthread_mutex_lock(&stream->lock);
	stream->ending = 1;
	pthread_cond_broadcast(&stream->changed);
	pthread_mutex_unlock(&stream->lock);
	pthread_join(stream->thread, NULL);
	pthread_mutex_lock(&streams_lock);
	while (stream->watched)
		pthread_cond_wait(&unwatched, &streams_lock);
	pthread_mutex_unlock(&streams_lock);
	free(stream);
	return result(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
	return wait_for(stream_of(stream));
}

cudaError_t cudaStreamSynchronize_ptsz(cudaStream_t stream)
{
	cudaError_t error = wait_for(stream_of(stream));

	return result(error);
}

cudaError_t cudaDeviceSynchronize(void)
{
	struct CUstream_st *all[256];
	size_t count = 0;

	pthread_mutex_lock(&streams_lock);
	for (struct CUstream_st *s = streams; s && count < 256; s = s->next)
		all[count++] = s;
	for (size_t i = 0; i < count; i++)
		all[i]->watched++;
	pthread_mutex_unlock(&streams_lock);
	for (size_t i = 0; i < count; i++)
		wait_for(all[i]);
	pthread_mutex_lock(&streams_lock);
	for (size_t i = 0; i < count; i++)
		all[i]->watched--;
	pthread_cond_broadcast(&unwatched);
	pthread_mutex_unlock(&streams_lock);
	return result(cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
	*event = calloc(1, sizeof(**event));
	return result(*event ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
	struct CUstream_st *s = stream_of(stream);

	if (!event || !s)
		return result(cudaErrorInvalidValue);
	event->stream = s;
	event->target = queued_on(s);
	return result(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
	if (!event)
		return result(cudaErrorInvalidValue);
	return event->stream ? wait_until(event->stream, event->target) : result(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
	free(event);
	return result(event ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream)
{
	(void)function, (void)grid, (void)block, (void)arguments, (void)shared;
	return enqueue(stream, setting("DOUBLE_CUDA_KERNEL_US", 200) * 1000, NULL, NULL);
}

cudaError_t cudaLaunchKernel_ptsz(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream)
{
	cudaError_t error;

	(void)function, (void)grid, (void)block, (void)arguments, (void)shared;
	error = enqueue(stream, setting("DOUBLE_CUDA_KERNEL_US", 200) * 1000, NULL, NULL);
	return result(error);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
	return enqueue(stream, 0, function, argument);
}

cudaError_t cudaGetLastError(void)
{
	cudaError_t error = last_error;

	last_error = cudaSuccess;
	return error;
}
