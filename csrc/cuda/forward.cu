#include "device.cuh"
#include "pool.h"

namespace toolbox {
namespace {

template <class T, class A>
__device__ A align_average(const Plane<const T>& plane, const Level& level, const AlignRegion<A>& region, int bin_y,
                           int bin_x) {
  const SampleRange ys = align_range(region.y, bin_y, A(-1), A(level.height));
  const SampleRange xs = align_range(region.x, bin_x, A(-1), A(level.width));
  A sum = A(0);
  for (int iy = ys.first; iy < ys.last; ++iy) {
    const AlignPoint<A> y = align_point(region.y, bin_y, iy, level.height);
    if (!y.inside) continue;
    for (int ix = xs.first; ix < xs.last; ++ix) {
      const AlignPoint<A> x = align_point(region.x, bin_x, ix, level.width);
      if (x.inside) sum += sample_value(plane, y, x);
    }
  }
  return sum / region.count();
}

// One thread, one pooled value. With `winners` the values are not written.
template <class T, Method method>
__global__ void __launch_bounds__(kThreads) pool_kernel(Request request, T* pooled, int64_t* winners) {
  using A = typename Accumulate<T>::type;
  const int64_t total = request.output_size();
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += step) {
    const PooledPlace place = place_of(request, index);
    const A* roi = reinterpret_cast<const A*>(request.rois) + place.region * 5;
    const int64_t image = image_of(request, roi);
    Maximum<A> best;
    if (image >= 0) {
      const Level& level = request.levels[choose_level(request, roi)];
      const auto plane = plane_of(request, level, reinterpret_cast<const T*>(level.features), image, place.channel);
      if constexpr (method == Method::kPoolMax) {
        best = pool_maximum(plane, level, PoolRegion<A>(request, level, roi), place.bin_y, place.bin_x);
      } else if constexpr (method == Method::kAlignMax) {
        best = align_maximum(plane, level, AlignRegion<A>(request, level, roi), place.bin_y, place.bin_x);
      } else {
        best.value = align_average(plane, level, AlignRegion<A>(request, level, roi), place.bin_y, place.bin_x);
      }
    }
    if (winners != nullptr) {
      winners[index] = best.winner;
    } else {
      narrow(best.value, pooled + index);
    }
  }
}

}  // namespace

std::string cuda_problem() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaErrorInsufficientDriver) {
    int built = 0, driver = 0;
    cudaRuntimeGetVersion(&built);
    cudaDriverGetVersion(&driver);
    return "built for CUDA " + std::to_string(built / 1000) + "." + std::to_string(built % 1000 / 10) +
           ", but the driver serves CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
           " at most (update the driver, or rebuild with an older toolkit)";
  }
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return devices > 0 ? "" : "no CUDA device";
}

void pool_forward_cuda(const Request& request, void* pooled, int64_t* winners, int device, void* stream) {
  check(cudaSetDevice(device), "RoI pooling, choosing the device");
  const unsigned blocks = blocks_for(request.output_size());
  const auto queue = static_cast<cudaStream_t>(stream);
  with_element_type(request.dtype, [&](auto element) {
    using T = decltype(element);
    T* out = static_cast<T*>(pooled);
    switch (request.method) {
      case Method::kAlignAverage:
        launch(pool_kernel<T, Method::kAlignAverage>, blocks, queue, request, out, winners);
        break;
      case Method::kAlignMax:
        launch(pool_kernel<T, Method::kAlignMax>, blocks, queue, request, out, winners);
        break;
      case Method::kPoolMax:
        launch(pool_kernel<T, Method::kPoolMax>, blocks, queue, request, out, winners);
        break;
    }
  });
  check(cudaGetLastError(), "RoI pooling, forward");
}

}  // namespace toolbox
