// Fresh memory: the first touch of each page costs more than all that is computed on it.
#pragma once

#include <cstdint>
#include <cstring>

#include "threads.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace toolbox {

// Let the system back a large buffer by huge pages, where it has them: one fault for 2 MB instead of 512. A hint only.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(1) << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

// Fill with zeros, several threads at once where it is much.
inline void fill_zero(void* data, int64_t bytes, int threads) {
  constexpr int64_t kBytesPerThread = 1 << 22;
  prefer_huge_pages(data, bytes);
  const int64_t used = std::clamp<int64_t>(bytes / kBytesPerThread, 1, std::max(threads, 1));
  run_threads(static_cast<int>(used), [&](int thread) {
    const int64_t first = bytes * thread / used;
    std::memset(static_cast<char*>(data) + first, 0, static_cast<size_t>(bytes * (thread + 1) / used - first));
  });
}

}  // namespace toolbox
