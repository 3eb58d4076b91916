// ARM with the products of int8 matrices of ARMv8.6: one instruction multiplies two rows of activations by two
// columns, eight codes deep. Codes that lie 4 apart are brought side by side once for all rows; scales are worked
// in as everywhere.
#include <arm_neon.h>

#include <utility>

#include "tile.h"

namespace phirt {

extern const KernelSet kNeonDotprod;

namespace {

constexpr int64_t kDepth = 8;     // codes that one instruction takes of a column
constexpr int64_t kVectors = 4;   // of four columns, in a panel
constexpr int64_t kMostPairs = 4; // of rows, with half a panel: 16 sums, 8 vectors of activations, 4 of codes

// Below, bringing codes side by side costs more than half as many products save.
constexpr int64_t kFewRows = 4;

// Rows for which that is done once: their sums take 8 KiB of the first cache.
constexpr int64_t kRowsTogether = 128;

// Many rows with the columns of one panel. Blocks are the outer loop, and sums stay in memory between them.
template <int kBits>
class PanelProduct {
 public:
  PanelProduct(const Matrix& matrix, const QuantizedRows& rows, int64_t panel)
      : matrix_(matrix), rows_(rows), panel_(panel) {}

  void compute(int64_t row, int64_t end, const Addends& added, float* out) {
    row_ = row;
    const int64_t pairs = (end - row + 1) / 2;
    std::memset(sums_, 0, sizeof sums_[0] * static_cast<size_t>(pairs));
    for (int64_t block = 0; block < matrix_.shape.blocks(); ++block) {
      spread_codes(block);
      int64_t pair = 0;
      for (; pair + kMostPairs <= pairs; pair += kMostPairs) add_pairs<kMostPairs>(block, pair);
      switch (pairs - pair) {
        case 3:
          add_pairs<3>(block, pair);
          break;
        case 2:
          add_pairs<2>(block, pair);
          break;
        case 1:
          add_pairs<1>(block, pair);
          break;
        default:
          break;
      }
    }
    for (int64_t pair = 0; pair < pairs; ++pair) store(pair, added, out);
  }

 private:
  // The last pair of an odd number of rows has a row of the pair before it, which is computed once more.
  int64_t first_row(int64_t pair) const { return std::min(row_ + 2 * pair, rows_.rows - 2); }

  int64_t place(int64_t block) const { return (panel_ * matrix_.shape.blocks() + block) * kPanel; }

  bool has_zero_points() const { return matrix_.zero_points.data() != nullptr; }

  int32x4_t zero_points(int64_t block, int64_t vector) const {
    return vld1q_s32(reinterpret_cast<const int32_t*>(matrix_.zero_points.data()) + place(block) + 4 * vector);
  }

