// The product, written once over a vector type V that each instruction set defines; included by one file for
// each set, which is compiled for it. Everything is in an unnamed namespace, so that no code of a larger set
// can take the place of a smaller one's.
//
// V::kLanes int32 lanes are columns. V has: Bytes load(p); Bytes plane<bits, i>(Bytes) (the codes of one plane,
// a byte each); Bytes four(p) (four activations in each lane); Sums dot<bits>(Sums, Bytes codes,
// Bytes activations) (adds the products of a lane's four codes and activations), nothing() (a Sums of 0),
// widened(Ints, Sums) (adds what was summed). Where Sums are Ints, begun(Ints) goes on from a total and
// ended(Ints, Sums) is the sum; where they are narrower, they begin at 0 and chunks_together(bits) of them fit.
// Ints splat(int), multiply(Ints, Ints), load_ints(p), add(Ints, Ints); Floats load_floats(p), load_halves(p),
// splat_float(x), times(Floats, Floats), fused(Floats a, Ints b, Floats c) = a + b * c in one rounding,
// plus(Floats, Floats), store(p, Floats), zero(). V::kCodeBias is what `plane` takes from codes of 8 bits.
// A tile has V::kMostRows rows at most; of so many rows with blocks of this size, rows_together(rows, block size)
// are computed at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "gate.h"
#include "matrix.h"

namespace phirt {
namespace {

// One tile: kRows rows of activations with kVectors vectors of a panel's columns. Planes are summed into kParts
// separate sums, so that few rows do not wait for each other's products.
template <class V, int kBits, int kRows, int kVectors, int kParts>
struct Tile {
  using Ints = typename V::Ints;
  using Floats = typename V::Floats;
  static constexpr int kPlanes = 8 / kBits;
  static constexpr int kMiddle = 1 << (kBits - 1);
  static constexpr int kBias = kBits == 8 ? V::kCodeBias : 0;

  // `first` is the first of the columns, a multiple of V::kLanes.
  static void compute(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t row, const Addends& added,
                      float* out) {
    const MatrixShape& shape = matrix.shape;
    const int64_t blocks = shape.blocks(), chunks = shape.block_size / (4 * kPlanes);
    const uint8_t* codes[kVectors];
    int64_t first_places[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t panel = (first + v * V::kLanes) / kPanel, lane = (first + v * V::kLanes) % kPanel;
      codes[v] = matrix.panel_codes(panel) + lane * 4;
      first_places[v] = panel * blocks * kPanel + lane;
    }
    Floats sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = V::zero();
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t of_rows = block * rows.rows + row;
      const int8_t* activations = rows.codes + of_rows * shape.block_size;
      Ints totals[kRows][kVectors];
      for (int r = 0; r < kRows; ++r) {
        const int32_t sum = rows.sums[of_rows + r];
        for (int v = 0; v < kVectors; ++v) totals[r][v] = start(matrix, first_places[v] + block * kPanel, sum);
      }
      add_products(codes, chunks, activations, shape.block_size, totals);
      for (int v = 0; v < kVectors; ++v) {
        const Floats scale = scale_at(matrix, first_places[v] + block * kPanel);
        for (int r = 0; r < kRows; ++r) {
          const Floats both = V::times(scale, V::splat_float(rows.scales[of_rows + r]));
          sums[r][v] = V::fused(sums[r][v], totals[r][v], both);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        store(shape, sums[r][v], row + r, first + v * V::kLanes, added, out);
      }
    }
  }

 private:
  // Codes count from 0; what the zero point takes off is known before: zero point * sum of activations.
  static Ints start(const Matrix& matrix, int64_t place, int32_t sum) {
    if (matrix.zero_points.data() == nullptr) return V::splat((kBias - kMiddle) * sum);
    const Ints zero = V::load_ints(reinterpret_cast<const int32_t*>(matrix.zero_points.data()) + place);
    return V::multiply(V::add(V::splat(kBias), V::multiply(zero, V::splat(-1))), V::splat(sum));
  }

  static Floats scale_at(const Matrix& matrix, int64_t place) {
    if (matrix.half_scales) {
      return V::load_halves(reinterpret_cast<const uint16_t*>(matrix.scales.data()) + place);
    }
    return V::load_floats(reinterpret_cast<const float*>(matrix.scales.data()) + place);
  }

  using Sums = typename V::Sums;
  using Products = Sums[kRows][kVectors][kParts];
  static constexpr int64_t kGroup = V::chunks_together(kBits);

