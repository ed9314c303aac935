// Between an NCHW map and a copy, channels adjacent, of the cells that one region uses.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace toolbox {

// Channels copied together: enough to vectorise over, few enough that a patch stays in cache.
constexpr int64_t kPatchChannels = 64;

// Rows and columns of a map (C, height, width) that a patch [row][column][channel] stands for.
struct PatchCells {
  const std::vector<int>& rows;
  const std::vector<int>& columns;
  int height;
  int width;

  size_t count() const { return rows.size() * columns.size(); }

  template <class T>
  void gather(const T* map, int64_t channels, T* patch) const {
    each_cell(channels, [=](int64_t cell, int64_t place, int64_t channel, int64_t area) {
      patch[place * channels + channel] = map[channel * area + cell];
    });
  }

  template <class A>
  void scatter_add(const A* patch, int64_t channels, A* map) const {
    each_cell(channels, [=](int64_t cell, int64_t place, int64_t channel, int64_t area) {
      map[channel * area + cell] += patch[place * channels + channel];
    });
  }

private:
  // Call visit(cell of the map, cell of the patch, channel, cells of the map). A few channels at a time, so that both
  // sides stay within cache lines just used.
  template <class Visit>
  void each_cell(int64_t channels, const Visit& visit) const {
    constexpr int64_t kTogether = 16;
    const int64_t area = int64_t(height) * width;
    for (int64_t first = 0; first < channels; first += kTogether) {
      const int64_t last = std::min(first + kTogether, channels);
      int64_t place = 0;
      for (const int row : rows) {
        for (const int column : columns) {
          const int64_t cell = int64_t(row) * width + column;
          for (int64_t channel = first; channel < last; ++channel) visit(cell, place, channel, area);
          ++place;
        }
      }
    }
  }
};

}  // namespace toolbox
