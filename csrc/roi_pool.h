// RoIPool (Girshick, Fast R-CNN): the region and its bins are rounded to whole cells, and a bin takes their maximum.
#pragma once

#include <cmath>

#include "portable.h"

namespace toolbox {

// One axis of a region, in whole feature cells.
template <class A>
struct PoolAxis {
  int start;
  A bin;  // length of a bin; 0 for a box that is not finite
};

template <class A>
TOOLBOX_FORMULA PoolAxis<A> pool_axis(A low, A high, A scale, int bins) {
  const A limit = A(1 << 28);  // keeps the integers below from overflowing
  const A first = std::round(low * scale);
  const A last = std::round(high * scale);
  if (!(first - first == A(0) && last - last == A(0))) return {0, A(0)};  // infinite, or not a number
  PoolAxis<A> axis;
  axis.start = static_cast<int>(clamp_to(first, -limit, limit));
  const int length = static_cast<int>(clamp_to(last, -limit, limit)) - axis.start + 1;
  axis.bin = A(length > 1 ? length : 1) / A(bins);
  return axis;
}

// Cells [first, last) of a bin, inside the map; empty where the bin lies outside.
struct CellRange {
  int first;
  int last;
};

template <class A>
TOOLBOX_FORMULA CellRange pool_range(const PoolAxis<A>& axis, int bin, int size) {
  const int first = static_cast<int>(std::floor(A(bin) * axis.bin)) + axis.start;
  const int last = static_cast<int>(std::ceil(A(bin + 1) * axis.bin)) + axis.start;
  return {clamp_to(first, 0, size), clamp_to(last, 0, size)};
}

}  // namespace toolbox
