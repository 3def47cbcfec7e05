/*
 * NCCL without a device: the real binary interface; ranks are processes that meet in POSIX shared memory.
 *
 * As in the real one, a collective is put on its stream and the call returns at once; the wait for the other ranks
 * happens in stream order, and shows in the synchronisation of that stream. With NCCL_DOUBLE_BLOCKING=1 the call itself
 * waits, as old or grouped calls can.
 *
 * NCCL_DOUBLE_GB_PER_S  transfer rate (10)
 */
#define _GNU_SOURCE
#include "nccl.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define MAX_RANKS 64
#define MAX_SUMMED 1024 /* elements of a float32 sum that are really added */
#define TRANSFER_OVERHEAD_NS 20000.0
#define NAME_BYTES 64

struct meeting {
	atomic_int ready;
	pthread_barrier_t in, out;
	float box[MAX_RANKS][MAX_SUMMED];
};

struct ncclComm {
	int rank, ranks;
	struct meeting *meeting;
};

struct collective {
	struct ncclComm *comm;
	const void *send;
	void *receive;
	size_t count, bytes;
	int is_sum;
	cudaStream_t stream;
};

#define GROUP_MAX 256
static __thread int group_depth;
static __thread size_t grouped;
static __thread struct collective group[GROUP_MAX];

static int blocking(void)
{
	const char *text = getenv("NCCL_DOUBLE_BLOCKING");

	return text && *text == '1';
}

static void transfer(size_t bytes)
{
	const char *text = getenv("NCCL_DOUBLE_GB_PER_S");
	double ns = TRANSFER_OVERHEAD_NS + (double)bytes / (text ? atof(text) : 10.0);
	struct timespec t = {(time_t)(ns / 1e9), (long)((uint64_t)ns % 1000000000u)};

	while (nanosleep(&t, &t))
		;
}

static size_t size_of(ncclDataType_t type)
{
	static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};

	return (unsigned int)type < sizeof(bytes) / sizeof(*bytes) ? bytes[type] : 0;
}

/* All ranks meet, the data moves, all ranks go on. */
static void perform(struct collective *c)
{
	struct meeting *m = c->comm->meeting;
	int add = c->is_sum && c->count <= MAX_SUMMED;

	if (add)
		memcpy(m->box[c->comm->rank], c->send, c->count * sizeof(float));
	pthread_barrier_wait(&m->in);
	if (add) {
		float *out = c->receive;

		for (size_t i = 0; i < c->count; i++) {
			out[i] = 0;
			for (int r = 0; r < c->comm->ranks; r++)
				out[i] += m->box[r][i];
		}
	}
	transfer(c->bytes);
	pthread_barrier_wait(&m->out);
}

static void perform_and_free(void *argument)
{
	perform(argument);
	free(argument);
}

static ncclResult_t submit(const struct collective *c)
{
	struct collective *mine;

	if (blocking()) {
		struct collective now = *c;

		perform(&now);
		return ncclSuccess;
	}
	mine = malloc(sizeof(*mine));
	if (!mine)
		return ncclSystemError;
	*mine = *c;
	return cudaLaunchHostFunc(c->stream, perform_and_free, mine) ? ncclUnhandledCudaError : ncclSuccess;
}

static ncclResult_t collective(struct collective c, ncclDataType_t type)
{
	if (!c.comm || !size_of(type))
		return ncclInvalidArgument;
	if (!group_depth)
		return submit(&c);
	if (grouped == GROUP_MAX)
		return ncclInvalidUsage;
	group[grouped++] = c;
	return ncclSuccess;
}

ncclResult_t pncclGetVersion(int *version)
{
	*version = 23203;
	return ncclSuccess;
}

ncclResult_t pncclGetUniqueId(ncclUniqueId *id)
{
	static atomic_int made;

	if (getrandom(id->internal, sizeof(id->internal), 0) != (ssize_t)sizeof(id->internal))
		return ncclSystemError;
	snprintf(id->internal, NAME_BYTES, "/nccl-double-%d-%d", getpid(), atomic_fetch_add(&made, 1));
	return ncclSuccess;
}

