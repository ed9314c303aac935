// Several channels, or one, held in a register: loading converts a half type to float. Everything is forced inline, so
// that it is compiled with the instruction set of the function that uses it.
#pragma once

#include <cstdint>
#include <cstring>

#include "../request.h"

#define TOOLBOX_INLINE inline __attribute__((always_inline))

namespace toolbox {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace vec {
typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef int64_t i64x4 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
}  // namespace vec

// Channels in a register of AVX2.
template <class A>
constexpr int kLanes = 32 / sizeof(A);

// Registers for `lanes` channels of accumulation type A, and integers of the same width.
template <class A, int lanes>
struct Register;
template <>
struct Register<float, kLanes<float>> {
  using Value = vec::f32x8;
  using Index = vec::i32x8;
};
template <>
struct Register<double, kLanes<double>> {
  using Value = vec::f64x4;
  using Index = vec::i64x4;
};
template <class A>
struct Register<A, 1> {
  using Value = A;
  using Index = int;
};

template <class To, class From>
TOOLBOX_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Half to float: exponent and mantissa moved up and scaled, which is right for denormals too; infinity and NaN get the
// largest exponent back.
TOOLBOX_INLINE float to_float(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  if ((value.bits & 0x7c00) == 0x7c00) bits |= 0x7f800000u;
  return bit_cast<float>(bits | static_cast<uint32_t>(value.bits & 0x8000) << 16);
}
TOOLBOX_INLINE float to_float(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

TOOLBOX_INLINE vec::f32x8 widen(vec::u32x8 raw, Half) {
  const vec::u32x8 magnitude = (raw & 0x7fffu) << 13;
  vec::u32x8 bits = bit_cast<vec::u32x8>(bit_cast<vec::f32x8>(magnitude) * 0x1p112f);
  const vec::u32x8 special = bit_cast<vec::u32x8>((raw & 0x7c00u) == 0x7c00u);
  bits |= special & 0x7f800000u;
  return bit_cast<vec::f32x8>(bits | (raw & 0x8000u) << 16);
}
TOOLBOX_INLINE vec::f32x8 widen(vec::u32x8 raw, BFloat16) { return bit_cast<vec::f32x8>(raw << 16); }

// Float to a half type, rounded to the nearest, ties to even.
TOOLBOX_INLINE void narrow(float value, BFloat16* to) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  to->bits = static_cast<uint16_t>(value == value ? rounded >> 16 : 0x7fc0u);
}
TOOLBOX_INLINE void narrow(float value, Half* to) {
  const uint32_t all = bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((all >> 16) & 0x8000u);
  const uint32_t bits = all & 0x7fffffffu;
  uint32_t result;
  if (bits > 0x7f800000u) {
    result = 0x7e00u;
  } else if (bits >= 0x477ff000u) {
    result = 0x7c00u;  // rounds beyond the largest half
  } else if (bits < 0x38800000u) {
    // A denormal half: adding 0.5 lets the float unit round at the right bit.
    result = bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) - 0x3f000000u;
  } else {
    result = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(result | sign);
}

TOOLBOX_INLINE void load(const float* from, float* to) { *to = *from; }
TOOLBOX_INLINE void load(const double* from, double* to) { *to = *from; }
TOOLBOX_INLINE void load(const Half* from, float* to) { *to = to_float(*from); }
TOOLBOX_INLINE void load(const BFloat16* from, float* to) { *to = to_float(*from); }
TOOLBOX_INLINE void load(const float* from, vec::f32x8* to) { std::memcpy(to, from, sizeof(*to)); }
TOOLBOX_INLINE void load(const double* from, vec::f64x4* to) { std::memcpy(to, from, sizeof(*to)); }
template <class T>
TOOLBOX_INLINE void load(const T* from, vec::f32x8* to) {
  vec::u16x8 raw;
  std::memcpy(&raw, from, sizeof(raw));
  *to = widen(__builtin_convertvector(raw, vec::u32x8), T());
}

TOOLBOX_INLINE void store(const float& value, float* to) { *to = value; }
TOOLBOX_INLINE void store(const double& value, double* to) { *to = value; }
template <class T>
TOOLBOX_INLINE void store(const float& value, T* to) {
  narrow(value, to);
}
TOOLBOX_INLINE void store(const vec::f32x8& value, float* to) { std::memcpy(to, &value, sizeof(value)); }
TOOLBOX_INLINE void store(const vec::f64x4& value, double* to) { std::memcpy(to, &value, sizeof(value)); }
template <class T>
TOOLBOX_INLINE void store(const vec::f32x8& value, T* to) {
  for (int lane = 0; lane < kLanes<float>; ++lane) narrow(value[lane], to + lane);
}

}  // namespace toolbox
