// What one pooling call is asked to do; plain values, so that it travels to a kernel as it is.
#pragma once

#include <cmath>
#include <cstdint>

#include "portable.h"

namespace toolbox {

constexpr int kMaxLevels = 8;

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// How the cells under a bin become its value.
enum class Method : int { kAlignAverage = 0, kAlignMax = 1, kPoolMax = 2 };

// One feature map (N, C, height, width).
struct Level {
  uint64_t features;  // address, 0 where the values are not needed
  int height;
  int width;
  double scale;  // feature cells per image pixel
  int number;    // rounded log2 of the stride, ascending over the levels
};

struct Request {
  Level levels[kMaxLevels];
  int num_levels;
  int64_t images;
  int64_t channels;
  uint64_t rois;  // address of (R, 5), image index and x1 y1 x2 y2, in the accumulation type
  int64_t regions;
  int pooled_height;
  int pooled_width;
  Method method;
  int sampling_ratio;  // samples a side of a bin; 0 for as many as the bin has cells
  bool aligned;
  double canonical_size;
  int canonical_level;
  bool channels_last;  // layout of features, output and gradients: NHWC in memory, or NCHW
  DType dtype;

  TOOLBOX_FORMULA int bins() const { return pooled_height * pooled_width; }
  TOOLBOX_FORMULA int64_t output_size() const { return regions * channels * bins(); }
};

// Elements of a half type are pooled in float, all others in their own type.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// Which map a region is read from: level floor(canonical_level + log2(sqrt(area) / canonical_size)) of the FPN paper,
// or the nearest that is there. ilogb is an exact floor(log2), the same on every device; the factor (2 ** 1e-6) keeps a
// box of exactly a power of two on the upper level in spite of rounding, as torchvision does.
template <class A>
TOOLBOX_FORMULA int choose_level(const Request& request, const A* roi) {
  if (request.num_levels == 1) return 0;
  const A area = (roi[3] - roi[1]) * (roi[4] - roi[2]);
  const A ratio = std::sqrt(area) / A(request.canonical_size) * A(1.00000069314742);
  if (!(ratio > A(0))) return 0;
  const int number = request.canonical_level + (ratio > A(1e30) ? 100 : std::ilogb(ratio));
  int chosen = 0;
  for (int level = 1; level < request.num_levels; ++level) {
    if (request.levels[level].number <= number) chosen = level;
  }
  return chosen;
}

// Index of the region's image, or -1 where there is no such image.
template <class A>
TOOLBOX_FORMULA int64_t image_of(const Request& request, const A* roi) {
  const A index = roi[0];
  return index >= A(0) && index < A(request.images) ? static_cast<int64_t>(index) : -1;
}

}  // namespace toolbox
