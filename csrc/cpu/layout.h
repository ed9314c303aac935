// From channels outermost to channels innermost and back: matrices (rows, columns) transposed in tiles.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pack.h"

namespace toolbox {

// Eight rows of eight floats, their columns made rows, in registers.
TOOLBOX_INLINE void transpose_8x8(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  using V = vec::f32x8;
  using I = vec::i32x8;
  V r[8], s[8];
  for (int i = 0; i < 8; ++i) load(from + i * from_pitch, &r[i]);
  for (int i = 0; i < 8; i += 2) {
    s[i] = __builtin_shuffle(r[i], r[i + 1], I{0, 8, 1, 9, 4, 12, 5, 13});
    s[i + 1] = __builtin_shuffle(r[i], r[i + 1], I{2, 10, 3, 11, 6, 14, 7, 15});
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = __builtin_shuffle(s[i + j], s[i + j + 2], I{0, 1, 8, 9, 4, 5, 12, 13});
      r[i + 2 * j + 1] = __builtin_shuffle(s[i + j], s[i + j + 2], I{2, 3, 10, 11, 6, 7, 14, 15});
    }
  }
  for (int i = 0; i < 4; ++i) {
    store(V(__builtin_shuffle(r[i], r[i + 4], I{0, 1, 2, 3, 8, 9, 10, 11})), to + i * to_pitch);
    store(V(__builtin_shuffle(r[i], r[i + 4], I{4, 5, 6, 7, 12, 13, 14, 15})), to + (i + 4) * to_pitch);
  }
}

template <class T>
TOOLBOX_INLINE void transpose_plain(const T* from, int64_t from_pitch, T* to, int64_t to_pitch, int64_t rows,
                                    int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) to[column * to_pitch + row] = from[row * from_pitch + column];
  }
}

// Rows of `from` become columns of `to`. Sixteen by sixteen: a whole cache line on both sides.
template <class T>
TOOLBOX_INLINE void transpose_tiled(const T* from, int64_t from_pitch, T* to, int64_t to_pitch, int64_t rows,
                                    int64_t columns) {
  constexpr int64_t kTile = 16;
  for (int64_t column = 0; column < columns; column += kTile) {
    const int64_t wide = std::min(kTile, columns - column);
    for (int64_t row = 0; row < rows; row += kTile) {
      const int64_t high = std::min(kTile, rows - row);
      const T* tile = from + row * from_pitch + column;
      T* place = to + column * to_pitch + row;
      if constexpr (sizeof(T) == 4) {
        if (wide == kTile && high == kTile) {
          for (int64_t y = 0; y < kTile; y += 8) {
            for (int64_t x = 0; x < kTile; x += 8) {
              transpose_8x8(tile + y * from_pitch + x, from_pitch, place + x * to_pitch + y, to_pitch);
            }
          }
          continue;
        }
      }
      transpose_plain(tile, from_pitch, place, to_pitch, high, wide);
    }
  }
}

}  // namespace toolbox
