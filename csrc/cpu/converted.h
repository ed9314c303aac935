// One image's maps with channels innermost: what a call on maps with channels outermost reads and sums into, where its
// regions together cover more cells than there are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "../request.h"
#include "memory.h"
#include "threads.h"

namespace toolbox {

struct Freed {
  void operator()(void* memory) const { std::free(memory); }
};

// The maps of all levels of an image, each (height, width, channels), one behind the other.
template <class E>
class ConvertedMaps {
public:
  explicit ConvertedMaps(const Request& request) : request_(request) {
    int64_t cells = 0;
    for (int level = 0; level < request.num_levels; ++level) {
      first_[level] = cells * request.channels;
      cells += cells_of(level);
    }
    bytes_ = cells * request.channels * static_cast<int64_t>(sizeof(E));
    data_.reset(static_cast<E*>(std::malloc(static_cast<size_t>(bytes_))));
    if (!data_) throw std::bad_alloc();
    prefer_huge_pages(data_.get(), bytes_);
  }

  E* level(int index) const { return data_.get() + first_[index]; }
  void zero(int threads) { fill_zero(data_.get(), bytes_, threads); }

  // Call visit(level, first cell, cells) for all cells, in tiles that several threads share.
  template <class Visit>
  void each_tile(int threads, const Visit& visit) const {
    constexpr int64_t kTile = 256;
    for (int level = 0; level < request_.num_levels; ++level) {
      const int64_t cells = cells_of(level);
      WorkQueue queue((cells + kTile - 1) / kTile, /*run=*/4);
      run_threads(threads_for(cells * request_.channels, threads), [&](int) {
        for (int64_t first, last; queue.take(&first, &last);) {
          visit(level, first * kTile, std::min(last * kTile, cells) - first * kTile);
        }
      });
    }
  }

private:
  int64_t cells_of(int level) const { return int64_t(request_.levels[level].height) * request_.levels[level].width; }

  const Request& request_;
  int64_t first_[kMaxLevels] = {};
  int64_t bytes_ = 0;
  std::unique_ptr<E, Freed> data_;
};

// Whether the regions, each read on its own, would touch more cells than all maps have.
template <class A>
bool worth_converting(const Request& request) {
  double all = 0;
  for (int level = 0; level < request.num_levels; ++level) {
    all += double(request.levels[level].height) * request.levels[level].width;
  }
  all *= double(request.images);
  double touched = 0;
  const A* roi = reinterpret_cast<const A*>(request.rois);
  for (int64_t region = 0; region < request.regions && touched <= all; ++region, roi += 5) {
    const Level& map = request.levels[choose_level(request, roi)];
    const double height = std::fabs(double(roi[4] - roi[2])) * map.scale + 2;
    const double width = std::fabs(double(roi[3] - roi[1])) * map.scale + 2;
    // A box that is not finite reads nothing, and std::fmin takes the number.
    touched += std::fmin(height, map.height) * std::fmin(width, map.width);
  }
  return touched > all;
}

}  // namespace toolbox
