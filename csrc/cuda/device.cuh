// What the kernels share: element types, indexing, launching, and the walk over a bin's samples.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../request.h"
#include "../roi_align.h"
#include "../roi_pool.h"

namespace toolbox {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline unsigned blocks_for(int64_t items) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

// Put a kernel on a stream; tests/ops/cuda_on_host runs it on the CPU instead.
template <class Kernel, class... Arguments>
void launch(Kernel kernel, unsigned blocks, cudaStream_t stream, const Arguments&... arguments) {
#ifdef TOOLBOX_CUDA_ON_HOST
  (void)stream;
  launch_on_host(kernel, blocks, kThreads, arguments...);
#else
  // clang-format off
  kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
  // clang-format on
#endif
}

// Call run(T()) with the request's element type.
template <class Run>
void with_element_type(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat32:
      return run(float());
    case DType::kFloat64:
      return run(double());
    case DType::kFloat16:
      return run(__half());
    case DType::kBFloat16:
      return run(__nv_bfloat16());
  }
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(double value, double* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// Channels that a thread handles at once: as many as one load of 16 bytes brings, where they lie side by side.
template <class T>
constexpr int kPacked = 16 / sizeof(T);

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

template <int V, class T, class A>
__device__ __forceinline__ void load(const T* from, A* to) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
  for (int v = 0; v < V; ++v) to[v] = A(widen(pack.values[v]));
}

template <int V, class T, class A>
__device__ __forceinline__ void store(const A* from, T* to) {
  Pack<T, V> pack;
  for (int v = 0; v < V; ++v) narrow(from[v], &pack.values[v]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Add to V neighbours in memory that other threads add to as well.
template <int V>
__device__ __forceinline__ void add_atomic(double* to, const double* values) {
  for (int v = 0; v < V; ++v) atomicAdd(to + v, values[v]);
}
__device__ __forceinline__ void add_four(float* to, const float* values) {
#if defined(TOOLBOX_CUDA_ON_HOST) || (__CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010)
  atomicAdd(reinterpret_cast<float4*>(to), float4{values[0], values[1], values[2], values[3]});
#else
  for (int v = 0; v < 4; ++v) atomicAdd(to + v, values[v]);
#endif
}

template <int V>
__device__ __forceinline__ void add_atomic(float* to, const float* values) {
  constexpr int kFours = V / 4 * 4;
  for (int v = 0; v < kFours; v += 4) add_four(to + v, values + v);
  for (int v = kFours; v < V; ++v) atomicAdd(to + v, values[v]);
}

// Values of the pooled regions that one thread handles: which region, first channel and bin their place stands for.
struct PooledPlace {
  int64_t region;
  int64_t channel;
  int bin_y;
  int bin_x;
};

// Place of V neighbouring channels; more than one only where channels are innermost.
template <int V>
__device__ __forceinline__ PooledPlace place_of(const Request& request, int64_t index) {
  PooledPlace place;
  int64_t bin;
  if (V > 1 || request.channels_last) {
    const int64_t packs = request.channels / V;
    place.channel = index % packs * V;
    index /= packs;
    bin = index % request.bins();
    place.region = index / request.bins();
  } else {
    bin = index % request.bins();
    index /= request.bins();
    place.channel = index % request.channels;
    place.region = index / request.channels;
  }
  place.bin_y = static_cast<int>(bin / request.pooled_width);
  place.bin_x = static_cast<int>(bin % request.pooled_width);
  return place;
}

__device__ __forceinline__ int64_t pooled_index(const Request& request, const PooledPlace& place) {
  const int64_t bin = int64_t(place.bin_y) * request.pooled_width + place.bin_x;
  if (request.channels_last) return (place.region * request.bins() + bin) * request.channels + place.channel;
  return (place.region * request.channels + place.channel) * request.bins() + bin;
}

// Gradient maps of the levels.
struct Gradients {
  void* levels[kMaxLevels];
};

inline Gradients gradients_of(const Request& request, void* const* addresses) {
  Gradients gradients = {};
  for (int level = 0; level < request.num_levels; ++level) gradients.levels[level] = addresses[level];
  return gradients;
}

inline bool on_pack(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// Whether kPacked<T> channels can be read, and the pooled ones or the gradients written, at once.
template <class T>
inline bool packs_fit(const Request& request, const void* pooled, const Gradients* gradients = nullptr) {
  bool fit = request.channels_last && request.channels % kPacked<T> == 0 && on_pack(pooled);
  for (int level = 0; level < request.num_levels; ++level) {
    fit = fit && on_pack(reinterpret_cast<const void*>(request.levels[level].features));
    fit = fit && (gradients == nullptr || on_pack(gradients->levels[level]));
  }
  return fit;
}

// One channel of one image: cell (y, x) is data[y * row + x * column].
template <class T>
struct Plane {
  T* data;
  int64_t row;
  int64_t column;

  __device__ __forceinline__ T& at(int y, int x) const { return data[y * row + x * column]; }
};

template <class T>
__device__ __forceinline__ Plane<T> plane_of(const Request& request, const Level& level, T* map, int64_t image,
                                             int64_t channel) {
  const int64_t cells = int64_t(level.height) * level.width;
  T* first = map + image * request.channels * cells;
  if (request.channels_last) return {first + channel, level.width * request.channels, request.channels};
  return {first + channel * cells, level.width, 1};
}

// Bilinear values of one sample.
template <int V, class T, class A>
__device__ __forceinline__ void sample_values(const Plane<const T>& plane, const AlignPoint<A>& y,
                                              const AlignPoint<A>& x, A* values) {
  A corners[4][V];
  load<V>(&plane.at(y.low, x.low), corners[0]);
  load<V>(&plane.at(y.low, x.high), corners[1]);
  load<V>(&plane.at(y.high, x.low), corners[2]);
  load<V>(&plane.at(y.high, x.high), corners[3]);
  for (int v = 0; v < V; ++v) {
    values[v] = y.weight_low * (x.weight_low * corners[0][v] + x.weight_high * corners[1][v]) +
                y.weight_high * (x.weight_low * corners[2][v] + x.weight_high * corners[3][v]);
  }
}

// Call visit(cell, weight) for the cells that a bin's samples read on one axis, those of neighbouring samples merged.
template <class A, class Visit>
__device__ __forceinline__ void each_tap(const AlignAxis<A>& axis, int bin, int size, const Visit& visit) {
  const SampleRange range = align_range(axis, bin, A(-1), A(size));
  int cell = -1;  // its weight and its upper neighbour's are still growing
  A low = A(0);
  A high = A(0);
  for (int sample = range.first; sample < range.last; ++sample) {
    const AlignPoint<A> point = align_point(axis, bin, sample, size);
    if (!point.inside) continue;
    if (cell >= 0 && point.low == cell + 1) {
      visit(cell, low);
      low = high;
      high = A(0);
    } else if (cell >= 0 && point.low != cell) {
      visit(cell, low);
      if (high != A(0)) visit(cell + 1, high);
      low = high = A(0);
    }
    cell = point.low;
    low += point.weight_low;
    high += point.weight_high;
  }
  if (cell >= 0) visit(cell, low);
  if (cell >= 0 && high != A(0)) visit(cell + 1, high);
}

// A region's two axes for RoIAlign.
template <class A>
struct AlignRegion {
  AlignAxis<A> y;
  AlignAxis<A> x;

  __device__ __forceinline__ AlignRegion(const Request& request, const Level& level, const A* roi)
      : y(align_axis(roi[2], roi[4], A(level.scale), request.pooled_height, request.sampling_ratio, request.aligned)),
        x(align_axis(roi[1], roi[3], A(level.scale), request.pooled_width, request.sampling_ratio, request.aligned)) {}

  __device__ __forceinline__ A count() const {
    const A samples = A(y.samples) * A(x.samples);
    return samples > A(1) ? samples : A(1);
  }
};

// A region's two axes for RoIPool.
template <class A>
struct PoolRegion {
  PoolAxis<A> y;
  PoolAxis<A> x;

  __device__ __forceinline__ PoolRegion(const Request& request, const Level& level, const A* roi)
      : y(pool_axis(roi[2], roi[4], A(level.scale), request.pooled_height)),
        x(pool_axis(roi[1], roi[3], A(level.scale), request.pooled_width)) {}
};

// What won a maximum, as one number: a sample's place in its bin, or a cell's in its map. -1 stands for none.
__device__ __forceinline__ int64_t winner_at(int y, int x) { return int64_t(y) << 32 | x; }
__device__ __forceinline__ int winner_y(int64_t winner) { return static_cast<int>(winner >> 32); }
__device__ __forceinline__ int winner_x(int64_t winner) { return static_cast<int>(winner & 0xffffffff); }

// The best candidate of a bin so far; NaN is taken, and then kept.
template <class A>
struct Maximum {
  A value = A(0);
  int64_t winner = -1;
  bool any = false;

  __device__ __forceinline__ void offer(A candidate, int64_t index) {
    if (any && !(candidate > value || candidate != candidate)) return;
    value = candidate;
    winner = index;
    any = true;
  }
};

// Largest sample of a bin, and which. A sample outside the map counts as zero.
template <int V, class T, class A>
__device__ void align_maximum(const Plane<const T>& plane, const Level& level, const AlignRegion<A>& region, int bin_y,
                              int bin_x, Maximum<A>* best) {
  const SampleRange ys = align_range(region.y, bin_y, A(-1), A(level.height));
  const SampleRange xs = align_range(region.x, bin_x, A(-1), A(level.width));
  int64_t inside = 0;
  for (int iy = ys.first; iy < ys.last; ++iy) {
    const AlignPoint<A> y = align_point(region.y, bin_y, iy, level.height);
    if (!y.inside) continue;
    for (int ix = xs.first; ix < xs.last; ++ix) {
      const AlignPoint<A> x = align_point(region.x, bin_x, ix, level.width);
      if (!x.inside) continue;
      A values[V];
      sample_values<V>(plane, y, x, values);
      for (int v = 0; v < V; ++v) best[v].offer(values[v], winner_at(iy, ix));
      ++inside;
    }
  }
  if (inside < int64_t(region.y.samples) * region.x.samples) {
    for (int v = 0; v < V; ++v) best[v].offer(A(0), -1);
  }
}

// Largest cell of a bin, and which.
template <int V, class T, class A>
__device__ void pool_maximum(const Plane<const T>& plane, const Level& level, const PoolRegion<A>& region, int bin_y,
                             int bin_x, Maximum<A>* best) {
  const CellRange ys = pool_range(region.y, bin_y, level.height);
  const CellRange xs = pool_range(region.x, bin_x, level.width);
  for (int y = ys.first; y < ys.last; ++y) {
    for (int x = xs.first; x < xs.last; ++x) {
      A values[V];
      load<V>(&plane.at(y, x), values);
      for (int v = 0; v < V; ++v) best[v].offer(values[v], winner_at(y, x));
    }
  }
}

}  // namespace toolbox
