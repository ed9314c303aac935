// What lets one formula serve the CPU and the GPU.
#pragma once

#ifdef __CUDACC__
#define TOOLBOX_FORMULA __host__ __device__ __forceinline__
#else
#define TOOLBOX_FORMULA inline
#endif

namespace toolbox {

template <class V>
TOOLBOX_FORMULA V clamp_to(V value, V low, V high) {
  return value < low ? low : (value > high ? high : value);
}

}  // namespace toolbox
