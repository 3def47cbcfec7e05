/*
 * Calls every probed function with arguments that are known: what was passed, what came back, and when, one JSON line
 * per call. Libraries are loaded by path, so that the doubles and NVIDIA's own can be used; what a library lacks is left
 * out. Without a driver NVIDIA's runtime refuses everything with 35, which is just as good here.
 *
 * calls --out FILE [--cudart PATH] [--nccl PATH] [--rounds 3] [--threads 1] [--pause-file FILE] [--tail-ms 0]
 */
#include "truth.h"
#include "nccl.h"

#include <dlfcn.h>

static FILE *truth;
static pthread_mutex_t truth_lock = PTHREAD_MUTEX_INITIALIZER;
static void *cudart, *nccl;
static long rounds;

#define FIND(library, name) __typeof__(&name) call_##name = library ? (__typeof__(&name))dlsym(library, #name) : NULL

/* Make the call where the library has it, then write down the op, the times and the arguments. */
#define CALL(name, arguments, ...)                                                                            \
	do {                                                                                                  \
		if (call_##name) {                                                                            \
			uint64_t before = boottime_ns();                                                      \
			int code = (int)call_##name arguments;                                                \
			uint64_t after = boottime_ns();                                                       \
			pthread_mutex_lock(&truth_lock);                                                      \
			fprintf(truth, "{\"op\":\"" #name "\",\"pid\":%d,\"tid\":%d,\"return_code\":%d,"      \
				"\"before_ns\":%llu,\"after_ns\":%llu,\"values\":{", getpid(), thread_id(), code, \
				(unsigned long long)before, (unsigned long long)after);                       \
			__VA_ARGS__;                                                                          \
			fprintf(truth, "}}\n");                                                               \
			pthread_mutex_unlock(&truth_lock);                                                    \
		}                                                                                             \
	} while (0)

#define FIRST(name, value) fprintf(truth, "\"" name "\":%llu", (unsigned long long)(value))
#define MORE(name, value) fprintf(truth, ",\"" name "\":%llu", (unsigned long long)(value))
#define COMMA fprintf(truth, ",")
#define NOTHING (void)0

