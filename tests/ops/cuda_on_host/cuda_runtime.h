// As much of CUDA as csrc/cuda uses, for a C++ compiler: kernels run thread after thread on the CPU. Tests only. What
// threads do to one another (races, waiting) is not shown; indices, reads, weights and sums are.
#pragma once

#include <cmath>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 blockIdx, threadIdx, gridDim, blockDim;

struct float4 {
  float x, y, z, w;
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInsufficientDriver = 35 };
using cudaStream_t = void*;
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }

template <class V>
V atomicAdd(V* to, V value) {
  const V before = *to;
  *to += value;
  return before;
}
inline float4 atomicAdd(float4* to, float4 value) {
  const float4 before = *to;
  *to = {to->x + value.x, to->y + value.y, to->z + value.z, to->w + value.w};
  return before;
}

// What `kernel<<<blocks, threads, 0, stream>>>(…)` does, block after block.
template <class Kernel, class... Arguments>
void launch_on_host(Kernel kernel, unsigned blocks, unsigned threads, const Arguments&... arguments) {
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(arguments...);
  }
}
