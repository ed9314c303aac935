// The vectorised loops, compiled for plain x86-64 (or any other machine) and for AVX2; which, is known when they run.
#pragma once

#include "isa.h"
#include "kernels.h"
#include "layout.h"

namespace toolbox {

template <class T, class A>
struct Loops {
  void (*pool)(const RegionView<A>&, const T* map, T* pooled);
  void (*spread)(const RegionView<A>&, const T* map, const T* pooled, A* gradient);
  void (*transpose)(const T* from, int64_t from_pitch, T* to, int64_t to_pitch, int64_t rows, int64_t columns);
  void (*transpose_sums)(const A* from, int64_t from_pitch, A* to, int64_t to_pitch, int64_t rows, int64_t columns);
};

#define TOOLBOX_LOOPS(name, target)                                                                        \
  template <class T, class A>                                                                              \
  struct name {                                                                                            \
    target static void pool(const RegionView<A>& view, const T* map, T* pooled) {                          \
      pool_region<T, A>(view, map, pooled);                                                                \
    }                                                                                                      \
    target static void spread(const RegionView<A>& view, const T* map, const T* pooled, A* gradient) {     \
      spread_region<T, A>(view, map, pooled, gradient);                                                    \
    }                                                                                                      \
    template <class E>                                                                                     \
    target static void transpose(const E* from, int64_t from_pitch, E* to, int64_t to_pitch, int64_t rows, \
                                 int64_t columns) {                                                        \
      transpose_tiled(from, from_pitch, to, to_pitch, rows, columns);                                      \
    }                                                                                                      \
    static Loops<T, A> all() { return {pool, spread, transpose<T>, transpose<A>}; }                        \
  }

TOOLBOX_LOOPS(PlainLoops, );
#ifdef TOOLBOX_HAS_AVX2
TOOLBOX_LOOPS(Avx2Loops, TOOLBOX_TARGET_AVX2);
#endif
#undef TOOLBOX_LOOPS

template <class T, class A>
Loops<T, A> choose_loops() {
#ifdef TOOLBOX_HAS_AVX2
  if (use_avx2()) return Avx2Loops<T, A>::all();
#endif
  return PlainLoops<T, A>::all();
}

}  // namespace toolbox
