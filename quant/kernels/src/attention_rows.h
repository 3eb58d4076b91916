// Rows of queries, keys and values on their way into attention: rotated, scaled, rounded to the cache's type.
// Included by one file for each instruction set; plain loops, which compilers turn into vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "half.h"

namespace phirt {
namespace {

// Scores are taken to base 2: powers of 2 are cheaper than of e.
constexpr float kLog2E = 1.44269504088896341f;

// Turns pairs (i, i + pairs) by the angles of the row's place; what is behind them stays.
inline void rotate(const Attention& a, const float* __restrict head, int64_t row, float* __restrict out) {
  const int64_t pairs = a.pairs;
  if (pairs > 0) {
    const float* __restrict cosines = a.cosines + a.table_rows[row] * pairs;
    const float* __restrict sines = a.sines + a.table_rows[row] * pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const float first = head[i], second = head[i + pairs];
      out[i] = first * cosines[i] - second * sines[i];
      out[i + pairs] = first * sines[i] + second * cosines[i];
    }
  }
  std::copy(head + 2 * pairs, head + a.head_dim, out + 2 * pairs);
}

// Query `query` of a key and value head, with all factors of scores.
inline void prepare_query(const Attention& a, int64_t kv_head, int64_t query, float* __restrict out) {
  const int64_t row = query / a.group(), head = kv_head * a.group() + query % a.group();
  rotate(a, a.queries + row * a.query_stride + head * a.head_dim, row, out);
  const float scale = a.scale * kLog2E;
  const float* __restrict scales = a.key_scales != nullptr ? a.key_scales + kv_head * a.head_dim : nullptr;
  if (a.type == CacheType::kInt8) {
    for (int64_t i = 0; i < a.head_dim; ++i) out[i] *= scale * scales[i];
  } else {
    for (int64_t i = 0; i < a.head_dim; ++i) out[i] *= scale;
  }
}

inline void keep(const float* __restrict values, const float*, int64_t count, float* __restrict out) {
  std::copy(values, values + count, out);
}
inline void keep(const float* __restrict values, const float*, int64_t count, uint16_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = half_bits(values[i]);
}
// Rounded to nearest even and kept within the type, as GroupQueryAttention has it.
inline void keep(const float* __restrict values, const float* __restrict inverses, int64_t count,
                 int8_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const float code = std::nearbyint(values[i] * inverses[i]);
    out[i] = static_cast<int8_t>(static_cast<int32_t>(code > -128.0f ? (code < 127.0f ? code : 127.0f) : -128.0f));
  }
}

template <class T>
void append_rows(const Attention& a, int64_t first, int64_t last) {
  float rotated[kMostHeadDim];
  for (int64_t kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
    const int64_t place = kv_head * a.capacity + a.past;
    const float* key_inverses = a.key_inverses != nullptr ? a.key_inverses + kv_head * a.head_dim : nullptr;
    const float* value_inverses = a.value_inverses != nullptr ? a.value_inverses + kv_head * a.head_dim : nullptr;
    T* keys = static_cast<T*>(a.key_cache) + place * a.head_dim;
    T* values = static_cast<T*>(a.value_cache) + place * a.head_dim;
    for (int64_t row = first; row < last; ++row) {
      const int64_t from = row * a.key_stride + kv_head * a.head_dim, to = row * a.head_dim;
      rotate(a, a.keys + from, row, rotated);
      keep(rotated, key_inverses, a.head_dim, keys + to);
      keep(a.values + from, value_inverses, a.head_dim, values + to);
    }
  }
}

inline void append(const Attention& a, int64_t first, int64_t last) {
  switch (a.type) {
    case CacheType::kFloat:
      return append_rows<float>(a, first, last);
    case CacheType::kHalf:
      return append_rows<uint16_t>(a, first, last);
    case CacheType::kInt8:
      return append_rows<int8_t>(a, first, last);
  }
}

}  // namespace
}  // namespace phirt
