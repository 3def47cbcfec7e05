/*
 * A CUDA runtime that does nothing, fast, and a storm of calls to it whose truth is written down: one JSON line per
 * thread and function with the number of calls, of bytes, of refusals, and the time that they took from outside.
 */
#include "../workload/truth.h"
#include "cuda_runtime_api.h"

enum { COPY, SYNCHRONISE, QUERY, WAIT, ALLOCATE, FUNCTIONS };
static const char *const NAMES[] = {"cudaMemcpyAsync", "cudaStreamSynchronize", "cudaStreamQuery",
				    "cudaEventSynchronize", "cudaMalloc"};

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
	(void)to, (void)from, (void)kind, (void)stream;
	return size % 7 ? cudaSuccess : (cudaError_t)1;
}

__attribute__((noinline)) cudaError_t cudaStreamQuery(cudaStream_t stream)
{
	return stream ? (cudaError_t)600 : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
	return cudaStreamQuery(stream);
}

/* The event is how long it takes. */
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
	spin_us((uint64_t)(uintptr_t)event);
	return cudaSuccess;
}

cudaError_t cudaMalloc(void **pointer, size_t size)
{
	*pointer = (void *)size;
	return cudaSuccess;
}

struct work {
	pthread_t thread;
	long calls, slow_us;
	int tid;
	uint64_t count[FUNCTIONS], bytes[FUNCTIONS], errors[FUNCTIONS], outside_ns[FUNCTIONS];
};

#define TIMED(which, size, call)                                            \
	do {                                                                \
		uint64_t begin = boottime_ns();                             \
		int refused = call;                                         \
		w->outside_ns[which] += boottime_ns() - begin;              \
		w->count[which]++;                                          \
		w->bytes[which] += size;                                    \
		w->errors[which] += refused != 0;                           \
	} while (0)

static void *work(void *argument)
{
	struct work *w = argument;
	void *pointer;

	w->tid = thread_id();
	for (long i = 0; i < w->calls; i++) {
		TIMED(COPY, (uint64_t)i % 1000, cudaMemcpyAsync(NULL, NULL, (size_t)i % 1000, cudaMemcpyDefault, NULL));
		if (i % 8 == 0) { /* the query inside takes no longer than the synchronisation does */
			TIMED(SYNCHRONISE, 0, cudaStreamSynchronize((cudaStream_t)(i % 16)));
			w->count[QUERY]++;
			w->errors[QUERY] += i % 16 != 0;
		}
		if (i % 100 == 0)
			TIMED(ALLOCATE, 64, cudaMalloc(&pointer, 64));
		if (i % 1000 == 999)
			TIMED(WAIT, 0, cudaEventSynchronize((cudaEvent_t)w->slow_us));
	}
	w->outside_ns[QUERY] = w->outside_ns[SYNCHRONISE];
	return NULL;
}

/* Run `threads` of them at once and write the truth to a file. */
int storm(int threads, long calls, long slow_us, const char *path)
{
	static struct work works[16];
	FILE *out = fopen(path, "w");

	if (!out || threads > 16)
		return 1;
	for (int i = 0; i < threads; i++) {
		works[i] = (struct work){.calls = calls, .slow_us = slow_us};
		if (pthread_create(&works[i].thread, NULL, work, &works[i]))
			return 1;
	}
	for (int i = 0; i < threads; i++) {
		struct work *w = &works[i];

		pthread_join(w->thread, NULL);
		for (int f = 0; f < FUNCTIONS; f++)
			fprintf(out, "{\"tid\":%d,\"op\":\"%s\",\"count\":%lu,\"size_bytes\":%lu,\"errors\":%lu,"
				"\"outside_ns\":%lu}\n", w->tid, NAMES[f], w->count[f], w->bytes[f], w->errors[f],
				w->outside_ns[f]);
	}
	return fclose(out);
}
