// Which cells a region reads on one axis, worked out once and used for all channels.
#pragma once

#include <algorithm>
#include <vector>

#include "../request.h"
#include "../roi_align.h"
#include "../roi_pool.h"

namespace toolbox {

// What a kernel sees of a plan. A bin has points, of which it takes the maximum; a point has taps (cell, weight), which
// are summed. A plan for averaging has one point a bin, whose taps are those of all its samples, merged.
template <class A>
struct AxisView {
  const int* points;  // bin b has points points[b] … points[b + 1]
  const int* taps;    // point p has taps taps[p] … taps[p + 1]
  const int* cells;
  const A* weights;
};

// A cell that is read, and how much of it: elements from the map's first, and the weight of both axes.
template <class A>
struct Tap {
  int64_t place;
  A weight;
};

template <class A>
class AxisPlan {
public:
  void plan(const Request& request, A low, A high, A scale, int bins, int size) {
    points_.assign(1, 0);
    taps_.assign(1, 0);
    cells_.clear();
    weights_.clear();
    samples_ = 1;
    if (request.method == Method::kPoolMax) {
      plan_pool(pool_axis(low, high, scale, bins), bins, size);
    } else {
      const auto axis = align_axis(low, high, scale, bins, request.sampling_ratio, request.aligned);
      samples_ = axis.samples;
      plan_align(axis, bins, size, request.method == Method::kAlignMax);
    }
  }

  // Samples of a bin on this axis, those outside the map included.
  int samples() const { return samples_; }

  void scale_weights(A factor) {
    for (A& weight : weights_) weight *= factor;
  }

  // Renumber the cells 0, 1, … in the order of `used()`: for reading from a copy of only those.
  void compress() {
    used_ = cells_;
    std::sort(used_.begin(), used_.end());
    used_.erase(std::unique(used_.begin(), used_.end()), used_.end());
    for (int& cell : cells_) {
      cell = static_cast<int>(std::lower_bound(used_.begin(), used_.end(), cell) - used_.begin());
    }
  }
  const std::vector<int>& used() const { return used_; }

  // Taps of the point that has most.
  size_t most_taps() const {
    int most = 0;
    for (size_t point = 1; point < taps_.size(); ++point) most = std::max(most, taps_[point] - taps_[point - 1]);
    return most;
  }

  AxisView<A> view() const { return {points_.data(), taps_.data(), cells_.data(), weights_.data()}; }

private:
  void plan_align(const AlignAxis<A>& axis, int bins, int size, bool separate) {
    for (int bin = 0; bin < bins; ++bin) {
      const SampleRange range = align_range(axis, bin, A(-1), A(size));
      int inside = 0;
      for (int sample = range.first; sample < range.last; ++sample) {
        const AlignPoint<A> point = align_point(axis, bin, sample, size);
        if (!point.inside) continue;
        ++inside;
        add_tap(point.low, point.weight_low);
        add_tap(point.high, point.weight_high);
        if (separate) end_point();
      }
      // A sample outside counts as zero, which matters to a maximum.
      if (!separate || inside < axis.samples) end_point();
      points_.push_back(static_cast<int>(taps_.size()) - 1);
    }
  }

  void plan_pool(const PoolAxis<A>& axis, int bins, int size) {
    for (int bin = 0; bin < bins; ++bin) {
      const CellRange range = pool_range(axis, bin, size);
      for (int cell = range.first; cell < range.last; ++cell) {
        add_tap(cell, A(1));
        end_point();
      }
      points_.push_back(static_cast<int>(taps_.size()) - 1);
    }
  }

  // Samples come in order, so a cell seen before is one of the last two taps of the point.
  void add_tap(int cell, A weight) {
    if (weight == A(0)) return;
    const int count = static_cast<int>(cells_.size());
    for (int tap = count - 1; tap >= std::max(taps_.back(), count - 2); --tap) {
      if (cells_[tap] == cell) {
        weights_[tap] += weight;
        return;
      }
    }
    cells_.push_back(cell);
    weights_.push_back(weight);
  }

  void end_point() { taps_.push_back(static_cast<int>(cells_.size())); }

  int samples_ = 1;
  std::vector<int> points_;
  std::vector<int> taps_;
  std::vector<int> cells_;
  std::vector<int> used_;
  std::vector<A> weights_;
};

// A region's level, image and both axes.
template <class A>
struct RegionPlan {
  int level = 0;
  int64_t image = 0;
  AxisPlan<A> y;
  AxisPlan<A> x;
  std::vector<Tap<A>> taps;  // room for those of one point of each axis, multiplied out

  void plan(const Request& request, int64_t region) {
    const A* roi = reinterpret_cast<const A*>(request.rois) + region * 5;
    level = choose_level(request, roi);
    image = image_of(request, roi);
    const Level& map = request.levels[level];
    y.plan(request, roi[2], roi[4], A(map.scale), request.pooled_height, map.height);
    x.plan(request, roi[1], roi[3], A(map.scale), request.pooled_width, map.width);
    if (request.method == Method::kAlignAverage) {
      const A count = A(y.samples()) * A(x.samples());
      y.scale_weights(A(1) / (count > A(1) ? count : A(1)));
    }
    taps.resize(y.most_taps() * x.most_taps());
  }
};

}  // namespace toolbox
