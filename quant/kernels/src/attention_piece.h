// Attention of few queries: a piece of the positions by itself, and the sum of all pieces.
//
// Written once over a vector type V that each instruction set defines; included by one file for each set, which
// is compiled for it. Everything is in an unnamed namespace, so that no code of a larger set can take the place
// of a smaller one's.
//
// V::kLanes float32 lanes. V has: Floats load(p) of float, int8_t and uint16_t (float16); store(p, a); splat(x);
// add, sub, mul, max(a, b), which is b where one is no number; fused(a, b, c) = a * b + c; round(a); scale(a, n) = a * 2^n for whole n >= -126;
// pick_less(a, b, x, y), x where a < b, else y; prefetch(p) into
// the first cache, prefetch_far(p) into the second; four_sums(a[4], out), the sums of four vectors. V::kSums is how
// many sums are kept in registers at once, V::kSteps how many of them stand below each other in a tile.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "attention_rows.h"

namespace phirt {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// 2^x for x <= 0: a polynomial of 2^f for the fraction f in [-1/2, 1/2] and the exponent put in; within one unit
// in the last place. Below 2^-126, and for minus infinity, exactly 0.
template <class V>
typename V::Floats power_of_two(typename V::Floats x) {
  using Floats = typename V::Floats;
  const Floats least = V::splat(-126.0f);
  const Floats whole = V::round(V::max(least, x));
  const Floats fraction = V::sub(V::max(least, x), whole);
  Floats power = V::splat(0x1.41fbbcp-13f);
  power = V::fused(power, fraction, V::splat(0x1.5f3e54p-10f));
  power = V::fused(power, fraction, V::splat(0x1.3b2d4cp-7f));
  power = V::fused(power, fraction, V::splat(0x1.c6aee8p-5f));
  power = V::fused(power, fraction, V::splat(0x1.ebfbdcp-3f));
  power = V::fused(power, fraction, V::splat(0x1.62e430p-1f));
  power = V::fused(power, fraction, V::splat(1.0f));
  return V::pick_less(x, least, V::splat(0.0f), V::scale(power, whole));
}

template <class V, class T>
struct Cache {
  using Floats = typename V::Floats;
  static const T* keys(const Attention& a, int64_t kv_head, int64_t position) {
    return static_cast<const T*>(a.key_cache) + (kv_head * a.capacity + position) * a.head_dim;
  }
  static const T* values(const Attention& a, int64_t kv_head, int64_t position) {
    return static_cast<const T*>(a.value_cache) + (kv_head * a.capacity + position) * a.head_dim;
  }
};

// Few queries over a piece of the positions; lanes are dimensions of a head.
template <class V, class T>
struct Piece {
  using Floats = typename V::Floats;
  static constexpr int64_t kAhead = 4096;  // bytes
  static constexpr int kTogether = 4;  // queries that share what is read, and positions

  static void compute(const Attention& a, const Pieces& pieces, int64_t kv_head, int64_t index) {
    const int64_t first = (pieces.first + index) * pieces.size;
    const int64_t count = std::min(pieces.size, a.end(a.rows - 1) - first), total = a.queries_of_head();
    for (int64_t query = 0; query < total; query += kTogether) {
      const int64_t left = total - query;
      if (left >= 4) queries<4>(a, pieces, kv_head, index, first, count, query);
      else if (left == 3) queries<3>(a, pieces, kv_head, index, first, count, query);
      else if (left == 2) queries<2>(a, pieces, kv_head, index, first, count, query);
      else queries<1>(a, pieces, kv_head, index, first, count, query);
    }
  }

 private:
  template <int kQueries>
  static void queries(const Attention& a, const Pieces& pieces, int64_t kv_head, int64_t index, int64_t first,
                      int64_t count, int64_t query) {
    alignas(64) float prepared[kQueries * kMostHeadDim];
    alignas(64) float scores[kQueries * kLargestPiece];
    const int64_t dim = a.head_dim, total = a.queries_of_head();
    for (int q = 0; q < kQueries; ++q) prepare_query(a, kv_head, query + q, prepared + q * dim);
    score<kQueries>(prepared, dim, Cache<V, T>::keys(a, kv_head, first), count, scores);
    for (int q = 0; q < kQueries; ++q) {
      const int64_t row = (query + q) / a.group(), place = (kv_head * total + query + q) * pieces.count + index;
      float* of_query = scores + q * kLargestPiece;
      const int64_t begin = std::clamp<int64_t>(a.begin(row) - first, 0, count);
      const int64_t end = std::clamp<int64_t>(a.end(row) - first, 0, count);
      normalize(of_query, begin, end, count, pieces.maxima + place, pieces.weights + place);
    }
    float* sums = pieces.sums + ((kv_head * pieces.count + index) * total + query) * dim;
    const T* values = Cache<V, T>::values(a, kv_head, first);
    int64_t done = 0;
    constexpr int kMost = V::kSums / kQueries >= 8 ? 8 : V::kSums / kQueries >= 4 ? 4 : 2;
    add_up<kQueries, kMost>(scores, values, dim, count, sums, done);
  }

  // Asks for what is read soon: processors do not look far ahead, nor past the end of a page.
  static void ahead(const T* read, int64_t count) {
    const char* from = reinterpret_cast<const char*>(read) + kAhead;
    for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += 64) V::prefetch(from + i);
  }

