// AVX2 without VNNI: products of bytes are added in pairs of 16 bits first, which hold 4-bit codes. Codes of 8
// bits are taken around 128: two products of magnitudes up to 128 and 127 fit.
#include "avx2.h"

namespace phirt {
namespace {

struct Avx2 : Avx2Base {
  using Sums = __m256i;  // 16 bits
  static constexpr int kFewSums = 0;
  static constexpr int kMostRows = 3;
  static constexpr int64_t rows_together(int64_t, int64_t) { return kMostRows; }
  static constexpr int kCodeBias = 128;

  template <int kBits, int kPlane>
  static Bytes plane(Bytes packed) {
    if constexpr (kBits == 8) return _mm256_xor_si256(packed, _mm256_set1_epi8(-128));
    else return low_plane<kBits, kPlane>(packed);
  }
  // Two products in 16 bits are at most 2 * 15 * 127 with codes of 4 bits: 8 such sums fit; 42 with codes of 2.
  static constexpr int64_t chunks_together(int bits) { return bits == 8 ? 1 : bits == 4 ? 4 : 8; }
  static Sums nothing() { return _mm256_setzero_si256(); }
  static Ints widened(Ints total, Sums sums) {
    return _mm256_add_epi32(total, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
  }
  static Sums begun(Ints) { return nothing(); }
  static Ints ended(Ints total, Sums sums) { return widened(total, sums); }
  template <int kBits>
  static Sums dot(Sums sums, Bytes codes, Bytes activations) {
    if constexpr (kBits == 8) {
      return _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(activations, codes)));
    } else {
      return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, activations));
    }
  }
};

}  // namespace

extern const KernelSet kAvx2 = kernels<Avx2>("avx2");

}  // namespace phirt
