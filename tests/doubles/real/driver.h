/* NVIDIA's own cuda.h, every version and twin of a function, and what stands in cudaProfiler.h. */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

CUresult cuProfilerStart(void);
CUresult cuProfilerStop(void);
