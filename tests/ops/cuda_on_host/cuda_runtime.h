// As much of CUDA as csrc/cuda uses, for a C++ compiler: kernels run on the CPU, a block's threads one after another
// from one __syncthreads to the next. Tests only. Indices, reads, weights, sums, barriers that are missing or that not
// all threads reach show; races of other kinds and launches do not.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static
#define __CUDA_ARCH_LIST__ 900
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
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  return *value = which == cudaDevAttrComputeCapabilityMajor ? 9 : 0, cudaSuccess;
}
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

inline unsigned long long atomicOr(unsigned long long* to, unsigned long long value) {
  const unsigned long long before = *to;
  *to |= value;
  return before;
}
inline int __ffsll(long long value) { return __builtin_ffsll(value); }

// The threads of one block: each has a stack of its own, so that it can be left at a barrier and taken up again.
class BlockOnHost {
public:
  static void wait() {
    BlockOnHost& block = *running();
    swapcontext(&block.threads_[threadIdx.x], &block.outside_);
  }

  // Run body() as `threads` threads. They go in rising and in falling order by turns, so that one that reads what
  // another is yet to write is found out.
  template <class Body>
  void run(unsigned threads, const Body& body) {
    running() = this;
    body_ = [](const void* given) { (*static_cast<const Body*>(given))(); };
    given_ = &body;
    threads_.resize(threads);
    stacks_.resize(threads);
    finished_ = 0;
    for (unsigned thread = 0; thread < threads; ++thread) prepare(thread);
    for (bool rising = true; finished_ < threads; rising = !rising) {
      if (finished_ > 0) {
        std::fprintf(stderr, "some threads of a block wait at __syncthreads, others have returned\n");
        std::abort();
      }
      for (unsigned turn = 0; turn < threads; ++turn) {
        threadIdx.x = rising ? turn : threads - 1 - turn;
        swapcontext(&outside_, &threads_[threadIdx.x]);
      }
    }
  }

private:
  struct Stack {
    char bytes[1 << 16];
  };

  static BlockOnHost*& running() {
    static BlockOnHost* block = nullptr;
    return block;
  }

  static void enter() {
    BlockOnHost& block = *running();
    block.body_(block.given_);
    ++block.finished_;
  }

  void prepare(unsigned thread) {
    getcontext(&threads_[thread]);
    threads_[thread].uc_stack.ss_sp = stacks_[thread].bytes;
    threads_[thread].uc_stack.ss_size = sizeof(Stack);
    threads_[thread].uc_link = &outside_;
    makecontext(&threads_[thread], &BlockOnHost::enter, 0);
  }

  ucontext_t outside_;
  std::vector<ucontext_t> threads_;
  std::vector<Stack> stacks_;
  void (*body_)(const void*) = nullptr;
  const void* given_ = nullptr;
  unsigned finished_ = 0;
};
inline void __syncthreads() { BlockOnHost::wait(); }

// What `kernel<<<blocks, threads, 0, stream>>>(…)` does, block after block.
template <class Kernel, class... Arguments>
void launch_on_host(Kernel kernel, unsigned blocks, unsigned threads, const Arguments&... arguments) {
  gridDim.x = blocks;
  blockDim.x = threads;
  static BlockOnHost block;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    block.run(threads, [&] { kernel(arguments...); });
  }
}
