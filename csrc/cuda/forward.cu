#include "device.cuh"
#include "pool.h"

namespace toolbox {
namespace {

template <int V, class T, class A>
__device__ void align_average(const Plane<const T>& plane, const Level& level, const AlignRegion<A>& region, int bin_y,
                              int bin_x, A* average) {
  for (int v = 0; v < V; ++v) average[v] = A(0);
  each_tap(region.y, bin_y, level.height, [&](int y, A weight_y) {
    each_tap(region.x, bin_x, level.width, [&](int x, A weight_x) {
      A values[V];
      load<V>(&plane.at(y, x), values);
      const A weight = weight_y * weight_x;
      for (int v = 0; v < V; ++v) average[v] += weight * values[v];
    });
  });
  for (int v = 0; v < V; ++v) average[v] /= region.count();
}

// One thread, V channels of one bin. With `winners` the values are not written.
template <class T, Method method, int V>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const __grid_constant__ Request request, T* pooled, int64_t* winners) {
  using A = typename Accumulate<T>::type;
  const int64_t total = request.output_size() / V;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += step) {
    const PooledPlace place = place_of<V>(request, index);
    const A* roi = reinterpret_cast<const A*>(request.rois) + place.region * 5;
    const int64_t image = image_of(request, roi);
    A values[V] = {};
    Maximum<A> best[V];
    if (image >= 0) {
      const Level& level = request.levels[choose_level(request, roi)];
      const auto plane = plane_of(request, level, reinterpret_cast<const T*>(level.features), image, place.channel);
      if constexpr (method == Method::kPoolMax) {
        pool_maximum<V>(plane, level, PoolRegion<A>(request, level, roi), place.bin_y, place.bin_x, best);
      } else if constexpr (method == Method::kAlignMax) {
        align_maximum<V>(plane, level, AlignRegion<A>(request, level, roi), place.bin_y, place.bin_x, best);
      } else {
        align_average<V>(plane, level, AlignRegion<A>(request, level, roi), place.bin_y, place.bin_x, values);
      }
    }
    if (winners != nullptr) {
      for (int v = 0; v < V; ++v) winners[index * V + v] = best[v].winner;
      continue;
    }
    if constexpr (method != Method::kAlignAverage) {
      for (int v = 0; v < V; ++v) values[v] = best[v].value;
    }
    store<V>(values, pooled + index * V);
  }
}

template <class T, int V>
void run_forward(const Request& request, T* pooled, int64_t* winners, cudaStream_t stream) {
  const unsigned blocks = blocks_for(request.output_size() / V);
  switch (request.method) {
    case Method::kAlignAverage:
      return launch(pool_kernel<T, Method::kAlignAverage, V>, blocks, stream, request, pooled, winners);
    case Method::kAlignMax:
      return launch(pool_kernel<T, Method::kAlignMax, V>, blocks, stream, request, pooled, winners);
    case Method::kPoolMax:
      return launch(pool_kernel<T, Method::kPoolMax, V>, blocks, stream, request, pooled, winners);
  }
}

// Whether code for this device is here: of its own generation and not newer, or PTX of the newest to be translated.
bool compiled_for(int capability) {
  constexpr int kCompiled[] = {__CUDA_ARCH_LIST__};  // 750, 800, …
  int newest = 0;
  for (const int arch : kCompiled) {
    if (arch / 100 == capability / 100 && arch <= capability) return true;
    newest = arch > newest ? arch : newest;
  }
  return newest <= capability;
}

// Why no device can run what was compiled; one that can is enough.
std::string device_problem(int devices) {
  std::string found;
  for (int device = 0; device < devices; ++device) {
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking what a device can do");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking what a device can do");
    if (compiled_for(major * 100 + minor * 10)) return "";
    found = "not compiled for this GPU (sm_" + std::to_string(major) + std::to_string(minor) +
            "; build again with TOOLBOX_CUDA_ARCHS=" + std::to_string(major) + std::to_string(minor) + ")";
  }
  return devices > 0 ? found : "no CUDA device";
}

}  // namespace

std::string cuda_problem() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaErrorInsufficientDriver) {
    int built = 0, driver = 0;
    cudaRuntimeGetVersion(&built);
    cudaDriverGetVersion(&driver);
    if (driver == 0) return "no CUDA driver";
    return "built for CUDA " + std::to_string(built / 1000) + "." + std::to_string(built % 1000 / 10) +
           ", but the driver serves CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
           " at most (update the driver, or rebuild with an older toolkit)";
  }
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return device_problem(devices);
}

void pool_forward_cuda(const Request& request, void* pooled, int64_t* winners, int device, void* stream) {
  check(cudaSetDevice(device), "RoI pooling, choosing the device");
  const auto queue = static_cast<cudaStream_t>(stream);
  with_element_type(request.dtype, [&](auto element) {
    using T = decltype(element);
    T* out = static_cast<T*>(pooled);
    packs_fit<T>(request, pooled) ? run_forward<T, kPacked<T>>(request, out, winners, queue)
                                  : run_forward<T, 1>(request, out, winners, queue);
  });
  check(cudaGetLastError(), "RoI pooling, forward");
}

}  // namespace toolbox
