// Attention of many queries, and the table of an instruction set's functions. Over a vector type V as in
// attention_piece.h.
#pragma once

#include "attention_piece.h"

namespace phirt {
namespace {

// Many queries, tile by tile of the positions; lanes are queries, so that neither keys nor values are moved and
// nothing is summed across lanes. A block is kWide vectors of queries.
template <class V, class T>
struct Tile {
  using Floats = typename V::Floats;
  static constexpr int kSteps = V::kSteps, kWide = V::kSums / kSteps;
  static constexpr int64_t kBlock = kWide * V::kLanes, kBlocks = kTileQueries / kBlock;
  static_assert(kTileQueries % kBlock == 0 && kTilePositions % kSteps == 0, "blocks and steps fill a tile");

  // A block's memory.
  struct Block {
    float* queries;  // [head_dim][kBlock]
    float* sums;     // [head_dim][kBlock]
    float* maxima;   // [kBlock], and so on
    float* weights;
    float *begins, *ends;  // of the positions that a query sees
    int64_t least_begin, most_begin, least_end, most_end;
  };

  static void compute(const Attention& a, int64_t kv_head, int64_t first, int64_t last, uint8_t* memory) {
    float* free = reinterpret_cast<float*>(memory);
    const auto take = [&free](int64_t count) {
      float* taken = free;
      free += count;
      return taken;
    };
    const int64_t dim = a.head_dim, used = (last - first + kBlock - 1) / kBlock;
    float *scores = take(kTilePositions * kBlock), *row = take(dim);
    float *keys = take(kTilePositions * dim), *values = take(kTilePositions * dim);
    Block blocks[kBlocks];
    for (int64_t b = 0; b < used; ++b) {
      Block& block = blocks[b];
      for (float** part : {&block.queries, &block.sums}) *part = take(dim * kBlock);
      for (float** part : {&block.maxima, &block.weights, &block.begins, &block.ends}) *part = take(kBlock);
      fill(a, kv_head, first + b * kBlock, std::min(first + (b + 1) * kBlock, last), row, block);
    }
    int64_t position = blocks[0].least_begin / kTilePositions * kTilePositions;
    for (; position < blocks[used - 1].most_end; position += kTilePositions) {
      const int64_t count = std::min(kTilePositions, blocks[used - 1].most_end - position);
      const float* tile_keys = as_floats(Cache<V, T>::keys(a, kv_head, position), count * dim, keys);
      const float* tile_values = as_floats(Cache<V, T>::values(a, kv_head, position), count * dim, values);
      for (int64_t b = 0; b < used; ++b) {
        const Block& block = blocks[b];
        if (position >= block.most_end || position + count <= block.least_begin) continue;
        const bool all_seen = position >= block.most_begin && position + count <= block.least_end;
        const Next next = b == 0 ? Next{a, kv_head, position + kTilePositions} : Next{};
        if (all_seen) attend<false>(block, tile_keys, tile_values, dim, position, count, scores, next);
        else attend<true>(block, tile_keys, tile_values, dim, position, count, scores, next);
      }
    }
    for (int64_t b = 0; b < used; ++b) {
      finish(a, kv_head, first + b * kBlock, std::min(first + (b + 1) * kBlock, last), blocks[b]);
    }
  }

 private:
  static float plain_value(int8_t code) { return static_cast<float>(code); }
  static float plain_value(uint16_t half) { return half_value(half); }
  static const float* as_floats(const T* values, int64_t count, float* floats) {
    if constexpr (std::is_same_v<T, float>) {
      return values;
    } else {
      int64_t i = 0;
      for (; i + V::kLanes <= count; i += V::kLanes) V::store(floats + i, V::load(values + i));
      for (; i < count; ++i) floats[i] = plain_value(values[i]);
      return floats;
    }
  }

