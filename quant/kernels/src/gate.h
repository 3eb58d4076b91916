// Gated activations. Included by one file for each instruction set: plain loops, which compilers turn into
// vectors, and which give the same bits everywhere: fused operations are written as such, and no other product
// stands beside a sum but one that is exact, so that compilers have nothing to fuse.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace phirt {
namespace {

// e^x for x <= 0, as a whole power of 2 times a polynomial of 2^f for the rest f in [-1/2, 1/2]; within two units in
// the last place. Where it is below 2^-126, exactly 0.
inline float power_of_e(float x) {
  constexpr float kLog2E = 0x1.715476p+0f, kRestOfLog2E = 0x1.4ae0cp-26f, kLeast = -87.33654f;
  const float kept = x > kLeast ? x : kLeast;  // also where x is no number
  const float whole = std::nearbyint(kept * kLog2E);
  const float fraction = std::fma(kept, kRestOfLog2E, std::fma(kept, kLog2E, -whole));
  float power = 0x1.41fbbcp-13f;
  power = std::fma(power, fraction, 0x1.5f3e54p-10f);
  power = std::fma(power, fraction, 0x1.3b2d4cp-7f);
  power = std::fma(power, fraction, 0x1.c6aee8p-5f);
  power = std::fma(power, fraction, 0x1.ebfbdcp-3f);
  power = std::fma(power, fraction, 0x1.62e430p-1f);
  power = std::fma(power, fraction, 1.0f);
  const uint32_t exponent = static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return x < kLeast ? 0.0f : power * scale;
}

// 1 / (1 + e^-z), from a power that is at most 1.
inline float sigmoid(float z) {
  const float power = power_of_e(-std::fabs(z));
  return (z < 0.0f ? power : 1.0f) / (1.0f + power);
}

inline void gate(const float* both, int64_t count, float alpha, float* out) {
  const float* __restrict gates = both;
  const float* __restrict factors = both + count;
  float* __restrict results = out;
  for (int64_t i = 0; i < count; ++i) results[i] = gates[i] * sigmoid(alpha * gates[i]) * factors[i];
}

}  // namespace
}  // namespace phirt
