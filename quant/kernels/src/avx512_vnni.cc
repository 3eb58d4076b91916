// AVX-512 with VNNI: a panel is one vector.
#include <immintrin.h>

#include <utility>

#include "tile.h"

namespace phirt {
namespace {

struct Avx512Vnni {
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kCodeBias = 0;
  using Sums = Ints;
  static constexpr int kFewSums = 5;
  static constexpr int kMostRows = 6;
  static constexpr int64_t rows_together(int64_t, int64_t) { return kMostRows; }
  static constexpr int vectors_for(int rows, int panels) { return rows <= 4 ? 1 : panels; }

  static void prefetch(const uint8_t* codes) { _mm_prefetch(reinterpret_cast<const char*>(codes) + 2048, _MM_HINT_T0); }
  static Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int kBits, int kPlane>
  static Bytes plane(Bytes packed) {
    if constexpr (kBits == 8) return packed;
    if constexpr (kPlane != 0) packed = _mm512_srli_epi16(packed, kPlane * kBits);
    return _mm512_and_si512(packed, _mm512_set1_epi8((1 << kBits) - 1));
  }
  static Bytes four(const int8_t* activations) {
    int32_t together;
    std::memcpy(&together, activations, sizeof together);
    return _mm512_set1_epi32(together);
  }
  template <int>
  static Ints dot(Ints sum, Bytes codes, Bytes activations) {
    return _mm512_dpbusd_epi32(sum, codes, activations);
  }
  static Sums nothing() { return splat(0); }
  static Ints widened(Ints total, Sums sums) { return add(total, sums); }
  static Sums begun(Ints total) { return total; }
  static Ints ended(Ints, Sums sums) { return sums; }
  static constexpr int64_t chunks_together(int) { return 0; }  // all
  static Ints splat(int32_t x) { return _mm512_set1_epi32(x); }
  static Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Floats load_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats splat_float(float x) { return _mm512_set1_ps(x); }
  static Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats fused(Floats a, Ints b, Floats c) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), c, a); }
  static void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
};

}  // namespace

extern const KernelSet kAvx512Vnni = kernels<Avx512Vnni>("avx512-vnni");

}  // namespace phirt
