// ARM with the dot-product instructions of ARMv8.2: a quarter of a panel is one vector. Its products take signed
// bytes: codes below 128 are the same, codes of 8 bits are taken around 128.
#include <arm_neon.h>

#include <utility>

#include "tile.h"

namespace phirt {
namespace {

struct NeonDotprod {
  using Bytes = uint8x16_t;
  using Ints = int32x4_t;
  using Floats = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kCodeBias = 128;
  using Sums = Ints;
  static constexpr int kFewSums = 8;
  static constexpr int kMostRows = 3;
  static constexpr int64_t rows_together(int64_t, int64_t) { return kMostRows; }
  static constexpr int vectors_for(int, int) { return 4; }

  static void prefetch(const uint8_t* codes) { __builtin_prefetch(codes + 2048); }
  static Bytes load(const uint8_t* p) { return vld1q_u8(p); }
  template <int kBits, int kPlane>
  static Bytes plane(Bytes packed) {
    if constexpr (kBits == 8) return veorq_u8(packed, vdupq_n_u8(0x80));
    if constexpr (kPlane != 0) packed = vshrq_n_u8(packed, kPlane * kBits);
    if constexpr ((kPlane + 1) * kBits == 8) return packed;
    else return vandq_u8(packed, vdupq_n_u8((1 << kBits) - 1));
  }
  static int8x16_t four(const int8_t* activations) {
    int32_t together;
    std::memcpy(&together, activations, sizeof together);
    return vreinterpretq_s8_s32(vdupq_n_s32(together));
  }
  template <int>
  static Ints dot(Ints sum, Bytes codes, int8x16_t activations) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(codes), activations);
  }
  static Sums nothing() { return splat(0); }
  static Ints widened(Ints total, Sums sums) { return add(total, sums); }
  static Sums begun(Ints total) { return total; }
  static Ints ended(Ints, Sums sums) { return sums; }
  static constexpr int64_t chunks_together(int) { return 0; }  // all
  static Ints splat(int32_t x) { return vdupq_n_s32(x); }
  static Ints load_ints(const int32_t* p) { return vld1q_s32(p); }
  static Ints multiply(Ints a, Ints b) { return vmulq_s32(a, b); }
  static Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Floats zero() { return vdupq_n_f32(0.0f); }
  static Floats load_floats(const float* p) { return vld1q_f32(p); }
  static Floats load_halves(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static Floats splat_float(float x) { return vdupq_n_f32(x); }
  static Floats times(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats plus(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats fused(Floats a, Ints b, Floats c) { return vfmaq_f32(a, vcvtq_f32_s32(b), c); }
  static void store(float* p, Floats a) { vst1q_f32(p, a); }
};

}  // namespace

extern const KernelSet kNeonDotprod = kernels<NeonDotprod>("neon-dotprod");

}  // namespace phirt
