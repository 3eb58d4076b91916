// Attention of one sequence over a cache of keys and values: what its kernels take and how work is cut. Knows
// sizes and places, no instruction set and nothing of onnxruntime.
//
// Query heads that share a key and value head are a group: its queries are numbered row * group + head of the
// group, so that neighbours see almost the same positions. Two kernels divide the work. `piece` has few queries
// and splits the positions, so that every thread reads a part of a long cache (flash decoding); `tile` has many
// queries and goes over positions tile by tile (flash attention, arXiv 2205.14135). Cuts depend on sizes alone, so
// results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace phirt {

enum class CacheType { kFloat, kHalf, kInt8 };

constexpr int64_t kMostHeadDim = 512;  // memory for a head lies on the stack

struct Attention {
  int64_t heads, kv_heads, head_dim;
  int64_t window;  // positions that a query sees at most, its own included; 0: all before it
  float scale;     // of scores
  int64_t rows;    // of queries, keys and values that are new
  int64_t past;    // positions before them
  // Rows of heads, with the distance from row to row.
  const float *queries, *keys, *values;
  int64_t query_stride, key_stride;
  // [kv_heads][capacity][head_dim]
  CacheType type;
  void *key_cache, *value_cache;
  int64_t capacity;
  // Of int8: a code * scale is a value, float32 [kv_heads][head_dim]; and 1 / scale.
  const float *key_scales, *value_scales, *key_inverses, *value_inverses;
  // Rotation: tables [positions][pairs], the row of the table for each new row. No pairs: none.
  const float *cosines, *sines;
  int64_t pairs;
  const int64_t* table_rows;
  float* out;  // [rows][heads][head_dim]

  int64_t group() const { return heads / kv_heads; }
  int64_t queries_of_head() const { return rows * group(); }
  // The positions that row `row` sees begin and end there.
  int64_t begin(int64_t row) const { return window > 0 ? std::max<int64_t>(past + row + 1 - window, 0) : 0; }
  int64_t end(int64_t row) const { return past + row + 1; }
};

// Up to so many queries of a key and value head are few.
constexpr int64_t kFewQueries = 24;
// Queries that a tile has at most: a multiple of what each instruction set computes at once.
constexpr int64_t kTileQueries = 96;
// Positions of a tile.
constexpr int64_t kTilePositions = 64;

// How few queries' positions are split, and where their parts are kept.
struct Pieces {
  int64_t size = 0;   // positions, a multiple of the largest vector
  int64_t first = 0;  // number of the first piece that any row sees; 0 is the one from position 0 on
  int64_t count = 0;
  float* sums = nullptr;     // [kv_heads][count][queries][head_dim]
  float* maxima = nullptr;   // [kv_heads][queries][count], of scores in base 2
  float* weights = nullptr;  // the same, sums of their powers
};
constexpr int64_t kLargestPiece = 256;
Pieces cut_positions(const Attention& attention);  // without memory

// What one instruction set brings.
struct AttentionKernels {
  const char* name;
  int64_t lanes;  // head_dim must be a multiple of it for `piece`
  // Writes the keys, rotated, and values of rows `first` to `last` into the cache.
  void (*append)(const Attention& attention, int64_t first, int64_t last);
  // One piece of positions for all queries of a key and value head.
  void (*piece)(const Attention& attention, const Pieces& pieces, int64_t kv_head, int64_t index);
  // The results of a key and value head from its pieces.
  void (*combine)(const Attention& attention, const Pieces& pieces, int64_t kv_head);
  // Queries `first` to `last`, at most kTileQueries, of a key and value head. `memory` has tile_bytes().
  void (*tile)(const Attention& attention, int64_t kv_head, int64_t first, int64_t last, uint8_t* memory);
};

size_t tile_bytes(int64_t head_dim);

// Of the instruction set that best_kernels() has.
const AttentionKernels& best_attention();
// What goes with the products of a set, by its name as `kernels_named` has it.
const AttentionKernels& attention_beside(const char* name);

}  // namespace phirt