static void cuda_calls(unsigned int round)
{
	FIND(cudart, cudaMalloc);
	FIND(cudart, cudaMallocManaged);
	FIND(cudart, cudaMallocAsync);
	FIND(cudart, cudaMallocAsync_ptsz);
	FIND(cudart, cudaMallocFromPoolAsync);
	FIND(cudart, cudaMallocFromPoolAsync_ptsz);
	FIND(cudart, cudaMallocHost);
	FIND(cudart, cudaHostAlloc);
	FIND(cudart, cudaFree);
	FIND(cudart, cudaFreeAsync);
	FIND(cudart, cudaFreeAsync_ptsz);
	FIND(cudart, cudaFreeHost);
	FIND(cudart, cudaMemcpy);
	FIND(cudart, cudaMemcpy_ptds);
	FIND(cudart, cudaMemcpyAsync);
	FIND(cudart, cudaMemcpyAsync_ptsz);
	FIND(cudart, cudaLaunchKernel);
	FIND(cudart, cudaLaunchKernel_ptsz);
	FIND(cudart, cudaStreamSynchronize);
	FIND(cudart, cudaStreamSynchronize_ptsz);
	FIND(cudart, cudaDeviceSynchronize);
	FIND(cudart, cudaEventCreate);
	FIND(cudart, cudaEventRecord);
	FIND(cudart, cudaEventSynchronize);
	FIND(cudart, cudaEventDestroy);
	FIND(cudart, cudaStreamCreate);
	FIND(cudart, cudaStreamDestroy);
	size_t size = 4096 + 16u * round;
	char from[8192], to[8192];
	dim3 grid = {1 + round, 2 + round, 3 + round}, block = {32, 2 + round, 1 + round};
	cudaStream_t stream = NULL;
	cudaEvent_t event = NULL;
	cudaMemPool_t pool = NULL;
	void *device = NULL, *managed = NULL, *pooled[4] = {NULL}, *pinned = NULL, *mapped = NULL;

	memset(from, (int)round, sizeof(from));
	CALL(cudaStreamCreate, (&stream), if (!code) FIRST("stream", stream));
	CALL(cudaMalloc, (&device, size), FIRST("size_bytes", size); if (!code) MORE("device_pointer", device));
	CALL(cudaMallocManaged, (&managed, 3 * size, 1), FIRST("size_bytes", 3 * size); MORE("flags", 1);
	     if (!code) MORE("device_pointer", managed));
#define POOLED(name, place, ...)                                                                              \
	CALL(name, (&pooled[place], size + place, __VA_ARGS__), FIRST("size_bytes", size + place);            \
	     MORE("stream", stream); if (!code) MORE("device_pointer", pooled[place]))
	POOLED(cudaMallocAsync, 0, stream);
	POOLED(cudaMallocAsync_ptsz, 1, stream);
#define FROM_POOL(name, place)                                                                                \
	CALL(name, (&pooled[place], size + place, pool, stream), FIRST("size_bytes", size + place);           \
	     MORE("handle", pool); MORE("stream", stream); if (!code) MORE("device_pointer", pooled[place]))
	FROM_POOL(cudaMallocFromPoolAsync, 2);
	FROM_POOL(cudaMallocFromPoolAsync_ptsz, 3);
	CALL(cudaMallocHost, (&pinned, 5 * size), FIRST("size_bytes", 5 * size); if (!code) MORE("device_pointer", pinned));
	CALL(cudaHostAlloc, (&mapped, 7 * size, 2), FIRST("size_bytes", 7 * size); MORE("flags", 2);
	     if (!code) MORE("device_pointer", mapped));
	CALL(cudaMemcpy, (to, from, size, cudaMemcpyHostToDevice), FIRST("size_bytes", size);
	     MORE("device_pointer", to); MORE("source_pointer", from); MORE("direction", 1));
	CALL(cudaMemcpy_ptds, (to, from, size, cudaMemcpyDeviceToHost), FIRST("size_bytes", size);
	     MORE("device_pointer", to); MORE("source_pointer", from); MORE("direction", 2));
	CALL(cudaMemcpyAsync, (to, from, size, cudaMemcpyDeviceToDevice, stream), FIRST("size_bytes", size);
	     MORE("device_pointer", to); MORE("source_pointer", from); MORE("direction", 3); MORE("stream", stream));
	CALL(cudaMemcpyAsync_ptsz, (to, from, size, cudaMemcpyDefault, stream), FIRST("size_bytes", size);
	     MORE("device_pointer", to); MORE("source_pointer", from); MORE("direction", 4); MORE("stream", stream));
#define LAUNCH(name)                                                                                          \
	CALL(name, ((void *)cuda_calls, grid, block, NULL, 1024u + round, stream), FIRST("function", cuda_calls); \
	     MORE("grid_x", grid.x); MORE("grid_y", grid.y); MORE("grid_z", grid.z); MORE("block_x", block.x);   \
	     MORE("block_y", block.y); MORE("block_z", block.z); MORE("shared_bytes", 1024u + round);            \
	     MORE("stream", stream))
	LAUNCH(cudaLaunchKernel);
	LAUNCH(cudaLaunchKernel_ptsz);
	CALL(cudaStreamSynchronize, (stream), FIRST("stream", stream));
	CALL(cudaStreamSynchronize_ptsz, (stream), FIRST("stream", stream));
	CALL(cudaEventCreate, (&event), if (!code) FIRST("handle", event));
	if (event)
		CALL(cudaEventRecord, (event, stream), FIRST("handle", event); MORE("stream", stream));
	CALL(cudaEventSynchronize, (event), FIRST("handle", event));
	if (event)
		CALL(cudaEventDestroy, (event), FIRST("handle", event));
	CALL(cudaDeviceSynchronize, (), NOTHING);
	CALL(cudaFree, (device), FIRST("device_pointer", device));
	CALL(cudaFree, (managed), FIRST("device_pointer", managed));
	for (int i = 0; i < 4; i += 2) {
		CALL(cudaFreeAsync, (pooled[i], stream), FIRST("device_pointer", pooled[i]); MORE("stream", stream));
		CALL(cudaFreeAsync_ptsz, (pooled[i + 1], stream), FIRST("device_pointer", pooled[i + 1]);
		     MORE("stream", stream));
	}
	CALL(cudaFreeHost, (pinned), FIRST("device_pointer", pinned));
	CALL(cudaFreeHost, (mapped), FIRST("device_pointer", mapped));
	if (stream)
		CALL(cudaStreamDestroy, (stream), FIRST("stream", stream));
}

