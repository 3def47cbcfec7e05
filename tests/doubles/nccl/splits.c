/*
 * An NCCL that only makes communicators: from an id, from other communicators, and all at once. A communicator knows its
 * rank and size, and nothing is ever sent.
 */
#include "nccl.h"

#include <stdlib.h>

struct ncclComm {
	int rank, ranks;
};

/* Called by a collective where the process has loaded the driver double. */
__attribute__((weak)) int cuMemFree_v2(unsigned long long pointer);

static ncclComm_t make(int rank, int ranks)
{
	ncclComm_t comm = malloc(sizeof(*comm));

	*comm = (struct ncclComm){rank, ranks};
	return comm;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank)
{
	(void)id;
	*comm = make(rank, ranks);
	return ncclSuccess;
}

/* One rank of each colour: enough to tell the new communicators apart. */
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out, ncclConfig_t *config)
{
	(void)comm, (void)key, (void)config;
	*out = color == -1 ? NULL : make(0, 1);
	return ncclSuccess;
}

ncclResult_t ncclCommShrink(ncclComm_t comm, int *excluded, int count, ncclComm_t *out, ncclConfig_t *config, int flags)
{
	(void)excluded, (void)count, (void)config;
	if (flags > 1)
		return ncclInvalidArgument;
	*out = make(comm->rank, comm->ranks);
	return ncclSuccess;
}

/* Ranks that are in the communicator already pass -1. */
ncclResult_t ncclCommGrow(ncclComm_t comm, int ranks, const ncclUniqueId *id, int rank, ncclComm_t *out,
			  ncclConfig_t *config)
{
	(void)id, (void)config;
	*out = make(rank < 0 ? comm->rank : rank, ranks);
	return ncclSuccess;
}

ncclResult_t ncclCommInitAll(ncclComm_t *comms, int count, const int *devices)
{
	(void)devices;
	for (int i = 0; i < count; i++)
		comms[i] = make(i, count);
	return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank)
{
	*rank = comm->rank;
	return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count)
{
	*count = comm->ranks;
	return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
			   ncclComm_t comm, cudaStream_t stream)
{
	(void)send, (void)receive, (void)count, (void)type, (void)op, (void)comm, (void)stream;
	if (cuMemFree_v2)
		cuMemFree_v2(count);
	return ncclSuccess;
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
	(void)send, (void)count, (void)type, (void)peer, (void)comm, (void)stream;
	return ncclSuccess;
}

ncclResult_t ncclGroupStart(void)
{
	return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
	return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
	free(comm);
	return ncclSuccess;
}
