// What the kernels compute with: a block-quantized matrix in the order in which they read it, and rows of
// activations rounded to int8. Knows sizes and places, no instruction set and nothing of onnxruntime.
//
// A matrix of N columns and K rows is cut into panels of kPanel columns. A panel holds its blocks one after
// the other, and a block holds chunks of kChunk bytes: byte 4c + j of a chunk belongs to column c, and its bits
// to rows that lie 4 apart, lowest bits first. With 4 bits a chunk has 8 rows of the panel: low halves are rows
// 0 to 3, high halves 4 to 7. That is the order of dot-product instructions on four bytes, whatever the width
// of a vector, so one layout serves all instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace phirt {

constexpr int64_t kPanel = 16;
constexpr int64_t kChunk = 64;
constexpr int64_t kAlignment = 64;
constexpr int64_t kMostBlock = 256;

// The shape of a matrix, as the attributes of MatMulNBits give it.
struct MatrixShape {
  int64_t columns;     // N
  int64_t rows;        // K
  int64_t bits;        // 2, 4 or 8
  int64_t block_size;  // 16, 32, 64, 128 or 256 rows share a scale

  int64_t blocks() const { return (rows + block_size - 1) / block_size; }
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t block_bytes() const { return kPanel * block_size * bits / 8; }  // of a panel
  int64_t panel_bytes() const { return blocks() * block_bytes(); }
  bool is_supported() const;
};

// Memory that begins on a boundary of kAlignment, on huge pages where it is large and the system has them.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(size_t size);  // throws std::bad_alloc; not zeroed
  uint8_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* memory) const;
  };
  std::unique_ptr<uint8_t, Free> data_;
};

// A matrix as the kernels read it. Codes are unsigned; a weight is (code - zero point) * scale.
struct Matrix {
  MatrixShape shape{};
  AlignedBytes codes;        // [panels][blocks][chunks][kChunk]
  AlignedBytes scales;       // float32 or float16 [panels][blocks][kPanel]
  AlignedBytes zero_points;  // int32 [panels][blocks][kPanel]; none: 2^(bits - 1)
  bool half_scales = false;

  const uint8_t* panel_codes(int64_t panel) const { return codes.data() + panel * shape.panel_bytes(); }
};

// A matrix from the inputs of MatMulNBits: `codes` uint8 [N, blocks, block_size * bits / 8], lowest bits first;
// `scales` float32 [N, blocks]; `zero_points` packed like the codes, uint8 [N, ceil(blocks * bits / 8)], or
// null. Scales that float16 holds exactly are kept as such. `threads` share the work.
Matrix pack_matrix(const MatrixShape& shape, const uint8_t* codes, const float* scales,
                   const uint8_t* zero_points, int threads);

// Rows of activations, each block with a scale of its own: value = code * scale.
struct QuantizedRows {
  int64_t rows = 0;
  int8_t* codes = nullptr;   // [blocks][rows][block_size], rows past K are 0
  float* scales = nullptr;   // [blocks][rows]
  int32_t* sums = nullptr;   // of a block's codes, [blocks][rows]
};

// What is added to a product, in this order, or null.
struct Addends {
  const float* bias = nullptr;  // float32 [N]
  const float* sums = nullptr;  // float32 [rows][N]; may be where the product goes, so each is read once
};

// What one instruction set brings. Every set computes the same bits: products of integers are exact, and blocks
// are added in their order with one rounding each.
struct KernelSet {
  const char* name;
  // out[i] = g * sigmoid(alpha * g) * u of g = both[i] and u = both[count + i]: a gated activation, with alpha 1
  // SwiGLU (arXiv 2002.05202, section 2). Within 4 units in the last place; 0 where the sigmoid is below 2^-126.
  void (*gate)(const float* both, int64_t count, float alpha, float* out);
  // Quantizes `values`, float32 [last - first][K], as rows `first` to `last`.
  void (*quantize)(const MatrixShape& shape, const float* values, int64_t first, int64_t last,
                   const QuantizedRows& into);
  // The same, and in blocks as large what that leaves of each value.
  void (*quantize_twice)(const MatrixShape& shape, const float* values, int64_t first, int64_t last,
                         const QuantizedRows& into, const QuantizedRows& rests);
  // out[row][column] = sum over K + what is added, for all rows and the columns of panels `first` to `last`.
  // `out` is float32 [rows][N].
  void (*multiply)(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last,
                   const Addends& added, float* out);
};

// The best set that this CPU has; or the one that the environment variable PHIRT_KERNELS names, if it has it.
const KernelSet& best_kernels();
// By name ("generic", "avx2", "avx-vnni", "avx512-vnni", "amx-int8", "neon-dotprod", "neon-i8mm"); null where this
// CPU or its system lacks it.
const KernelSet* kernels_named(const char* name);

}  // namespace phirt
