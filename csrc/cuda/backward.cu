#include "device.cuh"
#include "pool.h"

namespace toolbox {
namespace {

// Gradient maps of the levels.
struct Gradients {
  void* levels[kMaxLevels];
};

template <int V, class A>
__device__ __forceinline__ void add_weighted(A* to, const A* given, A weight) {
  A values[V];
  for (int v = 0; v < V; ++v) values[v] = weight * given[v];
  add_atomic<V>(to, values);
}

template <int V, class A>
__device__ void spread_average(const Plane<A>& plane, const Level& level, const AlignRegion<A>& region, int bin_y,
                               int bin_x, const A* given) {
  const A share = A(1) / region.count();
  each_tap(region.y, bin_y, level.height, [&](int y, A weight_y) {
    each_tap(region.x, bin_x, level.width,
             [&](int x, A weight_x) { add_weighted<V>(&plane.at(y, x), given, share * weight_y * weight_x); });
  });
}

// One sample, one channel: to its four cells.
template <class A>
__device__ __forceinline__ void add_sample(const Plane<A>& plane, const AlignPoint<A>& y, const AlignPoint<A>& x,
                                           int channel, A given) {
  atomicAdd(&plane.at(y.low, x.low) + channel, given * y.weight_low * x.weight_low);
  atomicAdd(&plane.at(y.low, x.high) + channel, given * y.weight_low * x.weight_high);
  atomicAdd(&plane.at(y.high, x.low) + channel, given * y.weight_high * x.weight_low);
  atomicAdd(&plane.at(y.high, x.high) + channel, given * y.weight_high * x.weight_high);
}

// Fast form: one thread, V pooled gradients of a bin, spread with atomics.
template <class T, Method method, int V>
__global__ void __launch_bounds__(kThreads) spread_kernel(Request request, const T* pooled, Gradients gradients) {
  using A = typename Accumulate<T>::type;
  const int64_t total = request.output_size() / V;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += step) {
    const PooledPlace place = place_of<V>(request, index);
    const A* roi = reinterpret_cast<const A*>(request.rois) + place.region * 5;
    const int64_t image = image_of(request, roi);
    if (image < 0) continue;
    const int chosen = choose_level(request, roi);
    const Level& level = request.levels[chosen];
    const auto to = plane_of(request, level, static_cast<A*>(gradients.levels[chosen]), image, place.channel);
    A given[V];
    load<V>(pooled + index * V, given);
    if constexpr (method == Method::kAlignAverage) {
      spread_average<V>(to, level, AlignRegion<A>(request, level, roi), place.bin_y, place.bin_x, given);
    } else {
      const auto from = plane_of(request, level, reinterpret_cast<const T*>(level.features), image, place.channel);
      Maximum<A> best[V];
      if constexpr (method == Method::kAlignMax) {
        const AlignRegion<A> region(request, level, roi);
        align_maximum<V>(from, level, region, place.bin_y, place.bin_x, best);
        for (int v = 0; v < V; ++v) {
          const int64_t winner = best[v].winner;
          if (winner < 0) continue;
          const int sample_y = static_cast<int>(winner / region.x.samples);
          const int sample_x = static_cast<int>(winner % region.x.samples);
          add_sample(to, align_point(region.y, place.bin_y, sample_y, level.height),
                     align_point(region.x, place.bin_x, sample_x, level.width), v, given[v]);
        }
      } else {
        pool_maximum<V>(from, level, PoolRegion<A>(request, level, roi), place.bin_y, place.bin_x, best);
        for (int v = 0; v < V; ++v) {
          const int64_t winner = best[v].winner;
          if (winner < 0) continue;
          atomicAdd(&to.at(static_cast<int>(winner / level.width), static_cast<int>(winner % level.width)) + v,
                    given[v]);
        }
      }
    }
  }
}

template <class A>
__device__ __forceinline__ A weight_on(const AlignPoint<A>& point, int cell) {
  if (!point.inside) return A(0);
  return (point.low == cell ? point.weight_low : A(0)) + (point.high == cell ? point.weight_high : A(0));
}

// Whether an axis of a region can reach a cell: every sample reads cells at most one away, and rounding gets another.
template <class A>
__device__ __forceinline__ bool reaches(const AlignAxis<A>& axis, int bins, int cell) {
  const A end = axis.start + axis.bin * A(bins);
  const A low = axis.start < end ? axis.start : end;
  const A high = axis.start < end ? end : axis.start;
  return !(A(cell) < low - A(2) || A(cell) > high + A(2));
}

// What one region gives to one cell: its bins' gradients by the weights of the samples that read the cell.
template <int V, class T, class A, bool maximum>
__device__ void collect_align(const Request& request, const Level& level, const AlignRegion<A>& region,
                              PooledPlace place, const T* pooled, const int64_t* winners, int cell_y, int cell_x,
                              A* sums) {
  if (!reaches(region.y, request.pooled_height, cell_y) || !reaches(region.x, request.pooled_width, cell_x)) return;
  A own[V] = {};
  for (place.bin_y = 0; place.bin_y < request.pooled_height; ++place.bin_y) {
    const SampleRange ys = align_range(region.y, place.bin_y, A(cell_y - 1), A(cell_y + 1));
    for (int iy = ys.first; iy < ys.last; ++iy) {
      const A weight_y = weight_on(align_point(region.y, place.bin_y, iy, level.height), cell_y);
      if (weight_y == A(0)) continue;
      for (place.bin_x = 0; place.bin_x < request.pooled_width; ++place.bin_x) {
        const SampleRange xs = align_range(region.x, place.bin_x, A(cell_x - 1), A(cell_x + 1));
        const int64_t from = pooled_index(request, place);
        for (int ix = xs.first; ix < xs.last; ++ix) {
          const A weight = weight_y * weight_on(align_point(region.x, place.bin_x, ix, level.width), cell_x);
          if (weight == A(0)) continue;
          A given[V];
          load<V>(pooled + from, given);
          for (int v = 0; v < V; ++v) {
            if (maximum && winners[from + v] != int64_t(iy) * region.x.samples + ix) continue;
            own[v] += weight * given[v];
          }
        }
      }
    }
  }
  for (int v = 0; v < V; ++v) sums[v] += maximum ? own[v] : own[v] / region.count();
}

template <int V, class T, class A>
__device__ void collect_pool(const Request& request, const Level& level, const PoolRegion<A>& region, PooledPlace place,
                             const T* pooled, const int64_t* winners, int cell_y, int cell_x, A* sums) {
  const int64_t cell = int64_t(cell_y) * level.width + cell_x;
  for (place.bin_y = 0; place.bin_y < request.pooled_height; ++place.bin_y) {
    const CellRange ys = pool_range(region.y, place.bin_y, level.height);
    if (cell_y < ys.first || cell_y >= ys.last) continue;
    for (place.bin_x = 0; place.bin_x < request.pooled_width; ++place.bin_x) {
      const CellRange xs = pool_range(region.x, place.bin_x, level.width);
      if (cell_x < xs.first || cell_x >= xs.last) continue;
      const int64_t from = pooled_index(request, place);
      for (int v = 0; v < V; ++v) {
        if (winners[from + v] == cell) sums[v] += A(widen(pooled[from + v]));
      }
    }
  }
}

// Deterministic form: one thread, V channels of one cell of a level's gradient, collected from all regions in order.
template <class T, Method method, int V>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(Request request, int level_index, const T* pooled, const int64_t* winners, Gradients gradients) {
  using A = typename Accumulate<T>::type;
  const Level& level = request.levels[level_index];
  const int64_t cells = int64_t(level.height) * level.width;
  const int64_t packs = request.channels / V;
  const int64_t total = request.images * packs * cells;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += step) {
    const int64_t image = index / (packs * cells);
    const int64_t within = index % (packs * cells);
    const int64_t cell = request.channels_last ? within / packs : within % cells;
    const int64_t channel = request.channels_last ? within % packs * V : within / cells;
    const int cell_y = static_cast<int>(cell / level.width);
    const int cell_x = static_cast<int>(cell % level.width);
    A sums[V] = {};
    for (int64_t r = 0; r < request.regions; ++r) {
      const A* roi = reinterpret_cast<const A*>(request.rois) + r * 5;
      if (image_of(request, roi) != image || choose_level(request, roi) != level_index) continue;
      const PooledPlace place = {r, channel, 0, 0};
      if constexpr (method == Method::kPoolMax) {
        const PoolRegion<A> region(request, level, roi);
        collect_pool<V>(request, level, region, place, pooled, winners, cell_y, cell_x, sums);
      } else {
        const AlignRegion<A> region(request, level, roi);
        constexpr bool maximum = method == Method::kAlignMax;
        collect_align<V, T, A, maximum>(request, level, region, place, pooled, winners, cell_y, cell_x, sums);
      }
    }
    A* to = static_cast<A*>(gradients.levels[level_index]) + index * V;
    for (int v = 0; v < V; ++v) to[v] += sums[v];
  }
}

