#include "device.cuh"
#include "pool.h"

namespace toolbox {
namespace {

// Gradient maps of the levels.
struct Gradients {
  void* levels[kMaxLevels];
};

template <class A>
__device__ __forceinline__ void add_sample(const Plane<A>& plane, const AlignPoint<A>& y, const AlignPoint<A>& x,
                                           A given) {
  atomicAdd(&plane.at(y.low, x.low), given * y.weight_low * x.weight_low);
  atomicAdd(&plane.at(y.low, x.high), given * y.weight_low * x.weight_high);
  atomicAdd(&plane.at(y.high, x.low), given * y.weight_high * x.weight_low);
  atomicAdd(&plane.at(y.high, x.high), given * y.weight_high * x.weight_high);
}

template <class A>
__device__ void spread_average(const Plane<A>& plane, const Level& level, const AlignRegion<A>& region, int bin_y,
                               int bin_x, A given) {
  const SampleRange ys = align_range(region.y, bin_y, A(-1), A(level.height));
  const SampleRange xs = align_range(region.x, bin_x, A(-1), A(level.width));
  const A share = given / region.count();
  for (int iy = ys.first; iy < ys.last; ++iy) {
    const AlignPoint<A> y = align_point(region.y, bin_y, iy, level.height);
    if (!y.inside) continue;
    for (int ix = xs.first; ix < xs.last; ++ix) {
      const AlignPoint<A> x = align_point(region.x, bin_x, ix, level.width);
      if (x.inside) add_sample(plane, y, x, share);
    }
  }
}

// Fast form: one thread, one pooled gradient, spread with atomics.
template <class T, Method method>
__global__ void __launch_bounds__(kThreads) spread_kernel(Request request, const T* pooled, Gradients gradients) {
  using A = typename Accumulate<T>::type;
  const int64_t total = request.output_size();
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += step) {
    const PooledPlace place = place_of(request, index);
    const A* roi = reinterpret_cast<const A*>(request.rois) + place.region * 5;
    const int64_t image = image_of(request, roi);
    if (image < 0) continue;
    const int chosen = choose_level(request, roi);
    const Level& level = request.levels[chosen];
    const auto to = plane_of(request, level, static_cast<A*>(gradients.levels[chosen]), image, place.channel);
    const A given = A(widen(pooled[index]));
    if constexpr (method == Method::kAlignAverage) {
      spread_average(to, level, AlignRegion<A>(request, level, roi), place.bin_y, place.bin_x, given);
    } else {
      const auto from = plane_of(request, level, reinterpret_cast<const T*>(level.features), image, place.channel);
      if constexpr (method == Method::kAlignMax) {
        const AlignRegion<A> region(request, level, roi);
        const int64_t winner = align_maximum(from, level, region, place.bin_y, place.bin_x).winner;
        if (winner < 0) continue;
        add_sample(to, align_point(region.y, place.bin_y, static_cast<int>(winner / region.x.samples), level.height),
                   align_point(region.x, place.bin_x, static_cast<int>(winner % region.x.samples), level.width), given);
      } else {
        const PoolRegion<A> region(request, level, roi);
        const int64_t winner = pool_maximum(from, level, region, place.bin_y, place.bin_x).winner;
        if (winner < 0) continue;
        atomicAdd(&to.at(static_cast<int>(winner / level.width), static_cast<int>(winner % level.width)), given);
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
template <class T, class A, bool maximum>
__device__ A collect_align(const Request& request, const Level& level, const AlignRegion<A>& region, PooledPlace place,
                           const T* pooled, const int64_t* winners, int cell_y, int cell_x) {
  A sum = A(0);
  if (!reaches(region.y, request.pooled_height, cell_y) || !reaches(region.x, request.pooled_width, cell_x)) return sum;
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
          if (maximum && winners[from] != int64_t(iy) * region.x.samples + ix) continue;
          sum += weight * A(widen(pooled[from]));
        }
      }
    }
  }
  return maximum ? sum : sum / region.count();
}

template <class T, class A>
__device__ A collect_pool(const Request& request, const Level& level, const PoolRegion<A>& region, PooledPlace place,
                          const T* pooled, const int64_t* winners, int cell_y, int cell_x) {
  A sum = A(0);
  const int64_t cell = int64_t(cell_y) * level.width + cell_x;
  for (place.bin_y = 0; place.bin_y < request.pooled_height; ++place.bin_y) {
    const CellRange ys = pool_range(region.y, place.bin_y, level.height);
    if (cell_y < ys.first || cell_y >= ys.last) continue;
    for (place.bin_x = 0; place.bin_x < request.pooled_width; ++place.bin_x) {
      const CellRange xs = pool_range(region.x, place.bin_x, level.width);
      if (cell_x < xs.first || cell_x >= xs.last) continue;
      const int64_t from = pooled_index(request, place);
      if (winners[from] == cell) sum += A(widen(pooled[from]));
    }
  }
  return sum;
}

// Deterministic form: one thread, one cell of a level's gradient, collected from all regions in their order.
template <class T, Method method>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(Request request, int level_index, const T* pooled, const int64_t* winners, Gradients gradients) {
  using A = typename Accumulate<T>::type;
  const Level& level = request.levels[level_index];
  const int64_t cells = int64_t(level.height) * level.width;
  const int64_t total = request.images * request.channels * cells;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += step) {
    const int64_t image = index / (request.channels * cells);
    const int64_t within = index % (request.channels * cells);
    const int64_t cell = request.channels_last ? within / request.channels : within % cells;
    const int64_t channel = request.channels_last ? within % request.channels : within / cells;
    const int cell_y = static_cast<int>(cell / level.width);
    const int cell_x = static_cast<int>(cell % level.width);
    A sum = A(0);
    for (int64_t r = 0; r < request.regions; ++r) {
      const A* roi = reinterpret_cast<const A*>(request.rois) + r * 5;
      if (image_of(request, roi) != image || choose_level(request, roi) != level_index) continue;
      const PooledPlace place = {r, channel, 0, 0};
      if constexpr (method == Method::kPoolMax) {
        const PoolRegion<A> region(request, level, roi);
        sum += collect_pool(request, level, region, place, pooled, winners, cell_y, cell_x);
      } else {
        const AlignRegion<A> region(request, level, roi);
        sum += collect_align<T, A, method == Method::kAlignMax>(request, level, region, place, pooled, winners, cell_y,
                                                                cell_x);
      }
    }
    static_cast<A*>(gradients.levels[level_index])[index] += sum;
  }
}

template <class T, Method method>
void run_backward(const Request& request, const T* pooled, const Gradients& gradients, const int64_t* winners,
                  bool deterministic, cudaStream_t stream) {
  if (!deterministic) {
    const unsigned blocks = blocks_for(request.output_size());
    launch(spread_kernel<T, method>, blocks, stream, request, pooled, gradients);
    return;
  }
  for (int index = 0; index < request.num_levels; ++index) {
    const Level& level = request.levels[index];
    const unsigned blocks = blocks_for(request.images * request.channels * level.height * level.width);
    launch(collect_kernel<T, method>, blocks, stream, request, index, pooled, winners, gradients);
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
    switch (request.method) {
      case Method::kAlignAverage:
        return run_backward<T, Method::kAlignAverage>(request, given, maps, winners, deterministic, queue);
      case Method::kAlignMax:
        return run_backward<T, Method::kAlignMax>(request, given, maps, winners, deterministic, queue);
      case Method::kPoolMax:
        return run_backward<T, Method::kPoolMax>(request, given, maps, winners, deterministic, queue);
    }
  });
  check(cudaGetLastError(), "RoI pooling, backward");
}

}  // namespace toolbox