  // Adds the products of a block, whose codes are left behind, to what `totals` holds.
  static void add_products(const uint8_t* (&codes)[kVectors], int64_t chunks, const int8_t* activations,
                           int64_t stride, Ints (&totals)[kRows][kVectors]) {
    if constexpr (kGroup == 0) return add_group(codes, chunks, activations, stride, totals);
    for (int64_t first = 0; first < chunks; first += kGroup) {
      add_group(codes, std::min(kGroup, chunks - first), activations + first * 4 * kPlanes, stride, totals);
    }
  }

  // The same for as many chunks as Sums can hold.
  static void add_group(const uint8_t* (&codes)[kVectors], int64_t chunks, const int8_t* activations, int64_t stride,
                        Ints (&totals)[kRows][kVectors]) {
    Products products;
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        products[r][v][0] = V::begun(totals[r][v]);
        for (int part = 1; part < kParts; ++part) products[r][v][part] = V::nothing();
      }
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      typename V::Bytes packed[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kRows <= 4) V::prefetch(codes[v]);
        packed[v] = V::load(codes[v]);
        codes[v] += kChunk;
      }
      chunk_products(packed, activations + chunk * 4 * kPlanes, stride, products,
                     std::make_integer_sequence<int, kPlanes>{});
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        totals[r][v] = V::ended(totals[r][v], products[r][v][0]);
        for (int part = 1; part < kParts; ++part) totals[r][v] = V::widened(totals[r][v], products[r][v][part]);
      }
    }
  }

  template <int... kPlane>
  static void chunk_products(const typename V::Bytes (&packed)[kVectors], const int8_t* activations, int64_t stride,
                             Products& products, std::integer_sequence<int, kPlane...>) {
    (plane_products<kPlane>(packed, activations, stride, products), ...);
  }

  template <int kPlane>
  static void plane_products(const typename V::Bytes (&packed)[kVectors], const int8_t* activations, int64_t stride,
                             Products& products) {
    typename V::Bytes codes[kVectors];
    for (int v = 0; v < kVectors; ++v) codes[v] = V::template plane<kBits, kPlane>(packed[v]);
    for (int r = 0; r < kRows; ++r) {
      const auto four = V::four(activations + r * stride + kPlane * 4);
      for (int v = 0; v < kVectors; ++v) {
        Sums& sum = products[r][v][kPlane % kParts];
        sum = V::template dot<kBits>(sum, codes[v], four);
      }
    }
  }

  static void store(const MatrixShape& shape, Floats sums, int64_t row, int64_t column, const Addends& added,
                    float* out) {
    const int64_t count = std::min<int64_t>(V::kLanes, shape.columns - column), place = row * shape.columns + column;
    if (count == V::kLanes) {
      if (added.bias != nullptr) sums = V::plus(sums, V::load_floats(added.bias + column));
      if (added.sums != nullptr) sums = V::plus(sums, V::load_floats(added.sums + place));
      V::store(out + place, sums);
      return;
    }
    alignas(kAlignment) float kept[V::kLanes];
    V::store(kept, sums);
    for (int64_t i = 0; i < count; ++i) {
      if (added.bias != nullptr) kept[i] += added.bias[column + i];
      if (added.sums != nullptr) kept[i] += added.sums[place + i];
      out[place + i] = kept[i];
    }
  }
};

// kRows rows with the columns of kPanels panels.
template <class V, int kBits, int kRows, int kPanels>
void rows_of_panels(const Matrix& matrix, const QuantizedRows& rows, int64_t panel, int64_t row, const Addends& added,
                    float* out) {
  constexpr int kVectors = V::vectors_for(kRows, kPanels);
  constexpr int kParts = kRows * kVectors <= V::kFewSums ? std::min(2, 8 / kBits) : 1;
  for (int64_t first = 0; first < kPanels * kPanel; first += kVectors * V::kLanes) {
    Tile<V, kBits, kRows, kVectors, kParts>::compute(matrix, rows, panel * kPanel + first, row, added, out);
  }
}

// The same for a number of rows, up to kRows, that is known only now.
template <class V, int kBits, int kRows, int kPanels>
void some_rows(const Matrix& matrix, const QuantizedRows& rows, int64_t panel, int64_t row, int64_t count,
               const Addends& added, float* out) {
  if (count == kRows) return rows_of_panels<V, kBits, kRows, kPanels>(matrix, rows, panel, row, added, out);
  if constexpr (kRows > 1) return some_rows<V, kBits, kRows - 1, kPanels>(matrix, rows, panel, row, count, added, out);
}

// Rows from `row` to `end` with the columns of kPanels panels, in tiles that are as large as each other.
template <class V, int kBits, int kPanels>
void all_rows(const Matrix& matrix, const QuantizedRows& rows, int64_t panel, int64_t row, int64_t end,
              const Addends& added, float* out) {
  const int64_t together = V::rows_together(end - row, matrix.shape.block_size);
  for (int64_t tiles = (end - row + together - 1) / together; tiles > 0; --tiles) {
    const int64_t count = (end - row + tiles - 1) / tiles;
    some_rows<V, kBits, V::kMostRows, kPanels>(matrix, rows, panel, row, count, added, out);
    row += count;
  }
}

