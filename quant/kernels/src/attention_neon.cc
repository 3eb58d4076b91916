// Attention with the vectors of ARMv8.
#include <arm_neon.h>

#include "attention_tile.h"

namespace phirt {
namespace {

struct Neon {
  using Floats = float32x4_t;
  static constexpr int64_t kLanes = 4;
  static constexpr int kSums = 24, kSteps = 8;

  static void prefetch(const char* p) { __builtin_prefetch(p); }
  static void prefetch_far(const char* p) { __builtin_prefetch(p, 0, 2); }
  static Floats load(const float* p) { return vld1q_f32(p); }
  static Floats load(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t wider = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wider)));
  }
  static Floats load(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static void store(float* p, Floats a) { vst1q_f32(p, a); }
  static Floats splat(float x) { return vdupq_n_f32(x); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
  static Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats round(Floats a) { return vrndnq_f32(a); }
  // The exponent is added to the number's own.
  static Floats scale(Floats a, Floats n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
  }
  static Floats pick_less(Floats a, Floats b, Floats x, Floats y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
  static void four_sums(const Floats (&a)[4], float* out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])));
  }
};

}  // namespace

extern const AttentionKernels kAttentionNeon = attention_kernels<Neon>("neon");

}  // namespace phirt
