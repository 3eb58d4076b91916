// Attention in plain C++, for every CPU: four lanes at a time. Also what the others are compared with.
#include "attention_tile.h"

namespace phirt {
namespace {

struct Generic {
  static constexpr int64_t kLanes = 4;
  static constexpr int kSums = 8, kSteps = 4;
  struct Floats {
    float at[kLanes];
  };

  static void prefetch(const char*) {}
  static void prefetch_far(const char*) {}
  static Floats load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Floats load(const int8_t* p) {
    return {{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])}};
  }
  static Floats load(const uint16_t* p) {
    return {{half_value(p[0]), half_value(p[1]), half_value(p[2]), half_value(p[3])}};
  }
  static void store(float* p, Floats a) { std::memcpy(p, a.at, sizeof a.at); }
  static Floats splat(float x) { return {{x, x, x, x}}; }
  static Floats add(Floats a, Floats b) { return each(a, b, [](float x, float y) { return x + y; }); }
  static Floats sub(Floats a, Floats b) { return each(a, b, [](float x, float y) { return x - y; }); }
  static Floats mul(Floats a, Floats b) { return each(a, b, [](float x, float y) { return x * y; }); }
  static Floats max(Floats a, Floats b) { return each(a, b, [](float x, float y) { return x > y ? x : y; }); }
  static Floats fused(Floats a, Floats b, Floats c) { return add(mul(a, b), c); }
  static Floats round(Floats a) { return each(a, a, [](float x, float) { return std::nearbyint(x); }); }
  static Floats scale(Floats a, Floats n) {
    return each(a, n, [](float x, float y) { return std::isnan(y) ? y : std::ldexp(x, static_cast<int>(y)); });
  }
  static Floats pick_less(Floats a, Floats b, Floats x, Floats y) {
    for (int i = 0; i < kLanes; ++i) x.at[i] = a.at[i] < b.at[i] ? x.at[i] : y.at[i];
    return x;
  }
  static void four_sums(const Floats (&a)[4], float* out) {
    for (int i = 0; i < 4; ++i) out[i] = (a[i].at[0] + a[i].at[1]) + (a[i].at[2] + a[i].at[3]);
  }

 private:
  template <class F>
  static Floats each(Floats a, Floats b, F f) {
    for (int i = 0; i < kLanes; ++i) a.at[i] = f(a.at[i], b.at[i]);
    return a;
  }
};

}  // namespace

extern const AttentionKernels kAttentionGeneric = attention_kernels<Generic>("generic");

}  // namespace phirt
