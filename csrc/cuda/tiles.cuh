// Maps cut into tiles of cells, and which regions can reach a tile: a set of bits per tile, so that walking it is
// walking the regions in ascending order, whatever order the bits were set in.
#pragma once

#include "device.cuh"

namespace toolbox {

constexpr int kTile = 8;  // cells a side

// The tiles of all levels and images are numbered in a row, the last level's first: where levels are chosen by size its
// tiles are reached by the most regions, and what takes longest should start first.
struct Tiles {
  int64_t first[kMaxLevels];  // number of a level's first tile
  int rows[kMaxLevels];
  int columns[kMaxLevels];
  int most_rows;
  int64_t count;
  int64_t words;   // of 64 regions, a tile
  uint64_t* bits;  // (count, words)
};

inline Tiles tiles_of(const Request& request, void* bits) {
  Tiles tiles = {};
  for (int level = request.num_levels - 1; level >= 0; --level) {
    tiles.rows[level] = static_cast<int>((int64_t(request.levels[level].height) + kTile - 1) / kTile);
    tiles.columns[level] = static_cast<int>((int64_t(request.levels[level].width) + kTile - 1) / kTile);
    tiles.most_rows = tiles.rows[level] > tiles.most_rows ? tiles.rows[level] : tiles.most_rows;
    tiles.first[level] = tiles.count;
    tiles.count += request.images * tiles.rows[level] * tiles.columns[level];
  }
  tiles.words = (request.regions + 63) / 64;
  tiles.bits = static_cast<uint64_t*>(bits);
  return tiles;
}

struct TilePlace {
  int level;
  int64_t image;
  int y;  // its first cell
  int x;
};

__device__ __forceinline__ TilePlace place_of_tile(const Tiles& tiles, int64_t tile) {
  TilePlace place = {0, 0, 0, 0};
  while (tile < tiles.first[place.level]) ++place.level;
  tile -= tiles.first[place.level];
  place.x = static_cast<int>(tile % tiles.columns[place.level]) * kTile;
  tile /= tiles.columns[place.level];
  place.y = static_cast<int>(tile % tiles.rows[place.level]) * kTile;
  place.image = tile / tiles.rows[place.level];
  return place;
}

template <Method method, class A>
struct Regions {
  using type = AlignRegion<A>;
};
template <class A>
struct Regions<Method::kPoolMax, A> {
  using type = PoolRegion<A>;
};

// Bins [first, last) of an axis.
struct BinRange {
  int first;
  int last;
};

// All bins that can read one of the kTile cells from `cell` on are among these; it takes no loop to find them.
template <class A, class Axis>
__device__ __forceinline__ BinRange bins_near(const Axis& axis, int bins, int cell) {
  const A start = A(axis.start);
  if (!(start - start == A(0) && axis.bin - axis.bin == A(0))) return {0, 0};  // not finite: it reads nothing
  // A bin reads at most one cell beyond its ends. Rounding gets another cell, which covers the coordinates' where a bin
  // is small, and an eighth of a bin, which covers them where it is large.
  const A from = A(cell - 2) - start;
  const A to = A(cell + kTile + 1) - start;
  if (axis.bin == A(0)) return {0, from <= A(0) && to >= A(0) ? bins : 0};
  const A one = from / axis.bin;
  const A other = to / axis.bin;
  const A low = (one < other ? one : other) - A(0.125);  // the bins of an inverted box run downwards
  const A high = (one < other ? other : one) + A(0.125);
  BinRange range;
  range.first = low > A(0) ? (low < A(bins) ? static_cast<int>(low) : bins) : 0;
  range.last = high >= A(0) ? (high < A(bins) ? static_cast<int>(high) + 1 : bins) : 0;
  return range;
}

// One thread, one region and one row of tiles of its map: mark it where it reaches them. Bits start at zero. An atomic
// "or" comes to the same in any order.
template <class A, Method method>
__global__ void __launch_bounds__(kThreads)
    mark_kernel(const __grid_constant__ Request request, const __grid_constant__ Tiles tiles) {
  const int64_t total = request.regions * tiles.most_rows;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += step) {
    const int64_t number = index / tiles.most_rows;
    const int row = static_cast<int>(index % tiles.most_rows);
    const A* roi = reinterpret_cast<const A*>(request.rois) + number * 5;
    const int64_t image = image_of(request, roi);
    if (image < 0) continue;
    const int chosen = choose_level(request, roi);
    if (row >= tiles.rows[chosen]) continue;
    const typename Regions<method, A>::type region(request, request.levels[chosen], roi);
    const BinRange ys = bins_near<A>(region.y, request.pooled_height, row * kTile);
    if (ys.first >= ys.last) continue;
    const int64_t first = tiles.first[chosen] + (image * tiles.rows[chosen] + row) * tiles.columns[chosen];
    for (int column = 0; column < tiles.columns[chosen]; ++column) {
      const BinRange xs = bins_near<A>(region.x, request.pooled_width, column * kTile);
      if (xs.first >= xs.last) continue;
      auto* word = reinterpret_cast<unsigned long long*>(tiles.bits + (first + column) * tiles.words + number / 64);
      atomicOr(word, 1ULL << (number % 64));
    }
  }
}

// Call visit(region) for the regions that are marked, in ascending order.
template <class Visit>
__device__ __forceinline__ void each_marked(const uint64_t* marked, int64_t words, const Visit& visit) {
  for (int64_t word = 0; word < words; ++word) {
    for (uint64_t bits = marked[word]; bits != 0; bits &= bits - 1) {
      visit(word * 64 + __ffsll(static_cast<long long>(bits)) - 1);
    }
  }
}

}  // namespace toolbox
