/* NVIDIA's own cuda_runtime_api.h, every version and twin of a function, and what stands in headers of other wheels. */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda_runtime_api.h>

/* crt/device_functions.h of CUDA 12 and 13 */
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 gridDim, dim3 blockDim, void **args, size_t sharedMem,
			       cudaStream_t stream);
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 gridDim, dim3 blockDim, void **args, size_t sharedMem,
				    cudaStream_t stream);
/* cuda_profiler_api.h */
cudaError_t cudaProfilerStart(void);
cudaError_t cudaProfilerStop(void);