  float32x4_t scales(int64_t block, int64_t vector) const {
    const int64_t at = place(block) + 4 * vector;
    if (!matrix_.half_scales) return vld1q_f32(reinterpret_cast<const float*>(matrix_.scales.data()) + at);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(matrix_.scales.data()) + at)));
  }

  // Codes of a block less their zero points, a byte each: [block_size / 8][8 pairs of columns][2][8]. With 8 bits
  // the difference may not fit a byte: codes are taken around 128, and `rest` makes up for zero points that differ.
  void spread_codes(int64_t block) {
    constexpr int64_t kSteps = kBits == 2 ? 2 : 1, kChunks = kBits == 8 ? 2 : 1;
    const int64_t bytes = matrix_.shape.block_bytes();
    const uint8_t* packed = matrix_.panel_codes(panel_) + block * bytes;
    uint8x16_t zeros[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      zeros[v] = vdupq_n_u8(1 << (kBits - 1));
      if (kBits < 8 && has_zero_points()) {
        zeros[v] = vreinterpretq_u8_s32(vmulq_n_s32(zero_points(block, v), 0x01010101));
      }
    }
    int8_t* into = codes_;
    for (int64_t at = 0; at < bytes; at += kChunks * kChunk, into += kSteps * kDepth * kPanel) {
      __builtin_prefetch(packed + at + 2048);
      for (int64_t v = 0; v < kVectors; ++v) {
        uint8x16_t left = vld1q_u8(packed + at + 16 * v);
        if constexpr (kBits == 8) {
          zip(left, vld1q_u8(packed + at + kChunk + 16 * v), zeros[v], into + 32 * v);
        } else {
          const uint8x16_t mask = vdupq_n_u8((1 << kBits) - 1);
          for (int64_t step = 0; step < kSteps; ++step) {
            zip(vandq_u8(left, mask), vandq_u8(vshrq_n_u8(left, kBits), mask), zeros[v],
                into + step * kDepth * kPanel + 32 * v);
            left = vshrq_n_u8(left, 2 * kBits);
          }
        }
      }
    }
  }

  // Four codes of each of four columns and the next four of each become eight of each.
  static void zip(uint8x16_t first, uint8x16_t next, uint8x16_t zeros, int8_t* into) {
    const int32x4_t a = vreinterpretq_s32_u8(vsubq_u8(first, zeros)), b = vreinterpretq_s32_u8(vsubq_u8(next, zeros));
    vst1q_s8(into, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
    vst1q_s8(into + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
  }

  template <int kPairs>
  void add_pairs(int64_t block, int64_t pair) {
    const int64_t block_size = matrix_.shape.block_size, of_block = block * rows_.rows;
    int64_t first[kPairs];
    for (int i = 0; i < kPairs; ++i) first[i] = of_block + first_row(pair + i);
    for (int64_t vector = 0; vector < kVectors; vector += 2) {
      int32x4_t products[kPairs][4];  // of two columns each: row 0 with both, row 1 with both
      for (auto& of_pair : products) {
        for (int32x4_t& of_columns : of_pair) of_columns = vdupq_n_s32(0);
      }
      const int8_t* codes = codes_ + vector * 32;
      for (int64_t at = 0; at < block_size; at += 2 * kDepth, codes += 2 * kDepth * kPanel) {
        int8x16_t near[kPairs], far[kPairs];
        for (int i = 0; i < kPairs; ++i) {
          const int8_t* activations = rows_.codes + first[i] * block_size + at;
          const int64x2_t upper = vreinterpretq_s64_s8(vld1q_s8(activations));
          const int64x2_t lower = vreinterpretq_s64_s8(vld1q_s8(activations + block_size));
          near[i] = vreinterpretq_s8_s64(vzip1q_s64(upper, lower));
          far[i] = vreinterpretq_s8_s64(vzip2q_s64(upper, lower));
        }
        add_products<kPairs>(near, codes, products);
        add_products<kPairs>(far, codes + kDepth * kPanel, products);
      }
      for (int i = 0; i < kPairs; ++i) {
        add(block, vector, first[i], products[i][0], products[i][1], sums_[pair + i]);
        add(block, vector + 1, first[i], products[i][2], products[i][3], sums_[pair + i]);
      }
    }
  }

  template <int kPairs>
  static void add_products(const int8x16_t (&activations)[kPairs], const int8_t* codes,
                           int32x4_t (&products)[kPairs][4]) {
    for (int columns = 0; columns < 4; ++columns) {
      const int8x16_t two = vld1q_s8(codes + 16 * columns);
      for (int i = 0; i < kPairs; ++i) products[i][columns] = vmmlaq_s32(products[i][columns], activations[i], two);
    }
  }

  // Adds the products of two rows with the four columns of a vector.
  void add(int64_t block, int64_t vector, int64_t first, int32x4_t left, int32x4_t right, float (&sums)[2][kPanel]) {
    const int64x2_t a = vreinterpretq_s64_s32(left), b = vreinterpretq_s64_s32(right);
    int32x4_t totals[2] = {vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b))};
    const float32x4_t scale = scales(block, vector);
    for (int r = 0; r < 2; ++r) {
      if (kBits == 8 && has_zero_points()) {
        const int32x4_t rest = vsubq_s32(vdupq_n_s32(128), zero_points(block, vector));
        totals[r] = vmlaq_n_s32(totals[r], rest, rows_.sums[first + r]);
      }
      float* sum = sums[r] + 4 * vector;
      const float32x4_t both = vmulq_n_f32(scale, rows_.scales[first + r]);
      vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), vcvtq_f32_s32(totals[r]), both));
    }
  }

  void store(int64_t pair, const Addends& added, float* out) const {
    const int64_t columns = matrix_.shape.columns, column = panel_ * kPanel;
    const int64_t count = std::min(columns - column, kPanel);
    for (int64_t r = row_ + 2 * pair - first_row(pair); r < 2; ++r) {  // the other is stored
      const int64_t place = (first_row(pair) + r) * columns + column;
      for (int64_t i = 0; i < count; ++i) {
        float sum = sums_[pair][r][i];
        if (added.bias != nullptr) sum += added.bias[column + i];
        if (added.sums != nullptr) sum += added.sums[place + i];
        out[place + i] = sum;
      }
    }
  }

  const Matrix& matrix_;
  const QuantizedRows& rows_;
  const int64_t panel_;
  int64_t row_ = 0;
  alignas(kAlignment) float sums_[kRowsTogether / 2][2][kPanel];
  alignas(kAlignment) int8_t codes_[kMostBlock * kPanel];
};

template <int kBits>
void multiply_paired(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const Addends& added,
                     float* out) {
  for (int64_t row = 0; row < rows.rows; row += kRowsTogether) {
    const int64_t end = std::min(row + kRowsTogether, rows.rows);
    for (int64_t panel = first; panel < last; ++panel) {
      PanelProduct<kBits>(matrix, rows, panel).compute(row, end, added, out);
    }
  }
}

void multiply_i8mm(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const Addends& added,
                   float* out) {
  if (rows.rows < kFewRows) return kNeonDotprod.multiply(matrix, rows, first, last, added, out);
  by_bits(matrix.shape.bits, [&](auto bits) {
    multiply_paired<decltype(bits)::value>(matrix, rows, first, last, added, out);
  });
}

}  // namespace

extern const KernelSet kNeonI8mm = {"neon-i8mm", gate, quantize, quantize_twice, multiply_i8mm};

}  // namespace phirt
