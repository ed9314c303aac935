// Between an NCHW map and a copy, channels adjacent, of the cells that one region uses.
#pragma once

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
    for (int64_t c = 0; c < channels; ++c, map += int64_t(height) * width) {
      T* to = patch + c;
      for (const int row : rows) {
        const T* from = map + int64_t(row) * width;
        for (const int column : columns) {
          *to = from[column];
          to += channels;
        }
      }
    }
  }

  template <class A>
  void scatter_add(const A* patch, int64_t channels, A* map) const {
    for (int64_t c = 0; c < channels; ++c, map += int64_t(height) * width) {
      const A* from = patch + c;
      for (const int row : rows) {
        A* to = map + int64_t(row) * width;
        for (const int column : columns) {
          to[column] += *from;
          from += channels;
        }
      }
    }
  }
};

// `from` (rows, columns) to `to` (columns, rows).
template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, int64_t from_pitch, T* to) {
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t row = 0; row < rows; ++row) to[column * rows + row] = from[row * from_pitch + column];
  }
}

}  // namespace toolbox
