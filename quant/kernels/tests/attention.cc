// Attention of every instruction set at hand beside plain C++ loops in float64, for tests/kernels: prints one line
// for each instruction set, its name and its greatest error, relative to the greatest result. Needs nothing of
// onnxruntime, so that an emulator can run it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "attention.h"
#include "half.h"
#include "matrix.h"

namespace {

using phirt::Attention;
using phirt::AttentionKernels;
using phirt::CacheType;

struct Case {
  int64_t heads, kv_heads, head_dim, pairs, window, past, rows;
  CacheType type;
};

// Whatever a cache holds, in float64.
double stored(const Attention& a, const void* cache, const float* scales, int64_t kv_head, int64_t position,
              int64_t channel) {
  const int64_t place = (kv_head * a.capacity + position) * a.head_dim + channel;
  if (a.type == CacheType::kFloat) return static_cast<const float*>(cache)[place];
  if (a.type == CacheType::kHalf) return phirt::half_value(static_cast<const uint16_t*>(cache)[place]);
  return static_cast<const int8_t*>(cache)[place] * double{scales[kv_head * a.head_dim + channel]};
}

std::vector<double> expected(const Attention& a) {
  std::vector<double> out(static_cast<size_t>(a.rows * a.heads * a.head_dim), 0.0);
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t head = 0; head < a.heads; ++head) {
      std::vector<double> query(a.queries + row * a.query_stride + head * a.head_dim,
                                a.queries + row * a.query_stride + (head + 1) * a.head_dim);
      for (int64_t i = 0; i < a.pairs; ++i) {
        const double cosine = a.cosines[a.table_rows[row] * a.pairs + i], first = query[i];
        const double sine = a.sines[a.table_rows[row] * a.pairs + i], second = query[i + a.pairs];
        query[i] = first * cosine - second * sine, query[i + a.pairs] = first * sine + second * cosine;
      }
      const int64_t kv_head = head / a.group();
      std::vector<double> weights;
      double sum = 0.0;
      for (int64_t position = a.begin(row); position < a.end(row); ++position) {
        double score = 0.0;
        for (int64_t i = 0; i < a.head_dim; ++i) {
          score += query[i] * stored(a, a.key_cache, a.key_scales, kv_head, position, i);
        }
        weights.push_back(std::exp(score * a.scale));
        sum += weights.back();
      }
      for (int64_t i = 0; i < a.head_dim; ++i) {
        double& result = out[static_cast<size_t>((row * a.heads + head) * a.head_dim + i)];
        for (size_t w = 0; w < weights.size(); ++w) {
          result += weights[w] / sum *
                    stored(a, a.value_cache, a.value_scales, kv_head, a.begin(row) + static_cast<int64_t>(w), i);
        }
      }
    }
  }
  return out;
}

void compute(const AttentionKernels& kernels, const Attention& a) {
  kernels.append(a, 0, a.rows);
  if (a.queries_of_head() <= phirt::kFewQueries && a.head_dim % kernels.lanes == 0) {
    phirt::Pieces pieces = phirt::cut_positions(a);
    const size_t parts = static_cast<size_t>(pieces.count * a.heads * a.rows);
    std::vector<float> sums(parts * static_cast<size_t>(a.head_dim)), maxima(parts), weights(parts);
    pieces.sums = sums.data(), pieces.maxima = maxima.data(), pieces.weights = weights.data();
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      for (int64_t i = 0; i < pieces.count; ++i) kernels.piece(a, pieces, head, i);
      kernels.combine(a, pieces, head);
    }
    return;
  }
  phirt::AlignedBytes memory(phirt::tile_bytes(a.head_dim));
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    for (int64_t first = 0; first < a.queries_of_head(); first += phirt::kTileQueries) {
      kernels.tile(a, head, first, std::min(first + phirt::kTileQueries, a.queries_of_head()), memory.data());
    }
  }
}