  // Lanes past `last` repeat its last query.
  static void fill(const Attention& a, int64_t kv_head, int64_t first, int64_t last, float* row, Block& block) {
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      const int64_t query = std::min(first + lane, last - 1), of_row = query / a.group();
      if (first + lane < last) prepare_query(a, kv_head, query, row);
      for (int64_t d = 0; d < a.head_dim; ++d) block.queries[d * kBlock + lane] = row[d];
      block.begins[lane] = static_cast<float>(a.begin(of_row));
      block.ends[lane] = static_cast<float>(a.end(of_row));
      block.maxima[lane] = kNever;
      block.weights[lane] = 0.0f;
    }
    std::fill(block.sums, block.sums + a.head_dim * kBlock, 0.0f);
    const int64_t first_row = first / a.group(), last_row = (last - 1) / a.group();
    block.least_begin = a.begin(first_row), block.most_begin = a.begin(last_row);
    block.least_end = a.end(first_row), block.most_end = a.end(last_row);
  }

  // The tile behind the present one, which is asked for bit by bit, so that it is there in time; or none.
  struct Next {
    const T *keys = nullptr, *values = nullptr;
    int64_t dim = 0;
    Next() = default;
    Next(const Attention& a, int64_t kv_head, int64_t position)
        : keys(Cache<V, T>::keys(a, kv_head, position)), values(Cache<V, T>::values(a, kv_head, position)),
          dim(a.head_dim) {}
    void ask(int64_t row) const {
      const int64_t first = row * dim * sizeof(T), last = (row + kSteps) * dim * sizeof(T);
      for (int64_t i = first; i < last && keys != nullptr; i += 64) {
        V::prefetch_far(reinterpret_cast<const char*>(keys) + i);
        V::prefetch_far(reinterpret_cast<const char*>(values) + i);
      }
    }
  };

  template <bool kMasked>
  static void attend(const Block& block, const float* keys, const float* values, int64_t dim, int64_t position,
                     int64_t count, float* scores, const Next& next) {
    for (int64_t k = 0; k < count; k += kSteps) {
      const float* rows[kSteps];
      for (int s = 0; s < kSteps; ++s) rows[s] = keys + std::min(k + s, count - 1) * dim;
      next.ask(k);
      score(block, rows, dim, scores + k * kBlock);
    }
    Floats factors[kWide];
    for (int w = 0; w < kWide; ++w) {
      const int64_t lane = w * V::kLanes;
      if constexpr (kMasked) hide(block, lane, position, count, scores);
      const Floats before = V::load(block.maxima + lane);
      const Floats most = V::max(before, greatest(scores + lane, count));
      // All positions may be hidden so far: then nothing has been summed, and any number can be taken off.
      const Floats never = V::splat(-std::numeric_limits<float>::max());
      const Floats taken = V::pick_less(most, never, V::splat(0.0f), most);
      V::store(block.maxima + lane, most);
      factors[w] = power_of_two<V>(V::sub(before, taken));
      Floats sum = V::mul(V::load(block.weights + lane), factors[w]);
      for (int64_t k = 0; k < count; ++k) {
        float* score = scores + k * kBlock + lane;
        const Floats power = power_of_two<V>(V::sub(V::load(score), taken));
        V::store(score, power);
        sum = V::add(sum, power);
      }
      V::store(block.weights + lane, sum);
    }
    for (int64_t d = 0; d < dim; d += kSteps) add_up(scores, values + d, dim, count, factors, block.sums + d * kBlock);
  }

  static void score(const Block& block, const float* const (&rows)[kSteps], int64_t dim, float* scores) {
    Floats sums[kSteps][kWide];
    for (int s = 0; s < kSteps; ++s) {
      for (int w = 0; w < kWide; ++w) sums[s][w] = V::splat(0.0f);
    }
    for (int64_t d = 0; d < dim; ++d) {
      Floats queries[kWide];
      for (int w = 0; w < kWide; ++w) queries[w] = V::load(block.queries + d * kBlock + w * V::kLanes);
      for (int s = 0; s < kSteps; ++s) {
        const Floats key = V::splat(rows[s][d]);
        for (int w = 0; w < kWide; ++w) sums[s][w] = V::fused(queries[w], key, sums[s][w]);
      }
    }
    for (int s = 0; s < kSteps; ++s) {
      for (int w = 0; w < kWide; ++w) V::store(scores + s * kBlock + w * V::kLanes, sums[s][w]);
    }
  }

