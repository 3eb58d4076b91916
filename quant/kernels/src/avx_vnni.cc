// AVX-VNNI: 256 bits, as laptops without AVX-512 have it.
#include "avx2.h"

namespace phirt {
namespace {

struct AvxVnni : Avx2Base {
  using Sums = Ints;
  static constexpr int kFewSums = 6;
  static constexpr int kMostRows = 6;
  // Three rows in two parts leave registers for the sums of blocks; short blocks, whose codes are soon used up, and
  // a fourth row gain more by unpacking them less often.
  static constexpr int64_t rows_together(int64_t rows, int64_t block_size) {
    return block_size <= 64 || rows == 4 ? kMostRows : 3;
  }
  static constexpr int kCodeBias = 0;

  template <int kBits, int kPlane>
  static Bytes plane(Bytes packed) {
    if constexpr (kBits == 8) return packed;
    else return low_plane<kBits, kPlane>(packed);
  }
  static Sums nothing() { return splat(0); }
  static Ints widened(Ints total, Sums sums) { return add(total, sums); }
  static Sums begun(Ints total) { return total; }
  static Ints ended(Ints, Sums sums) { return sums; }
  static constexpr int64_t chunks_together(int) { return 0; }  // all
  template <int>
  static Ints dot(Ints sum, Bytes codes, Bytes activations) {
    return _mm256_dpbusd_avx_epi32(sum, codes, activations);
  }
};

}  // namespace

extern const KernelSet kAvxVnni = kernels<AvxVnni>("avx-vnni");

}  // namespace phirt
