// One region, channels innermost: the only loops over pixels on the CPU. A bin is finished for all channels before the
// next one, so that memory is read in whole cells.
#pragma once

#include <type_traits>

#include "pack.h"
#include "plan.h"

namespace toolbox {

constexpr int kBlock = 8;    // registers of channels that stay loaded while the taps of a bin are summed
constexpr int kWinners = 4;  // the same where each has a second register, for the winner of its maximum

// A map, or a copy of the part that a region reads, with channels adjacent. Pitches are in elements.
template <class A>
struct RegionView {
  AxisView<A> y;
  AxisView<A> x;
  Tap<A>* taps;  // room for those of one candidate
  int pooled_height;
  int pooled_width;
  int64_t row_pitch;
  int64_t column_pitch;
  int64_t pooled_pitch;  // between the bins of the pooled region
  int64_t channels;
  Method method;  // an average has one candidate a bin, a maximum any number
};

// Multiply the taps of both axes out for the candidate (py, px), into the view's room; how many they are. The loops
// over channels then need no address but these.
template <class A>
TOOLBOX_INLINE int multiply_out(const RegionView<A>& view, int py, int px) {
  Tap<A>* tap = view.taps;
  for (int ty = view.y.taps[py]; ty < view.y.taps[py + 1]; ++ty) {
    const int64_t row = view.y.cells[ty] * view.row_pitch;
    for (int tx = view.x.taps[px]; tx < view.x.taps[px + 1]; ++tx) {
      *tap++ = {row + view.x.cells[tx] * view.column_pitch, view.y.weights[ty] * view.x.weights[tx]};
    }
  }
  return static_cast<int>(tap - view.taps);
}

// Weighted sum over cells.
template <class T, class A, int lanes, int registers>
TOOLBOX_INLINE void sum_taps(const Tap<A>* taps, int count, const T* map, typename Register<A, lanes>::Value* sum) {
  using Value = typename Register<A, lanes>::Value;
#pragma GCC unroll 8
  for (int v = 0; v < registers; ++v) sum[v] = Value{};
  for (const Tap<A>* tap = taps; tap != taps + count; ++tap) {
    const T* cell = map + tap->place;
#pragma GCC unroll 8
    for (int v = 0; v < registers; ++v) {
      Value value;
      load(cell + v * lanes, &value);
      sum[v] += tap->weight * value;
    }
  }
}

// Its gradient.
template <class T, class A, int lanes, int registers>
TOOLBOX_INLINE void spread_taps(const Tap<A>* taps, int count, const T* pooled, A* gradient) {
  using Value = typename Register<A, lanes>::Value;
  Value given[registers];
#pragma GCC unroll 8
  for (int v = 0; v < registers; ++v) load(pooled + v * lanes, &given[v]);
  for (const Tap<A>* tap = taps; tap != taps + count; ++tap) {
    A* cell = gradient + tap->place;
#pragma GCC unroll 8
    for (int v = 0; v < registers; ++v) {
      Value value;
      load(cell + v * lanes, &value);
      store(Value(value + tap->weight * given[v]), cell + v * lanes);
    }
  }
}

// Where the only cell of a candidate of RoIPool lies, in cells of the view.
template <class A>
TOOLBOX_INLINE int place_of(const RegionView<A>& view, int row_cells, int py, int px) {
  return view.y.cells[view.y.taps[py]] * row_cells + view.x.cells[view.x.taps[px]];
}

// Value of one candidate of a maximum: a whole cell for RoIPool, a bilinear sample for RoIAlign.
template <class T, class A, Method method, int lanes, int registers>
TOOLBOX_INLINE void candidate_value(const RegionView<A>& view, const T* map, int py, int px,
                                    typename Register<A, lanes>::Value* value) {
  if constexpr (method == Method::kPoolMax) {
    const T* cell = map + view.y.cells[view.y.taps[py]] * view.row_pitch;
    cell += view.x.cells[view.x.taps[px]] * view.column_pitch;
#pragma GCC unroll 8
    for (int v = 0; v < registers; ++v) load(cell + v * lanes, &value[v]);
  } else {
    sum_taps<T, A, lanes, registers>(view.taps, multiply_out(view, py, px), map, value);
  }
}

// Maximum of a bin's candidates, 0 where it has none.
template <class T, class A, Method method, int lanes, int registers>
TOOLBOX_INLINE void find_maximum(const RegionView<A>& view, const T* map, int bin_y, int bin_x,
                                 typename Register<A, lanes>::Value* best) {
  using Value = typename Register<A, lanes>::Value;
  for (int v = 0; v < registers; ++v) best[v] = Value{};
  bool first = true;
  for (int py = view.y.points[bin_y]; py < view.y.points[bin_y + 1]; ++py) {
    for (int px = view.x.points[bin_x]; px < view.x.points[bin_x + 1]; ++px) {
      Value value[registers];
      candidate_value<T, A, method, lanes, registers>(view, map, py, px, value);
      if (first) {
        for (int v = 0; v < registers; ++v) best[v] = value[v];
        first = false;
      }
#pragma GCC unroll 8
      for (int v = 0; v < registers; ++v) {
        const auto better = (value[v] > best[v]) | (value[v] != value[v]);  // NaN is taken, and then kept
        best[v] = better ? value[v] : best[v];
      }
    }
  }
}

// One bin, some channels; `taps` are those of an average, multiplied out.
template <class T, class A, Method method, int lanes, int registers>
TOOLBOX_INLINE void pool_channels(const RegionView<A>& view, int taps, const T* map, int bin_y, int bin_x, T* pooled) {
  typename Register<A, lanes>::Value result[registers];
  if constexpr (method == Method::kAlignAverage) {
    sum_taps<T, A, lanes, registers>(view.taps, taps, map, result);
  } else {
    find_maximum<T, A, method, lanes, registers>(view, map, bin_y, bin_x, result);
  }
#pragma GCC unroll 8
  for (int v = 0; v < registers; ++v) store(result[v], pooled + v * lanes);
}

template <class T, class A, Method method>
TOOLBOX_INLINE void pool_bins(const RegionView<A>& view, const T* map, T* pooled) {
  constexpr bool average = method == Method::kAlignAverage;
  for (int bin_y = 0; bin_y < view.pooled_height; ++bin_y) {
    for (int bin_x = 0; bin_x < view.pooled_width; ++bin_x, pooled += view.pooled_pitch) {
      const int taps = average ? multiply_out(view, view.y.points[bin_y], view.x.points[bin_x]) : 0;
      int64_t c = 0;
      for (; c + kBlock * kLanes<A> <= view.channels; c += kBlock * kLanes<A>) {
        pool_channels<T, A, method, kLanes<A>, kBlock>(view, taps, map + c, bin_y, bin_x, pooled + c);
      }
      for (; c + kLanes<A> <= view.channels; c += kLanes<A>) {
        pool_channels<T, A, method, kLanes<A>, 1>(view, taps, map + c, bin_y, bin_x, pooled + c);
      }
      for (; c < view.channels; ++c) {
        pool_channels<T, A, method, 1, 1>(view, taps, map + c, bin_y, bin_x, pooled + c);
      }
    }
  }
}

template <class T, class A>
TOOLBOX_INLINE void pool_region(const RegionView<A>& view, const T* map, T* pooled) {
  switch (view.method) {
    case Method::kAlignAverage:
      return pool_bins<T, A, Method::kAlignAverage>(view, map, pooled);
    case Method::kAlignMax:
      return pool_bins<T, A, Method::kAlignMax>(view, map, pooled);
    case Method::kPoolMax:
      return pool_bins<T, A, Method::kPoolMax>(view, map, pooled);
  }
}

template <class Index>
TOOLBOX_INLINE int64_t lane_of(const Index& index, int lane) {
  if constexpr (std::is_integral_v<Index>) {
    return index;
  } else {
    return index[lane];
  }
}

// Gradient of a maximum: found again, all lanes at once, then given to the cells of each lane's winning candidate.
template <class T, class A, Method method, int lanes, int registers>
TOOLBOX_INLINE void spread_maximum(const RegionView<A>& view, const T* map, const T* pooled, int bin_y, int bin_x,
                                   A* gradient) {
  using Value = typename Register<A, lanes>::Value;
  using Index = typename Register<A, lanes>::Index;
  const int row_cells = static_cast<int>(view.row_pitch / view.column_pitch);
  const int first_x = view.x.points[bin_x];
  const int columns = view.x.points[bin_x + 1] - first_x;
  Value best[registers] = {};
  Index winner[registers] = {};
  int candidate = 0;
  for (int py = view.y.points[bin_y]; py < view.y.points[bin_y + 1]; ++py) {
    for (int px = first_x; px < first_x + columns; ++px, ++candidate) {
      Value value[registers];
      candidate_value<T, A, method, lanes, registers>(view, map, py, px, value);
      const int name = method == Method::kPoolMax ? place_of(view, row_cells, py, px) : candidate;
      for (int v = 0; v < registers; ++v) {
        const auto better = (value[v] > best[v]) | (value[v] != value[v]);  // NaN is taken, and then kept
        best[v] = candidate == 0 ? value[v] : (better ? value[v] : best[v]);
        winner[v] = candidate == 0 ? Index{} + name : (better ? Index{} + name : winner[v]);
      }
    }
  }
  if (candidate == 0) return;
  for (int v = 0; v < registers; ++v, pooled += lanes, gradient += lanes) {
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t chosen = lane_of(winner[v], lane);
      if constexpr (method == Method::kPoolMax) {
        A given;
        load(pooled + lane, &given);
        gradient[chosen * view.column_pitch + lane] += given;
      } else {
        const int py = view.y.points[bin_y] + static_cast<int>(chosen / columns);
        const int taps = multiply_out(view, py, first_x + static_cast<int>(chosen % columns));
        spread_taps<T, A, 1, 1>(view.taps, taps, pooled + lane, gradient + lane);
      }
    }
  }
}

