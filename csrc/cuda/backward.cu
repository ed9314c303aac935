#include "device.cuh"
#include "pool.h"

namespace toolbox {
namespace {

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

// One thread, V pooled gradients of a bin, spread with atomics.
template <class T, Method method, int V>
__global__ void __launch_bounds__(kThreads) spread_kernel(const __grid_constant__ Request request, const T* pooled,
                                                          const __grid_constant__ Gradients gradients) {
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
          add_sample(to, align_point(region.y, place.bin_y, winner_y(winner), level.height),
                     align_point(region.x, place.bin_x, winner_x(winner), level.width), v, given[v]);
        }
      } else {
        pool_maximum<V>(from, level, PoolRegion<A>(request, level, roi), place.bin_y, place.bin_x, best);
        for (int v = 0; v < V; ++v) {
          const int64_t winner = best[v].winner;
          if (winner < 0) continue;
          atomicAdd(&to.at(winner_y(winner), winner_x(winner)) + v, given[v]);
        }
      }
    }
  }
}

template <class T, int V>
void run_backward(const Request& request, const T* pooled, const Gradients& gradients, cudaStream_t stream) {
  const unsigned blocks = blocks_for(request.output_size() / V);
  switch (request.method) {
    case Method::kAlignAverage:
      return launch(spread_kernel<T, Method::kAlignAverage, V>, blocks, stream, request, pooled, gradients);
    case Method::kAlignMax:
      return launch(spread_kernel<T, Method::kAlignMax, V>, blocks, stream, request, pooled, gradients);
    case Method::kPoolMax:
      return launch(spread_kernel<T, Method::kPoolMax, V>, blocks, stream, request, pooled, gradients);
  }
}

}  // namespace

void pool_backward_cuda(const Request& request, const void* pooled_gradient, void* const* gradients, int device,
                        void* stream) {
  check(cudaSetDevice(device), "RoI pooling, choosing the device");
  const Gradients maps = gradients_of(request, gradients);
  const auto queue = static_cast<cudaStream_t>(stream);
  with_element_type(request.dtype, [&](auto element) {
    using T = decltype(element);
    const T* given = static_cast<const T*>(pooled_gradient);
    packs_fit<T>(request, pooled_gradient, &maps) ? run_backward<T, kPacked<T>>(request, given, maps, queue)
                                                  : run_backward<T, 1>(request, given, maps, queue);
  });
  check(cudaGetLastError(), "RoI pooling, backward");
}

}  // namespace toolbox
