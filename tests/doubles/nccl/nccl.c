/*
 * NCCL without a device: the real binary interface; ranks are processes that meet in POSIX shared memory.
 *
 * As in the real one, a collective is put on its stream and the call returns at once; the wait for the other ranks
 * happens in stream order, and shows in the synchronisation of that stream. With NCCL_DOUBLE_BLOCKING=1 the call itself
 * waits, as old or grouped calls can.
 *
 * NCCL_DOUBLE_GB_PER_S  transfer rate (10)
 * NCCL_DOUBLE_ADDRESS   IPv4 address on which rank 0 listens: the data of a collective then go to it over TCP
 * NCCL_DOUBLE_PORT      and its port (29500)
 */
#define _GNU_SOURCE
#include "nccl.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
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
	int sockets[MAX_RANKS]; /* of rank 0 to each other rank; of those, the first, to rank 0 */
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

static const char *address(void)
{
	return getenv("NCCL_DOUBLE_ADDRESS");
}

static int connected(const struct sockaddr_in *to, int rank)
{
	static int listener = -1;
	int fd, one = 1;

	if (rank) {
		do {
			fd = socket(AF_INET, SOCK_STREAM, 0);
			if (!connect(fd, (const struct sockaddr *)to, sizeof(*to)))
				break;
			close(fd);
			fd = -1;
		} while (!usleep(1000));
	} else {
		if (listener < 0) {
			listener = socket(AF_INET, SOCK_STREAM, 0);
			setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
			if (bind(listener, (const struct sockaddr *)to, sizeof(*to)) || listen(listener, MAX_RANKS))
				return -1;
		}
		fd = accept(listener, NULL, NULL);
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static int connect_ranks(struct ncclComm *c)
{
	const char *port = getenv("NCCL_DOUBLE_PORT");
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(port ? atoi(port) : 29500))};

	if (!address())
		return 0;
	if (inet_pton(AF_INET, address(), &to.sin_addr) != 1)
		return -1;
	for (int i = 0; i < (c->rank ? 1 : c->ranks - 1); i++) {
		c->sockets[i] = connected(&to, c->rank);
		if (c->sockets[i] < 0)
			return -1;
	}
	return 0;
}

static void move(int fd, size_t bytes, ssize_t (*with)(int, void *, size_t))
{
	static char data[65536];

	while (bytes) {
		ssize_t moved = with(fd, data, bytes < sizeof(data) ? bytes : sizeof(data));

		if (moved <= 0)
			abort();
		bytes -= (size_t)moved;
	}
}

static ssize_t give(int fd, void *data, size_t bytes)
{
	return send(fd, data, bytes, MSG_NOSIGNAL);
}

static ssize_t take(int fd, void *data, size_t bytes)
{
	return recv(fd, data, bytes, 0);
}

/* Every rank gives its data to rank 0, which says when it has them all. */
static void exchange(struct ncclComm *c, size_t bytes)
{
	if (!address())
		return;
	if (c->rank) {
		move(c->sockets[0], bytes, give);
		move(c->sockets[0], 1, take);
		return;
	}
	for (int i = 0; i < c->ranks - 1; i++)
		move(c->sockets[i], bytes, take);
	for (int i = 0; i < c->ranks - 1; i++)
		move(c->sockets[i], 1, give);
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
	exchange(c->comm, c->bytes);
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
	unsigned int drawn; /* what a process that was killed left behind may have our number */

	if (getrandom(id->internal, sizeof(id->internal), 0) != (ssize_t)sizeof(id->internal))
		return ncclSystemError;
	memcpy(&drawn, id->internal, sizeof(drawn));
	snprintf(id->internal, NAME_BYTES, "/nccl-double-%d-%d-%x", getpid(), atomic_fetch_add(&made, 1), drawn);
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
	if (connect_ranks(c))
		return ncclSystemError;
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
