// The same source for plain x86-64 and for AVX2, chosen when it runs. (target_clones would tie the build to glibc, and
// does not work on templates.)
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define TOOLBOX_HAS_AVX2 1
#define TOOLBOX_TARGET_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace toolbox {

inline bool use_avx2() {
#ifdef TOOLBOX_HAS_AVX2
  static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return supported;
#else
  return false;
#endif
}

}  // namespace toolbox