  template <int kQueries>
  static void score(const float* prepared, int64_t dim, const T* keys, int64_t count, float* scores) {
    for (int64_t position = 0; position < count; position += kTogether) {
      const T* rows[kTogether];
      for (int k = 0; k < kTogether; ++k) rows[k] = keys + std::min(position + k, count - 1) * dim;
      ahead(keys + position * dim, kTogether * dim);
      Floats sums[kQueries][kTogether];
      for (int q = 0; q < kQueries; ++q) {
        for (int k = 0; k < kTogether; ++k) sums[q][k] = V::splat(0.0f);
      }
      for (int64_t i = 0; i < dim; i += V::kLanes) {
        Floats part[kTogether];
        for (int k = 0; k < kTogether; ++k) part[k] = V::load(rows[k] + i);
        for (int q = 0; q < kQueries; ++q) {
          const Floats of_query = V::load(prepared + q * dim + i);
          for (int k = 0; k < kTogether; ++k) sums[q][k] = V::fused(of_query, part[k], sums[q][k]);
        }
      }
      for (int q = 0; q < kQueries; ++q) V::four_sums(sums[q], scores + q * kLargestPiece + position);
    }
  }

  // Scores of positions `begin` to `end` become powers of 2 against the greatest, others 0.
  static void normalize(float* scores, int64_t begin, int64_t end, int64_t count, float* maximum, float* weight) {
    const int64_t vectors = (count + V::kLanes - 1) / V::kLanes * V::kLanes;
    for (int64_t i = 0; i < begin; ++i) scores[i] = kNever;
    for (int64_t i = std::max(begin, end); i < vectors; ++i) scores[i] = kNever;
    Floats most = V::splat(kNever);
    for (int64_t i = 0; i < vectors; i += V::kLanes) most = V::max(most, V::load(scores + i));
    alignas(64) float lanes[V::kLanes];
    V::store(lanes, most);
    const float greatest = *std::max_element(lanes, lanes + V::kLanes);
    const Floats subtracted = V::splat(greatest == kNever ? 0.0f : greatest);
    Floats sum = V::splat(0.0f);
    for (int64_t i = 0; i < vectors; i += V::kLanes) {
      const Floats power = power_of_two<V>(V::sub(V::load(scores + i), subtracted));
      V::store(scores + i, power);
      sum = V::add(sum, power);
    }
    V::store(lanes, sum);
    float total = 0.0f;
    for (float lane : lanes) total += lane;
    *maximum = greatest;
    *weight = total;
  }

  // Values times their weights, kVectors vectors of a head at a time, then fewer.
  template <int kQueries, int kVectors>
  static void add_up(const float* weights, const T* values, int64_t dim, int64_t count, float* sums, int64_t done) {
    for (; done + kVectors * V::kLanes <= dim; done += kVectors * V::kLanes) {
      Floats sum[kQueries][kVectors];
      for (int q = 0; q < kQueries; ++q) {
        for (int v = 0; v < kVectors; ++v) sum[q][v] = V::splat(0.0f);
      }
      for (int64_t position = 0; position < count; ++position) {
        if (done == 0) ahead(values + position * dim, dim);
        Floats weight[kQueries];
        for (int q = 0; q < kQueries; ++q) weight[q] = V::splat(weights[q * kLargestPiece + position]);
        for (int v = 0; v < kVectors; ++v) {
          const Floats value = V::load(values + position * dim + done + v * V::kLanes);
          for (int q = 0; q < kQueries; ++q) sum[q][v] = V::fused(weight[q], value, sum[q][v]);
        }
      }
      for (int q = 0; q < kQueries; ++q) {
        for (int v = 0; v < kVectors; ++v) V::store(sums + q * dim + done + v * V::kLanes, sum[q][v]);
      }
    }
    if constexpr (kVectors > 1) {
      if (done < dim) add_up<kQueries, kVectors / 2>(weights, values, dim, count, sums, done);
    }
  }
};

template <class V>
void combine(const Attention& a, const Pieces& pieces, int64_t kv_head) {
  const int64_t dim = a.head_dim, total = a.queries_of_head();
  const float* scales = a.value_scales != nullptr ? a.value_scales + kv_head * dim : nullptr;
  for (int64_t query = 0; query < total; ++query) {
    const int64_t row = query / a.group(), head = kv_head * a.group() + query % a.group();
    float* out = a.out + (row * a.heads + head) * dim;
    const float* maxima = pieces.maxima + (kv_head * total + query) * pieces.count;
    const float* weights = pieces.weights + (kv_head * total + query) * pieces.count;
    const float greatest = *std::max_element(maxima, maxima + pieces.count);
    float weight = 0.0f;
    std::fill(out, out + dim, 0.0f);
    for (int64_t i = 0; i < pieces.count; ++i) {
      if (maxima[i] == kNever) continue;
      const float factor = std::exp2(maxima[i] - greatest);
      weight += factor * weights[i];
      const float* sums = pieces.sums + ((kv_head * pieces.count + i) * total + query) * dim;
      for (int64_t d = 0; d < dim; d += V::kLanes) {
        V::store(out + d, V::fused(V::splat(factor), V::load(sums + d), V::load(out + d)));
      }
    }
    const float inverse = 1.0f / weight;
    for (int64_t d = 0; d < dim; ++d) out[d] *= a.type == CacheType::kInt8 ? inverse * scales[d] : inverse;
  }
}

}  // namespace
}  // namespace phirt