static ncclResult_t join(ncclComm_t *out, int ranks, const ncclUniqueId *id, int rank)
{
	struct ncclComm *c;
	char name[NAME_BYTES];
	int fd;

	if (ranks < 1 || ranks > MAX_RANKS || rank < 0 || rank >= ranks)
		return ncclInvalidArgument;
	memcpy(name, id->internal, sizeof(name));
	name[sizeof(name) - 1] = '\0';
	c = calloc(1, sizeof(*c));
	if (!c)
		return ncclSystemError;
	c->rank = rank;
	c->ranks = ranks;
	fd = shm_open(name, O_CREAT | O_RDWR, 0600);
	if (fd < 0 || ftruncate(fd, sizeof(*c->meeting))) {
		free(c);
		return ncclSystemError;
	}
	c->meeting = mmap(NULL, sizeof(*c->meeting), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (c->meeting == MAP_FAILED) {
		free(c);
		return ncclSystemError;
	}
	if (rank == 0) {
		pthread_barrierattr_t shared;

		pthread_barrierattr_init(&shared);
		pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
		pthread_barrier_init(&c->meeting->in, &shared, (unsigned int)ranks);
		pthread_barrier_init(&c->meeting->out, &shared, (unsigned int)ranks);
		atomic_store(&c->meeting->ready, 1);
	}
	while (!atomic_load(&c->meeting->ready))
		usleep(200);
	pthread_barrier_wait(&c->meeting->in);
	if (rank == 0)
		shm_unlink(name);
	*out = c;
	return ncclSuccess;
}

ncclResult_t pncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank)
{
	return join(comm, ranks, &id, rank);
}

ncclResult_t pncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
	ncclResult_t error = config ? join(comm, ranks, &id, rank) : ncclInvalidArgument;

	return error;
}

static ncclResult_t end(ncclComm_t comm)
{
	if (!comm)
		return ncclInvalidArgument;
	munmap(comm->meeting, sizeof(*comm->meeting));
	free(comm);
	return ncclSuccess;
}

ncclResult_t pncclCommDestroy(ncclComm_t comm)
{
	return end(comm);
}

ncclResult_t pncclCommAbort(ncclComm_t comm)
{
	ncclResult_t error = end(comm);

	return error;
}

ncclResult_t pncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
			    ncclComm_t comm, cudaStream_t stream)
{
	int is_sum = type == ncclFloat32 && op == ncclSum;

	return collective((struct collective){comm, send, receive, count, count * size_of(type), is_sum, stream}, type);
}

ncclResult_t pncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type, ncclComm_t comm,
			    cudaStream_t stream)
{
	return collective((struct collective){comm, send, receive, count, count * size_of(type), 0, stream}, type);
}

ncclResult_t pncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
				ncclComm_t comm, cudaStream_t stream)
{
	(void)op;
	return collective((struct collective){comm, send, receive, count, count * size_of(type), 0, stream}, type);
}

ncclResult_t pncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
			    cudaStream_t stream)
{
	(void)root;
	return collective((struct collective){comm, send, receive, count, count * size_of(type), 0, stream}, type);
}

ncclResult_t pncclGroupStart(void)
{
	group_depth++;
	return ncclSuccess;
}

ncclResult_t pncclGroupEnd(void)
{
	ncclResult_t error = ncclSuccess;

	if (group_depth == 0)
		return ncclInvalidUsage;
	if (--group_depth)
		return ncclSuccess;
	for (size_t i = 0; i < grouped && !error; i++)
		error = submit(&group[i]);
	grouped = 0;
	return error;
}

/* As in the real library, each public name is a weak alias at the same address. */
#define PUBLIC(name) __typeof__(p##name) name __attribute__((weak, alias("p" #name)))
PUBLIC(ncclGetVersion);
PUBLIC(ncclGetUniqueId);
PUBLIC(ncclCommInitRank);
PUBLIC(ncclCommInitRankConfig);
PUBLIC(ncclCommDestroy);
PUBLIC(ncclCommAbort);
PUBLIC(ncclAllReduce);
PUBLIC(ncclAllGather);
PUBLIC(ncclReduceScatter);
PUBLIC(ncclBroadcast);
PUBLIC(ncclGroupStart);
PUBLIC(ncclGroupEnd);