double error(const AttentionKernels& kernels, const Case& c, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const auto numbers = [&](int64_t count) {
    std::vector<float> made(static_cast<size_t>(count));
    for (float& number : made) number = normal(random);
    return made;
  };
  Attention a{};
  a.heads = c.heads, a.kv_heads = c.kv_heads, a.head_dim = c.head_dim, a.window = c.window, a.type = c.type;
  a.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)), a.rows = c.rows, a.past = c.past, a.pairs = c.pairs;
  a.capacity = c.past + c.rows;
  a.query_stride = a.key_stride = (c.heads + 2 * c.kv_heads) * c.head_dim;
  const std::vector<float> packed = numbers(c.rows * a.query_stride);
  a.queries = packed.data(), a.keys = a.queries + c.heads * c.head_dim, a.values = a.keys + c.kv_heads * c.head_dim;
  const int64_t entries = c.kv_heads * a.capacity * c.head_dim, channels = c.kv_heads * c.head_dim;
  std::vector<std::vector<uint8_t>> caches;
  for (int i = 0; i < 2; ++i) {
    std::vector<uint8_t> cache(static_cast<size_t>(entries) * 4);
    for (int64_t k = 0; k < entries; ++k) {
      const float number = normal(random);
      if (c.type == CacheType::kFloat) reinterpret_cast<float*>(cache.data())[k] = number;
      else if (c.type == CacheType::kHalf) reinterpret_cast<uint16_t*>(cache.data())[k] = phirt::half_bits(number);
      else reinterpret_cast<int8_t*>(cache.data())[k] = static_cast<int8_t>(random() % 256 - 128);
    }
    caches.push_back(cache);
  }
  a.key_cache = caches[0].data(), a.value_cache = caches[1].data();
  const std::vector<float> scales(static_cast<size_t>(channels), 0.02f), inverses(scales.size(), 50.0f);
  a.key_scales = a.value_scales = scales.data(), a.key_inverses = a.value_inverses = inverses.data();
  const std::vector<float> angles = numbers(a.capacity * std::max<int64_t>(c.pairs, 1));
  std::vector<float> cosines, sines;
  std::vector<int64_t> rows;
  for (float angle : angles) cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
  for (int64_t row = 0; row < c.rows; ++row) rows.push_back(c.past + row);
  a.cosines = cosines.data(), a.sines = sines.data(), a.table_rows = rows.data();
  std::vector<float> out(static_cast<size_t>(c.rows * c.heads * c.head_dim));
  a.out = out.data();
  compute(kernels, a);
  const std::vector<double> right = expected(a);
  double greatest = 0.0, worst = 0.0;
  for (size_t i = 0; i < right.size(); ++i) {
    greatest = std::max(greatest, std::abs(right[i]));
    worst = std::isnan(out[i]) ? INFINITY : std::max(worst, std::abs(right[i] - out[i]));
  }
  return worst / greatest;
}

}  // namespace

// Every set of products has its attention, and none but "generic" the plain loops.
int main() {
#if defined(__x86_64__)
  for (const char* name : {"avx2", "avx-vnni", "avx512-vnni", "amx-int8"}) {
#else
  for (const char* name : {"neon-dotprod", "neon-i8mm"}) {
#endif
    if (std::string(phirt::attention_beside(name).name) == "generic") {
      std::fprintf(stderr, "%s has the attention of plain loops\n", name);
      return 1;
    }
  }
  for (const char* name : {"generic", "avx2", "avx-vnni", "avx512-vnni", "neon-dotprod", "neon-i8mm"}) {
    if (phirt::kernels_named(name) == nullptr) continue;
#if defined(_WIN32)
    _putenv_s("PHIRT_KERNELS", name);
#else
    setenv("PHIRT_KERNELS", name, 1);
#endif
    const AttentionKernels& kernels = phirt::best_attention();
    std::mt19937 random(1);
    double worst = 0.0;
    for (CacheType type : {CacheType::kFloat, CacheType::kHalf, CacheType::kInt8}) {
      for (const Case& c : {Case{4, 2, 32, 16, 0, 70, 1, type}, Case{9, 3, 64, 8, 0, 0, 50, type},
                            Case{3, 1, 96, 0, 40, 150, 3, type}, Case{2, 2, 40, 8, 30, 90, 35, type},
                            Case{4, 4, 128, 64, 1, 5, 30, type}, Case{8, 1, 16, 0, 0, 1100, 2, type}}) {
        worst = std::max(worst, error(kernels, c, random));
      }
    }
    std::printf("%s %s %.3g\n", name, kernels.name, worst);
  }
  return 0;
}