static void print_id(const ncclUniqueId *id)
{
	fprintf(truth, "\"unique_id\":\"");
	for (size_t i = 0; i < sizeof(id->internal); i++)
		fprintf(truth, "%02x", (unsigned char)id->internal[i]);
	fprintf(truth, "\"");
}

#define COMM(comm) FIRST("comm_handle", comm)

static void nccl_calls(unsigned int round)
{
	FIND(nccl, ncclGetUniqueId);
	FIND(nccl, ncclCommInitRank);
	FIND(nccl, ncclCommInitRankConfig);
	FIND(nccl, ncclCommDestroy);
	FIND(nccl, ncclCommAbort);
	FIND(nccl, ncclAllReduce);
	FIND(nccl, ncclAllGather);
	FIND(nccl, ncclReduceScatter);
	FIND(nccl, ncclBroadcast);
	FIND(cudart, cudaDeviceSynchronize);
	ncclConfig_t config = {.size = sizeof(config), .magic = 0xcafebeef, .version = 21700, .blocking = 1};
	ncclDataType_t type = (ncclDataType_t)(round % 12);
	size_t count = 16 + round;
	char from[8192] = {0}, to[8192];
	ncclUniqueId id;
	ncclComm_t comm = NULL;

	if (!call_ncclGetUniqueId)
		return;
	CALL(ncclGetUniqueId, (&id), print_id(&id));
	if (round % 2)
		CALL(ncclCommInitRankConfig, (&comm, 1, id, 0, &config), FIRST("nranks", 1); MORE("rank", 0); COMMA; print_id(&id);
		     if (!code) MORE("comm_handle", comm));
	else
		CALL(ncclCommInitRank, (&comm, 1, id, 0), FIRST("nranks", 1); MORE("rank", 0); COMMA; print_id(&id);
		     if (!code) MORE("comm_handle", comm));
	CALL(ncclAllReduce, (from, to, count, type, ncclMax, comm, NULL), COMM(comm); MORE("count", count);
	     MORE("datatype", type); MORE("reduce_op", ncclMax); MORE("stream", 0));
	CALL(ncclAllGather, (from, to, count, type, comm, NULL), COMM(comm); MORE("count", count);
	     MORE("datatype", type); MORE("stream", 0));
	CALL(ncclReduceScatter, (from, to, count, type, ncclMin, comm, NULL), COMM(comm); MORE("count", count);
	     MORE("datatype", type); MORE("reduce_op", ncclMin); MORE("stream", 0));
	CALL(ncclBroadcast, (from, to, count, type, 0, comm, NULL), COMM(comm); MORE("count", count);
	     MORE("datatype", type); MORE("root", 0); MORE("stream", 0));
	if (call_cudaDeviceSynchronize)
		CALL(cudaDeviceSynchronize, (), NOTHING);
	if (round % 3 == 2)
		CALL(ncclCommAbort, (comm), COMM(comm));
	else
		CALL(ncclCommDestroy, (comm), COMM(comm));
}

static void *work(void *argument)
{
	(void)argument;
	for (long round = 0; round < rounds; round++) {
		if (cudart)
			cuda_calls((unsigned int)round);
		if (nccl)
			nccl_calls((unsigned int)round);
	}
	return NULL;
}

static void *load(const char *path)
{
	void *library = path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;

	if (path && !library)
		die("dlopen", dlerror());
	return library;
}

int main(int argc, char **argv)
{
	long threads = number(argc, argv, "threads", 1);
	pthread_t thread[64];

	rounds = number(argc, argv, "rounds", 3);
	truth = fopen(option(argc, argv, "out", "calls.jsonl"), "w");
	if (!truth || threads < 1 || threads > 64)
		die("usage", "calls --out FILE [--cudart PATH] [--nccl PATH] [--rounds N] [--threads 1-64]");
	cudart = load(option(argc, argv, "cudart", NULL));
	nccl = load(option(argc, argv, "nccl", NULL));
	if (option(argc, argv, "pause-file", NULL))
		pause_for("start", option(argc, argv, "pause-file", NULL));
	for (long i = 0; i < threads; i++) {
		if (pthread_create(&thread[i], NULL, work, NULL))
			die("pthread_create", NULL);
	}
	for (long i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	fclose(truth);
	nap_us((uint64_t)number(argc, argv, "tail-ms", 0) * 1000u);
	return 0;
}
