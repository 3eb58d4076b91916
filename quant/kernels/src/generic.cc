// Plain C++, for every CPU: four columns at a time. Also what the others are compared with.
#include <utility>

#include "half.h"
#include "tile.h"

namespace phirt {
namespace {

struct Generic {
  static constexpr int kLanes = 4;
  struct Bytes {
    uint8_t at[16];
  };
  struct Four {
    int8_t at[4];
  };
  struct Ints {
    int32_t at[kLanes];
  };
  struct Floats {
    float at[kLanes];
  };
  static constexpr int kCodeBias = 0;
  using Sums = Ints;
  static constexpr int kFewSums = 1;
  static constexpr int kMostRows = 2;
  static constexpr int64_t rows_together(int64_t, int64_t) { return kMostRows; }
  static constexpr int vectors_for(int, int) { return 1; }

  static void prefetch(const uint8_t*) {}
  static Bytes load(const uint8_t* p) { return read<Bytes>(p); }
  template <int kBits, int kPlane>
  static Bytes plane(Bytes packed) {
    for (uint8_t& byte : packed.at) byte = static_cast<uint8_t>((byte >> (kPlane * kBits)) & ((1u << kBits) - 1));
    return packed;
  }
  static Four four(const int8_t* p) { return read<Four>(p); }
  template <int>
  static Ints dot(Ints sum, Bytes codes, Four four) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 4; ++i) sum.at[lane] += codes.at[lane * 4 + i] * four.at[i];
    }
    return sum;
  }
  static Sums nothing() { return splat(0); }
  static Ints widened(Ints total, Sums sums) { return add(total, sums); }
  static Sums begun(Ints total) { return total; }
  static Ints ended(Ints, Sums sums) { return sums; }
  static constexpr int64_t chunks_together(int) { return 0; }  // all
  static Ints splat(int32_t x) { return {{x, x, x, x}}; }
  static Ints load_ints(const int32_t* p) { return read<Ints>(p); }
  static Ints multiply(Ints a, Ints b) { return each(a, b, [](int32_t x, int32_t y) { return x * y; }); }
  static Ints add(Ints a, Ints b) { return each(a, b, [](int32_t x, int32_t y) { return x + y; }); }
  static Floats zero() { return {}; }
  static Floats load_floats(const float* p) { return read<Floats>(p); }
  static Floats load_halves(const uint16_t* p) {
    return {{half_value(p[0]), half_value(p[1]), half_value(p[2]), half_value(p[3])}};
  }
  static Floats splat_float(float x) { return {{x, x, x, x}}; }
  static Floats times(Floats a, Floats b) { return each(a, b, [](float x, float y) { return x * y; }); }
  static Floats plus(Floats a, Floats b) { return each(a, b, [](float x, float y) { return x + y; }); }
  static Floats fused(Floats a, Ints b, Floats c) {
    for (int i = 0; i < kLanes; ++i) a.at[i] = std::fma(static_cast<float>(b.at[i]), c.at[i], a.at[i]);
    return a;
  }
  static void store(float* p, Floats a) { std::memcpy(p, a.at, sizeof a.at); }

 private:
  template <class T, class P>
  static T read(const P* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  template <class T, class F>
  static T each(T a, T b, F f) {
    for (int i = 0; i < kLanes; ++i) a.at[i] = f(a.at[i], b.at[i]);
    return a;
  }
};

}  // namespace

extern const KernelSet kGeneric = kernels<Generic>("generic");

}  // namespace phirt
