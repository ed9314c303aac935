// One region, channels innermost: the only loops over pixels on the CPU.
#pragma once

#include "pack.h"
#include "plan.h"

namespace toolbox {

constexpr int kBlock = 8;  // registers of channels that stay loaded while the taps of a bin are summed

// A map, or a copy of the part that a region reads, with channels adjacent. Pitches are in elements.
template <class A>
struct RegionView {
  AxisView<A> y;
  AxisView<A> x;
  int pooled_height;
  int pooled_width;
  int64_t row_pitch;
  int64_t column_pitch;
  int64_t pooled_pitch;  // between the bins of the pooled region
  int64_t channels;
  bool maximum;  // bins have any number of candidates; else exactly one
};

// Value of one candidate: the weighted sum over the cells of (point_y, point_x).
template <class T, class A, int lanes, int registers>
TOOLBOX_INLINE void sum_taps(const RegionView<A>& view, const T* map, int point_y, int point_x,
                             typename Register<A, lanes>::Value* sum) {
  using Value = typename Register<A, lanes>::Value;
  for (int v = 0; v < registers; ++v) sum[v] = Value{};
  for (int ty = view.y.taps[point_y]; ty < view.y.taps[point_y + 1]; ++ty) {
    const T* row = map + view.y.cells[ty] * view.row_pitch;
    for (int tx = view.x.taps[point_x]; tx < view.x.taps[point_x + 1]; ++tx) {
      const T* cell = row + view.x.cells[tx] * view.column_pitch;
      const A weight = view.y.weights[ty] * view.x.weights[tx];
#pragma GCC unroll 8
      for (int v = 0; v < registers; ++v) {
        Value value;
        load(cell + v * lanes, &value);
        sum[v] += weight * value;
      }
    }
  }
}

template <class T, class A, int lanes, int registers>
TOOLBOX_INLINE void pool_channels(const RegionView<A>& view, const T* map, T* pooled) {
  using Value = typename Register<A, lanes>::Value;
  for (int bin_y = 0; bin_y < view.pooled_height; ++bin_y) {
    for (int bin_x = 0; bin_x < view.pooled_width; ++bin_x, pooled += view.pooled_pitch) {
      Value best[registers] = {};
      bool first = true;
      for (int py = view.y.points[bin_y]; py < view.y.points[bin_y + 1]; ++py) {
        for (int px = view.x.points[bin_x]; px < view.x.points[bin_x + 1]; ++px) {
          Value sum[registers];
          sum_taps<T, A, lanes, registers>(view, map, py, px, sum);
          for (int v = 0; v < registers; ++v) {
            // NaN is taken, and then kept.
            best[v] = first ? sum[v] : ((sum[v] > best[v]) | (sum[v] != sum[v]) ? sum[v] : best[v]);
          }
          first = false;
        }
      }
      for (int v = 0; v < registers; ++v) store(best[v], pooled + v * lanes);
    }
  }
}

template <class T, class A>
TOOLBOX_INLINE void pool_region(const RegionView<A>& view, const T* map, T* pooled) {
  int64_t c = 0;
  for (; c + kBlock * kLanes <= view.channels; c += kBlock * kLanes) {
    pool_channels<T, A, kLanes, kBlock>(view, map + c, pooled + c);
  }
  for (; c + kLanes <= view.channels; c += kLanes) pool_channels<T, A, kLanes, 1>(view, map + c, pooled + c);
  for (; c < view.channels; ++c) pool_channels<T, A, 1, 1>(view, map + c, pooled + c);
}

// Gradient of a bin that has one candidate: spread over its cells.
template <class T, class A, int lanes, int registers>
TOOLBOX_INLINE void spread_sum(const RegionView<A>& view, const T* pooled, int py, int px, A* gradient) {
  using Value = typename Register<A, lanes>::Value;
  Value given[registers];
  for (int v = 0; v < registers; ++v) load(pooled + v * lanes, &given[v]);
  for (int ty = view.y.taps[py]; ty < view.y.taps[py + 1]; ++ty) {
    A* row = gradient + view.y.cells[ty] * view.row_pitch;
    for (int tx = view.x.taps[px]; tx < view.x.taps[px + 1]; ++tx) {
      A* cell = row + view.x.cells[tx] * view.column_pitch;
      const A weight = view.y.weights[ty] * view.x.weights[tx];
#pragma GCC unroll 8
      for (int v = 0; v < registers; ++v) {
        Value value;
        load(cell + v * lanes, &value);
        store(Value(value + weight * given[v]), cell + v * lanes);
      }
    }
  }
}

// Gradient of a maximum: found again, then given to the cells of the winning candidate, channel by channel.
template <class T, class A>
TOOLBOX_INLINE void spread_maximum(const RegionView<A>& view, const T* map, const T* pooled, int bin_y, int bin_x,
                                   A* gradient) {
  A best = A(0);
  int best_y = -1;
  int best_x = -1;
  for (int py = view.y.points[bin_y]; py < view.y.points[bin_y + 1]; ++py) {
    for (int px = view.x.points[bin_x]; px < view.x.points[bin_x + 1]; ++px) {
      A value;
      sum_taps<T, A, 1, 1>(view, map, py, px, &value);
      if (best_y < 0 || value > best || value != value) {
        best = value;
        best_y = py;
        best_x = px;
      }
    }
  }
  if (best_y >= 0) spread_sum<T, A, 1, 1>(view, pooled, best_y, best_x, gradient);
}

template <class T, class A, int lanes, int registers>
TOOLBOX_INLINE void spread_average(const RegionView<A>& view, const T* pooled, A* gradient) {
  for (int bin_y = 0; bin_y < view.pooled_height; ++bin_y) {
    for (int bin_x = 0; bin_x < view.pooled_width; ++bin_x, pooled += view.pooled_pitch) {
      spread_sum<T, A, lanes, registers>(view, pooled, view.y.points[bin_y], view.x.points[bin_x], gradient);
    }
  }
}

// `map` is not read when averaging, whose gradient does not need the features.
template <class T, class A>
TOOLBOX_INLINE void spread_region(const RegionView<A>& view, const T* map, const T* pooled, A* gradient) {
  int64_t c = 0;
  if (view.maximum) {
    for (int bin_y = 0; bin_y < view.pooled_height; ++bin_y) {
      for (int bin_x = 0; bin_x < view.pooled_width; ++bin_x, pooled += view.pooled_pitch) {
        for (c = 0; c < view.channels; ++c) {
          spread_maximum<T, A>(view, map + c, pooled + c, bin_y, bin_x, gradient + c);
        }
      }
    }
    return;
  }
  for (; c + kBlock * kLanes <= view.channels; c += kBlock * kLanes) {
    spread_average<T, A, kLanes, kBlock>(view, pooled + c, gradient + c);
  }
  for (; c + kLanes <= view.channels; c += kLanes) {
    spread_average<T, A, kLanes, 1>(view, pooled + c, gradient + c);
  }
  for (; c < view.channels; ++c) spread_average<T, A, 1, 1>(view, pooled + c, gradient + c);
}

}  // namespace toolbox
