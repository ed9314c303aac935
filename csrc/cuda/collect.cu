// The deterministic backward: a block owns a tile of cells and collects what the regions that reach it give, in order.
#include "pool.h"
#include "tiles.cuh"

namespace toolbox {
namespace {

constexpr int kLanes = 32;  // packs of channels that a block handles, one a thread of a warp
constexpr int kBins = 16;   // bins a side whose weights are staged at once
static_assert(kThreads == kTile * kLanes, "a warp handles one row of a tile");
static_assert(kThreads == 2 * kBins * kTile, "a thread stages one weight");

// What bins give to the cells of a tile, by axis: the sum of its samples' weights. A region's weight for a bin and a
// cell is the product; for a maximum they only tell which cells a bin can reach.
template <class A>
struct Weights {
  A y[kBins][kTile];
  A x[kBins][kTile];
};

template <class A>
__device__ __forceinline__ A weight_on(const AlignPoint<A>& point, int cell) {
  if (!point.inside) return A(0);
  return (point.low == cell ? point.weight_low : A(0)) + (point.high == cell ? point.weight_high : A(0));
}

template <class A>
__device__ __forceinline__ A weight_of(const AlignAxis<A>& axis, int bin, int cell, int size) {
  const SampleRange range = align_range(axis, bin, A(cell - 1), A(cell + 1));
  A sum = A(0);
  for (int sample = range.first; sample < range.last; ++sample) {
    sum += weight_on(align_point(axis, bin, sample, size), cell);
  }
  return sum;
}

template <class A>
__device__ __forceinline__ A weight_of(const PoolAxis<A>& axis, int bin, int cell, int size) {
  const CellRange range = pool_range(axis, bin, size);
  return cell >= range.first && cell < range.last ? A(1) : A(0);
}

// The weights of bins from (ys.first, xs.first) on, at most kBins a side; every thread of the block computes one.
template <Method method, class Region, class A>
__device__ __forceinline__ void stage(const Region& region, const Level& level, const TilePlace& tile, BinRange ys,
                                      BinRange xs, Weights<A>& weights) {
  const int bin = threadIdx.x / kTile % kBins;
  const int cell = threadIdx.x % kTile;
  if (threadIdx.x < kBins * kTile) {
    if (ys.first + bin >= ys.last) return;
    A weight = weight_of(region.y, ys.first + bin, tile.y + cell, level.height);
    if constexpr (method == Method::kAlignAverage) weight /= region.count();
    weights.y[bin][cell] = weight;
  } else if (xs.first + bin < xs.last) {
    weights.x[bin][cell] = weight_of(region.x, xs.first + bin, tile.x + cell, level.width);
  }
}

// V channels of one bin, whose gradients are `given`, to a row of cells. A cell that the bin does not reach is passed
// over, not given zero times the gradient, which need not be finite.
template <Method method, int V, class Region, class A>
__device__ __forceinline__ void give(const Region& region, const Level& level, int bin_y, int bin_x, int y, int x,
                                     A weight_y, const A* weights_x, const int64_t* winners, A* given, A (*sums)[V]) {
  if constexpr (method == Method::kAlignAverage) {
#pragma unroll
    for (int v = 0; v < V; ++v) given[v] *= weight_y;
#pragma unroll
    for (int cell = 0; cell < kTile; ++cell) {
      const A weight = weights_x[cell];
      if (weight == A(0)) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) sums[cell][v] += weight * given[v];
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t winner = winners[v];
      if (winner < 0) continue;
      if constexpr (method == Method::kPoolMax) {
        if (winner_y(winner) != y) continue;
#pragma unroll
        for (int cell = 0; cell < kTile; ++cell) {
          if (winner_x(winner) == x + cell) sums[cell][v] += given[v];
        }
      } else {
        const A own = weight_on(align_point(region.y, bin_y, winner_y(winner), level.height), y);
        if (own == A(0)) continue;
        const AlignPoint<A> point = align_point(region.x, bin_x, winner_x(winner), level.width);
#pragma unroll
        for (int cell = 0; cell < kTile; ++cell) {
          const A weight = weight_on(point, x + cell);
          if (weight != A(0)) sums[cell][v] += own * weight * given[v];
        }
      }
    }
  }
}

template <class A>
__device__ __forceinline__ bool reaches_any(const A* weights) {
  A sum = A(0);
#pragma unroll
  for (int cell = 0; cell < kTile; ++cell) sum += weights[cell];  // none is negative
  return sum != A(0);
}

// What the staged bins of a region, of which (0, 0) is `first_bin`, give to V channels of a row of cells.
template <Method method, int V, class T, class Region, class A>
__device__ __forceinline__ void gather(const Request& request, const Region& region, const Level& level, BinRange ys,
                                       BinRange xs, int y, int x, const Weights<A>& weights, int64_t first_bin,
                                       const T* pooled, const int64_t* winners, A (*sums)[V]) {
  const int64_t next_bin = request.channels_last ? request.channels : 1;
  for (int by = 0; by < kBins && ys.first + by < ys.last; ++by) {
    const A weight_y = weights.y[by][y % kTile];
    if (weight_y == A(0)) continue;
    for (int bx = 0; bx < kBins && xs.first + bx < xs.last; ++bx) {
      if (!reaches_any(weights.x[bx])) continue;
      const int bin_y = ys.first + by;
      const int bin_x = xs.first + bx;
      const int64_t from = first_bin + (int64_t(bin_y) * request.pooled_width + bin_x) * next_bin;
      A given[V];
      load<V>(pooled + from, given);
      give<method, V>(region, level, bin_y, bin_x, y, x, weight_y, weights.x[bx], winners + from, given, sums);
    }
  }
}

// One thread, V channels of a row of kTile cells. All threads of a block take the same way through the loops, for they
// meet at __syncthreads. One meeting is enough for two sets of weights in turn: nobody stages into a set before all
// have met once more, and so are through with it.
template <class T, Method method, int V>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(const __grid_constant__ Request request, const __grid_constant__ Tiles tiles, const T* pooled,
                   const int64_t* winners, const __grid_constant__ Gradients gradients) {
  using A = typename Accumulate<T>::type;
  __shared__ Weights<A> staged[2];
  int turn = 0;
  const int64_t total = tiles.count * ((request.channels + kLanes * V - 1) / (kLanes * V));
  for (int64_t work = blockIdx.x; work < total; work += gridDim.x) {
    const TilePlace tile = place_of_tile(tiles, work % tiles.count);
    const Level& level = request.levels[tile.level];
    const uint64_t* marked = tiles.bits + work % tiles.count * tiles.words;
    const int64_t channel = (work / tiles.count * kLanes + threadIdx.x % kLanes) * V;
    const int y = tile.y + static_cast<int>(threadIdx.x) / kLanes;
    const bool owns = channel < request.channels && y < level.height;
    A sums[kTile][V] = {};
    each_marked(marked, tiles.words, [&](int64_t number) {
      const A* roi = reinterpret_cast<const A*>(request.rois) + number * 5;
      const typename Regions<method, A>::type region(request, level, roi);
      const int64_t first_bin = pooled_index(request, {number, channel, 0, 0});
      const BinRange all_x = bins_near<A>(region.x, request.pooled_width, tile.x);
      BinRange ys = bins_near<A>(region.y, request.pooled_height, tile.y);
      for (; ys.first < ys.last; ys.first += kBins) {
        for (BinRange xs = all_x; xs.first < xs.last; xs.first += kBins) {
          Weights<A>& weights = staged[turn];
          turn = 1 - turn;
          stage<method>(region, level, tile, ys, xs, weights);
          __syncthreads();
          if (owns) {
            gather<method, V>(request, region, level, ys, xs, y, tile.x, weights, first_bin, pooled, winners, sums);
          }
        }
      }
    });
    if (!owns) continue;
    const auto to = plane_of(request, level, static_cast<T*>(gradients.levels[tile.level]), tile.image, channel);
#pragma unroll
    for (int cell = 0; cell < kTile; ++cell) {
      if (tile.x + cell < level.width) store<V>(sums[cell], &to.at(y, tile.x + cell));
    }
  }
}

template <class T, Method method>
void run_collect(const Request& request, const Tiles& tiles, const T* pooled, const int64_t* winners,
                 const Gradients& gradients, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  launch(mark_kernel<A, method>, blocks_for(request.regions * tiles.most_rows), stream, request, tiles);
  const auto collect = [&](auto kernel, int pack) {
    const int64_t blocks = tiles.count * ((request.channels + kLanes * pack - 1) / (kLanes * pack));
    launch(kernel, blocks_for(blocks * kThreads), stream, request, tiles, pooled, winners, gradients);
  };
  packs_fit<T>(request, pooled, &gradients) ? collect(collect_kernel<T, method, kPacked<T>>, kPacked<T>)
                                            : collect(collect_kernel<T, method, 1>, 1);
}

}  // namespace