template <class T, Method method, int V>
void run_backward(const Request& request, const T* pooled, const Gradients& gradients, const int64_t* winners,
                  bool deterministic, cudaStream_t stream) {
  if (!deterministic) {
    return launch(spread_kernel<T, method, V>, blocks_for(request.output_size() / V), stream, request, pooled,
                  gradients);
  }
  for (int index = 0; index < request.num_levels; ++index) {
    const Level& level = request.levels[index];
    const unsigned blocks = blocks_for(request.images * request.channels / V * level.height * level.width);
    launch(collect_kernel<T, method, V>, blocks, stream, request, index, pooled, winners, gradients);
  }
}

template <class T, int V>
void run_backward(const Request& request, const T* pooled, const Gradients& gradients, const int64_t* winners,
                  bool deterministic, cudaStream_t stream) {
  switch (request.method) {
    case Method::kAlignAverage:
      return run_backward<T, Method::kAlignAverage, V>(request, pooled, gradients, winners, deterministic, stream);
    case Method::kAlignMax:
      return run_backward<T, Method::kAlignMax, V>(request, pooled, gradients, winners, deterministic, stream);
    case Method::kPoolMax:
      return run_backward<T, Method::kPoolMax, V>(request, pooled, gradients, winners, deterministic, stream);
  }
}

}  // namespace

void pool_backward_cuda(const Request& request, const void* pooled_gradient, void* const* gradients,
                        const int64_t* winners, bool deterministic, int device, void* stream) {
  check(cudaSetDevice(device), "RoI pooling, choosing the device");
  Gradients maps = {};
  for (int level = 0; level < request.num_levels; ++level) maps.levels[level] = gradients[level];
  const auto queue = static_cast<cudaStream_t>(stream);
  with_element_type(request.dtype, [&](auto element) {
    using T = decltype(element);
    const T* given = static_cast<const T*>(pooled_gradient);
    packs_fit<T>(request, pooled_gradient)
        ? run_backward<T, kPacked<T>>(request, given, maps, winners, deterministic, queue)
        : run_backward<T, 1>(request, given, maps, winners, deterministic, queue);
  });
  check(cudaGetLastError(), "RoI pooling, backward");
}

}  // namespace toolbox
