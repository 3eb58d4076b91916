// Attention with AVX-512.
#include <immintrin.h>

#include "attention_tile.h"

namespace phirt {
namespace {

struct Avx512 {
  using Floats = __m512;
  static constexpr int64_t kLanes = 16;
  static constexpr int kSums = 24, kSteps = 8;

  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
  static void prefetch_far(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static Floats load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static Floats load(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
  static Floats splat(float x) { return _mm512_set1_ps(x); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats round(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Floats scale(Floats a, Floats n) { return _mm512_scalef_ps(a, n); }
  static Floats pick_less(Floats a, Floats b, Floats x, Floats y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static void four_sums(const Floats (&a)[4], float* out) {
    __m256 halves[4];
    for (int i = 0; i < 4; ++i) halves[i] = _mm256_add_ps(_mm512_castps512_ps256(a[i]), _mm512_extractf32x8_ps(a[i], 1));
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(halves[0], halves[1]), _mm256_hadd_ps(halves[2], halves[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
  }
};

}  // namespace

extern const AttentionKernels kAttentionAvx512 = attention_kernels<Avx512>("avx512");

}  // namespace phirt