int64_t collect_workspace(const Request& request) {
  const Tiles tiles = tiles_of(request, nullptr);
  return tiles.count * tiles.words * static_cast<int64_t>(sizeof(uint64_t));
}

void pool_collect_cuda(const Request& request, const void* pooled_gradient, void* const* gradients,
                       const int64_t* winners, void* workspace, int device, void* stream) {
  check(cudaSetDevice(device), "RoI pooling, choosing the device");
  const Tiles tiles = tiles_of(request, workspace);
  const Gradients maps = gradients_of(request, gradients);
  const auto queue = static_cast<cudaStream_t>(stream);
  with_element_type(request.dtype, [&](auto element) {
    using T = decltype(element);
    const T* given = static_cast<const T*>(pooled_gradient);
    switch (request.method) {
      case Method::kAlignAverage:
        return run_collect<T, Method::kAlignAverage>(request, tiles, given, winners, maps, queue);
      case Method::kAlignMax:
        return run_collect<T, Method::kAlignMax>(request, tiles, given, winners, maps, queue);
      case Method::kPoolMax:
        return run_collect<T, Method::kPoolMax>(request, tiles, given, winners, maps, queue);
    }
  });
  check(cudaGetLastError(), "RoI pooling, deterministic backward");
}

}  // namespace toolbox
