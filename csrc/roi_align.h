// RoIAlign (He et al., Mask R-CNN): bilinear samples at regular places of each bin. The axes are independent, so the
// formulas are written for one axis.
#pragma once

#include <cmath>

#include "portable.h"

namespace toolbox {

// More samples a side of one bin than this are not taken: it only limits boxes of over a million cells.
constexpr int kMaxSamples = 1 << 20;

// One axis of a region, in feature cells.
template <class A>
struct AlignAxis {
  A start;
  A bin;        // length of a bin, negative for an inverted box
  int samples;  // a bin's samples on this axis
};

template <class A>
TOOLBOX_FORMULA AlignAxis<A> align_axis(A low, A high, A scale, int bins, int sampling_ratio, bool aligned) {
  const A offset = aligned ? A(0.5) : A(0);
  AlignAxis<A> axis;
  axis.start = low * scale - offset;
  A length = high * scale - offset - axis.start;
  if (!aligned && length < A(1)) length = A(1);
  axis.bin = length / A(bins);
  axis.samples = sampling_ratio;
  if (sampling_ratio <= 0) {
    const A needed = std::ceil(axis.bin);
    axis.samples = needed > A(0) ? static_cast<int>(needed < A(kMaxSamples) ? needed : A(kMaxSamples)) : 0;
  }
  return axis;
}

// Where a sample reads: two neighbouring cells and their weights.
template <class A>
struct AlignPoint {
  bool inside;  // a sample more than one cell outside the map reads nothing and counts as zero
  int low;
  int high;
  A weight_low;
  A weight_high;
};

template <class A>
TOOLBOX_FORMULA AlignPoint<A> align_point(const AlignAxis<A>& axis, int bin, int sample, int size) {
  AlignPoint<A> point = {false, 0, 0, A(0), A(0)};
  A place = axis.start + A(bin) * axis.bin + (A(sample) + A(0.5)) * axis.bin / A(axis.samples);
  if (!(place >= A(-1) && place <= A(size))) return point;  // the negation catches NaN
  point.inside = true;
  if (place < A(0)) place = A(0);
  point.low = static_cast<int>(place);
  if (point.low >= size - 1) {
    point.low = point.high = size - 1;
    point.weight_low = A(1);
    return point;
  }
  point.high = point.low + 1;
  point.weight_high = place - A(point.low);
  point.weight_low = A(1) - point.weight_high;
  return point;
}

// Samples [first, last) of a bin include all that lie between two places. It bounds the work of a huge box.
struct SampleRange {
  int first;
  int last;
};

template <class A>
TOOLBOX_FORMULA SampleRange align_range(const AlignAxis<A>& axis, int bin, A from, A to) {
  SampleRange range = {0, axis.samples};
  const A step = axis.bin / A(axis.samples);
  if (axis.samples <= 4 || !(step > A(0))) return range;
  const A base = axis.start + A(bin) * axis.bin;
  const A limit = A(axis.samples);
  const A first = std::floor((from - base) / step) - A(1);
  const A last = std::ceil((to - base) / step) + A(2);
  range.first = static_cast<int>(first > A(0) ? (first < limit ? first : limit) : A(0));
  range.last = static_cast<int>(last > A(0) ? (last < limit ? last : limit) : A(0));
  return range;
}

}  // namespace toolbox
