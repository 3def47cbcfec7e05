/* What had other arguments in CUDA 11 (cuda_runtime_api.h of 11.8). */
typedef enum { cudaSuccess = 0 } cudaError_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *pGraphExec, cudaGraph_t graph, cudaGraphNode_t *pErrorNode,
				 char *pLogBuffer, unsigned long bufferSize);
