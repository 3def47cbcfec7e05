/* NCCL's functions, and those that rccl.h of ROCm 6 has besides. */
#include "nccl.h"

ncclResult_t ncclAllToAll(const void *sendbuff, void *recvbuff, size_t count, ncclDataType_t datatype, ncclComm_t comm,
			  cudaStream_t stream);
ncclResult_t ncclAllToAllv(const void *sendbuff, const size_t *sendcounts, const size_t *sdispls, void *recvbuff,
			   const size_t *recvcounts, const size_t *rdispls, ncclDataType_t datatype, ncclComm_t comm,
			   cudaStream_t stream);