template <class T, class A, Method method, int lanes, int registers>
TOOLBOX_INLINE void spread_channels(const RegionView<A>& view, int taps, int64_t c, const T* map, const T* pooled,
                                    int bin_y, int bin_x, A* gradient) {
  if constexpr (method == Method::kAlignAverage) {
    spread_taps<T, A, lanes, registers>(view.taps, taps, pooled + c, gradient + c);
  } else {
    spread_maximum<T, A, method, lanes, registers>(view, map + c, pooled + c, bin_y, bin_x, gradient + c);
  }
}

template <class T, class A, Method method>
TOOLBOX_INLINE void spread_bins(const RegionView<A>& view, const T* map, const T* pooled, A* gradient) {
  constexpr bool average = method == Method::kAlignAverage;
  constexpr int kTogether = average ? kBlock : kWinners;
  for (int bin_y = 0; bin_y < view.pooled_height; ++bin_y) {
    for (int bin_x = 0; bin_x < view.pooled_width; ++bin_x, pooled += view.pooled_pitch) {
      const int taps = average ? multiply_out(view, view.y.points[bin_y], view.x.points[bin_x]) : 0;
      int64_t c = 0;
      for (; c + kTogether * kLanes<A> <= view.channels; c += kTogether * kLanes<A>) {
        spread_channels<T, A, method, kLanes<A>, kTogether>(view, taps, c, map, pooled, bin_y, bin_x, gradient);
      }
      for (; c + kLanes<A> <= view.channels; c += kLanes<A>) {
        spread_channels<T, A, method, kLanes<A>, 1>(view, taps, c, map, pooled, bin_y, bin_x, gradient);
      }
      for (; c < view.channels; ++c) {
        spread_channels<T, A, method, 1, 1>(view, taps, c, map, pooled, bin_y, bin_x, gradient);
      }
    }
  }
}

// `map` is not read when averaging, whose gradient does not need the features.
template <class T, class A>
TOOLBOX_INLINE void spread_region(const RegionView<A>& view, const T* map, const T* pooled, A* gradient) {
  switch (view.method) {
    case Method::kAlignAverage:
      return spread_bins<T, A, Method::kAlignAverage>(view, map, pooled, gradient);
    case Method::kAlignMax:
      return spread_bins<T, A, Method::kAlignMax>(view, map, pooled, gradient);
    case Method::kPoolMax:
      return spread_bins<T, A, Method::kPoolMax>(view, map, pooled, gradient);
  }
}

}  // namespace toolbox
