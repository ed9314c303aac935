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
  kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
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

// One value of the pooled regions: which region, channel and bin its place in memory stands for.
struct PooledPlace {
  int64_t region;
  int64_t channel;
  int bin_y;
  int bin_x;
};

__device__ __forceinline__ PooledPlace place_of(const Request& request, int64_t index) {
  PooledPlace place;
  int64_t bin;
  if (request.channels_last) {
    place.channel = index % request.channels;
    index /= request.channels;
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

// Bilinear value of one sample.
template <class T, class A>
__device__ __forceinline__ A sample_value(const Plane<const T>& plane, const AlignPoint<A>& y, const AlignPoint<A>& x) {
  return y.weight_low *
             (x.weight_low * widen(plane.at(y.low, x.low)) + x.weight_high * widen(plane.at(y.low, x.high))) +
         y.weight_high *
             (x.weight_low * widen(plane.at(y.high, x.low)) + x.weight_high * widen(plane.at(y.high, x.high)));
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

// Largest sample of a bin, and which: sample_y * samples_x + sample_x. A sample outside the map counts as zero.
template <class T, class A>
__device__ Maximum<A> align_maximum(const Plane<const T>& plane, const Level& level, const AlignRegion<A>& region,
                                    int bin_y, int bin_x) {
  Maximum<A> best;
  const SampleRange ys = align_range(region.y, bin_y, A(-1), A(level.height));
  const SampleRange xs = align_range(region.x, bin_x, A(-1), A(level.width));
  int64_t inside = 0;
  for (int iy = ys.first; iy < ys.last; ++iy) {
    const AlignPoint<A> y = align_point(region.y, bin_y, iy, level.height);
    if (!y.inside) continue;
    for (int ix = xs.first; ix < xs.last; ++ix) {
      const AlignPoint<A> x = align_point(region.x, bin_x, ix, level.width);
      if (!x.inside) continue;
      best.offer(sample_value(plane, y, x), int64_t(iy) * region.x.samples + ix);
      ++inside;
    }
  }
  if (inside < int64_t(region.y.samples) * region.x.samples) best.offer(A(0), -1);
  return best;
}

// Largest cell of a bin, and which: y * width + x.
template <class T, class A>
__device__ Maximum<A> pool_maximum(const Plane<const T>& plane, const Level& level, const PoolRegion<A>& region,
                                   int bin_y, int bin_x) {
  Maximum<A> best;
  const CellRange ys = pool_range(region.y, bin_y, level.height);
  const CellRange xs = pool_range(region.x, bin_x, level.width);
  for (int y = ys.first; y < ys.last; ++y) {
    for (int x = xs.first; x < xs.last; ++x) best.offer(A(widen(plane.at(y, x))), int64_t(y) * level.width + x);
  }
  return best;
}

}  // namespace toolbox
