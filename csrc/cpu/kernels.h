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

// Gradient of a maximum: found again, all lanes at once, then given to the cells of each lane's winning candidate.
template <class T, class A, int lanes>
TOOLBOX_INLINE void spread_maximum(const RegionView<A>& view, const T* map, const T* pooled, int bin_y, int bin_x,
                                   A* gradient) {
  using Value = typename Register<A, lanes>::Value;
  using Index = typename Register<A, lanes>::Index;
  const int first_x = view.x.points[bin_x];
  const int columns = view.x.points[bin_x + 1] - first_x;
  Value best = {};
  Index winner = {};
  int candidate = 0;
  for (int py = view.y.points[bin_y]; py < view.y.points[bin_y + 1]; ++py) {
    for (int px = first_x; px < first_x + columns; ++px, ++candidate) {
      Value value;
      sum_taps<T, A, lanes, 1>(view, map, py, px, &value);
      const auto better = (value > best) | (value != value);  // NaN is taken, and then kept
      best = candidate == 0 ? value : (better ? value : best);
      winner = candidate == 0 ? winner : (better ? winner * 0 + candidate : winner);
    }
  }
  if (candidate == 0) return;
  for (int lane = 0; lane < lanes; ++lane) {
    int chosen;
    if constexpr (lanes == 1) {
      chosen = static_cast<int>(winner);
    } else {
      chosen = static_cast<int>(winner[lane]);
    }
    const int py = view.y.points[bin_y] + chosen / columns;
    spread_sum<T, A, 1, 1>(view, pooled + lane, py, first_x + chosen % columns, gradient + lane);
  }
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
        for (c = 0; c + kLanes <= view.channels; c += kLanes) {
          spread_maximum<T, A, kLanes>(view, map + c, pooled + c, bin_y, bin_x, gradient + c);
        }
        for (; c < view.channels; ++c) {
          spread_maximum<T, A, 1>(view, map + c, pooled + c, bin_y, bin_x, gradient + c);
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