  // Of each lane's scores. Several at a time, which do not wait for each other.
  static Floats greatest(const float* scores, int64_t count) {
    Floats most[4];
    for (Floats& one : most) one = V::load(scores);
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
      for (int i = 0; i < 4; ++i) most[i] = V::max(most[i], V::load(scores + (k + i) * kBlock));
    }
    for (; k < count; ++k) most[0] = V::max(most[0], V::load(scores + k * kBlock));
    return V::max(V::max(most[0], most[1]), V::max(most[2], most[3]));
  }

  // Positions that queries do not see have no score.
  static void hide(const Block& block, int64_t lane, int64_t position, int64_t count, float* scores) {
    const Floats begins = V::load(block.begins + lane), ends = V::load(block.ends + lane);
    for (int64_t k = 0; k < count; ++k) {
      float* score = scores + k * kBlock + lane;
      const Floats place = V::splat(static_cast<float>(position + k));
      const Floats seen = V::pick_less(place, ends, V::load(score), V::splat(kNever));
      V::store(score, V::pick_less(place, begins, V::splat(kNever), seen));
    }
  }

  static void add_up(const float* weights, const float* values, int64_t dim, int64_t count,
                     const Floats (&factors)[kWide], float* sums) {
    Floats sum[kSteps][kWide];
    for (int s = 0; s < kSteps; ++s) {
      for (int w = 0; w < kWide; ++w) sum[s][w] = V::mul(V::load(sums + s * kBlock + w * V::kLanes), factors[w]);
    }
    for (int64_t k = 0; k < count; ++k) {
      Floats weight[kWide];
      for (int w = 0; w < kWide; ++w) weight[w] = V::load(weights + k * kBlock + w * V::kLanes);
      for (int s = 0; s < kSteps; ++s) {
        const Floats value = V::splat(values[k * dim + s]);
        for (int w = 0; w < kWide; ++w) sum[s][w] = V::fused(weight[w], value, sum[s][w]);
      }
    }
    for (int s = 0; s < kSteps; ++s) {
      for (int w = 0; w < kWide; ++w) V::store(sums + s * kBlock + w * V::kLanes, sum[s][w]);
    }
  }

  static void finish(const Attention& a, int64_t kv_head, int64_t first, int64_t last, const Block& block) {
    const float* scales = a.value_scales != nullptr ? a.value_scales + kv_head * a.head_dim : nullptr;
    for (int64_t lane = 0; lane < last - first; ++lane) {
      const int64_t query = first + lane, head = kv_head * a.group() + query % a.group();
      float* out = a.out + (query / a.group() * a.heads + head) * a.head_dim;
      const float inverse = 1.0f / block.weights[lane];
      for (int64_t d = 0; d < a.head_dim; ++d) {
        out[d] = block.sums[d * kBlock + lane] * (a.type == CacheType::kInt8 ? inverse * scales[d] : inverse);
      }
    }
  }
};

template <class V, template <class, class> class Work, class... Arguments>
void by_type(const Attention& a, Arguments... arguments) {
  switch (a.type) {
    case CacheType::kFloat:
      return Work<V, float>::compute(a, arguments...);
    case CacheType::kHalf:
      return Work<V, uint16_t>::compute(a, arguments...);
    case CacheType::kInt8:
      return Work<V, int8_t>::compute(a, arguments...);
  }
}

template <class V>
void piece(const Attention& a, const Pieces& pieces, int64_t kv_head, int64_t index) {
  by_type<V, Piece, const Pieces&>(a, pieces, kv_head, index);
}

template <class V>
void tile(const Attention& a, int64_t kv_head, int64_t first, int64_t last, uint8_t* memory) {
  by_type<V, Tile>(a, kv_head, first, last, memory);
}

template <class V>
constexpr AttentionKernels attention_kernels(const char* name) {
  return {name, V::kLanes, append, piece<V>, combine<V>, tile<V>};
}

}  // namespace
}  // namespace phirt
