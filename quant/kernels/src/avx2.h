// What AVX2 and AVX-VNNI share: half a panel is one vector.
#pragma once

#include <immintrin.h>

#include <utility>

#include "tile.h"

namespace phirt {
namespace {

struct Avx2Base {
  using Bytes = __m256i;
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;
  static constexpr int vectors_for(int, int) { return 2; }

  static void prefetch(const uint8_t* codes) { _mm_prefetch(reinterpret_cast<const char*>(codes) + 2048, _MM_HINT_T0); }
  static Bytes load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Bytes four(const int8_t* activations) {
    int32_t together;
    std::memcpy(&together, activations, sizeof together);
    return _mm256_set1_epi32(together);
  }
  static Ints splat(int32_t x) { return _mm256_set1_epi32(x); }
  static Ints load_ints(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Ints multiply(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static Floats load_halves(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Floats splat_float(float x) { return _mm256_set1_ps(x); }
  static Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats fused(Floats a, Ints b, Floats c) { return _mm256_fmadd_ps(_mm256_cvtepi32_ps(b), c, a); }
  static void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }

 protected:
  template <int kBits, int kPlane>
  static Bytes low_plane(Bytes packed) {
    if constexpr (kPlane != 0) packed = _mm256_srli_epi16(packed, kPlane * kBits);
    return _mm256_and_si256(packed, _mm256_set1_epi8((1 << kBits) - 1));
  }
};

}  // namespace
}  // namespace phirt