// Rows that stay in the second cache while all panels pass by.
constexpr int64_t kCachedBytes = 512 << 10;

template <class V, int kBits>
void multiply_bits(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const Addends& added,
                   float* out) {
  const int64_t row_bytes = matrix.shape.blocks() * matrix.shape.block_size;
  const int64_t fitting = std::max<int64_t>(kCachedBytes / row_bytes / V::kMostRows, 1) * V::kMostRows;
  for (int64_t row = 0; row < rows.rows; row += fitting) {
    const int64_t end = std::min(row + fitting, rows.rows);
    int64_t panel = first;
    for (; panel + 2 <= last; panel += 2) all_rows<V, kBits, 2>(matrix, rows, panel, row, end, added, out);
    if (panel < last) all_rows<V, kBits, 1>(matrix, rows, panel, row, end, added, out);
  }
}

// Calls work with the number of bits as a type that knows it.
template <class Work>
void by_bits(int64_t bits, const Work& work) {
  switch (bits) {
    case 2:
      return work(std::integral_constant<int, 2>{});
    case 4:
      return work(std::integral_constant<int, 4>{});
    default:
      return work(std::integral_constant<int, 8>{});
  }
}

template <class V>
void multiply(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const Addends& added,
              float* out) {
  by_bits(matrix.shape.bits, [&](auto bits) {
    multiply_bits<V, decltype(bits)::value>(matrix, rows, first, last, added, out);
  });
}

// A block's greatest magnitude becomes 127; codes are rounded to nearest even, as MatMulNBits has them. Plain
// loops, which compilers turn into vectors: magnitudes of floats are ordered as their bits are.
inline void quantize_block(const float* values, int64_t count, int64_t block_size, int8_t* codes, float* scale,
                           int32_t* sum) {
  uint32_t greatest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    greatest = std::max(greatest, bits & 0x7fffffffu);
  }
  float magnitude;
  std::memcpy(&magnitude, &greatest, sizeof magnitude);
  *scale = magnitude / 127.0f;
  const float inverse = 127.0f / magnitude;
  if (!(inverse > 0.0f && inverse <= std::numeric_limits<float>::max())) {
    // Zeros, and what is so small that it counts as such; or infinite or no number, and then so is the scale.
    std::memset(codes, 0, static_cast<size_t>(block_size));
    *sum = 0;
    return;
  }
  int32_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t code = static_cast<int32_t>(std::nearbyint(values[i] * inverse));
    codes[i] = static_cast<int8_t>(code);
    total += code;
  }
  for (int64_t i = count; i < block_size; ++i) codes[i] = 0;
  *sum = total;
}

// Where a row's block lies in what is quantized.
struct BlockPlace {
  int64_t begin, count, place;
  BlockPlace(const MatrixShape& shape, const QuantizedRows& into, int64_t row, int64_t block)
      : begin(block * shape.block_size),
        count(std::min(shape.block_size, shape.rows - begin)),
        place(block * into.rows + row) {}
};

inline void quantize_block(const float* values, const MatrixShape& shape, const BlockPlace& at,
                           const QuantizedRows& into) {
  quantize_block(values, at.count, shape.block_size, into.codes + at.place * shape.block_size, into.scales + at.place,
                 into.sums + at.place);
}

inline void quantize(const MatrixShape& shape, const float* values, int64_t first, int64_t last,
                     const QuantizedRows& into) {
  for (int64_t row = first; row < last; ++row, values += shape.rows) {
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      const BlockPlace at(shape, into, row, block);
      quantize_block(values + at.begin, shape, at, into);
    }
  }
}

inline void quantize_twice(const MatrixShape& shape, const float* values, int64_t first, int64_t last,
                           const QuantizedRows& into, const QuantizedRows& rests) {
  float rest[kMostBlock];
  for (int64_t row = first; row < last; ++row, values += shape.rows) {
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      const BlockPlace at(shape, into, row, block);
      const float* of_block = values + at.begin;
      quantize_block(of_block, shape, at, into);
      const int8_t* codes = into.codes + at.place * shape.block_size;
      const float scale = into.scales[at.place];
      for (int64_t i = 0; i < at.count; ++i) rest[i] = std::fma(static_cast<float>(-codes[i]), scale, of_block[i]);
      quantize_block(rest, shape, at, rests);
    }
  }
}

template <class V>
constexpr KernelSet kernels(const char* name) {
  return {name, gate, quantize, quantize_twice, multiply<V>};
}

}  // namespace
}  // namespace phirt
