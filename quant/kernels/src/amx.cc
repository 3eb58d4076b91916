// AMX with int8: one instruction multiplies a tile of 16 rows of activations by the 16 columns of a panel, 64
// codes deep. Chunks with a byte for each code are in the order in which the tile unit reads its right side, and
// blocks of activations are its left side as they are. Scales are worked in by AVX-512.
#include <immintrin.h>

#include <utility>

#include "amx_tiles.h"
#include "tile.h"

namespace phirt {

extern const KernelSet kAvx512Vnni;

namespace {

constexpr int64_t kMostHeight = 16;  // rows of activations in a tile
constexpr int64_t kMostDepth = 64;   // rows of the matrix in a tile
constexpr int64_t kMostBlock = 256;

// Below this, spreading codes and working in scales alone take as long as AVX-512's products (measured on a CPU with
// the same vector units and no tiles, these instructions left out): shorter blocks have more of that.
constexpr int64_t few_rows(int64_t block_size) { return block_size < 64 ? 16 : 8; }

// Rows for which codes are spread once. Their sums take 16 KiB of the first cache, a block's activations no more
// than 32 KiB; the activations of all blocks stay in the second.
constexpr int64_t kRowsTogether = 128;

inline int64_t height_of(const QuantizedRows& rows) { return std::min(rows.rows, kMostHeight); }

// For as long as it lives, tiles have the shapes of this product: 0 to 3 are sums, 4 and 5 activations, 6 and 7
// codes. Tiles that are in use are part of what the system saves at each switch of threads, and keep a core from
// deep sleep: they are given back after each product.
class TilesInUse {
 public:
  TilesInUse(int64_t height, int64_t depth) {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.rows[tile] = static_cast<uint8_t>(tile < 6 ? height : depth / 4);
      shapes.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? depth : 64);
    }
    begin_tiles(shapes);
  }
  ~TilesInUse() { end_tiles(); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

// Many rows with the columns of kPanels panels. Blocks are the outer loop: their codes are spread once for all
// rows, and sums stay in memory between them.
template <int kBits, int kPanels>
class PanelsProduct {
 public:
  PanelsProduct(const Matrix& matrix, const QuantizedRows& rows, int64_t panel)
      : matrix_(matrix), rows_(rows), panel_(panel), height_(height_of(rows)) {}

  void compute(int64_t row, int64_t end, const float* bias, float* out) {
    row_ = row;
    const int64_t tiles = (end - row + height_ - 1) / height_;
    std::memset(sums_, 0, sizeof sums_[0] * static_cast<size_t>(tiles));
    Piece before{0, 0, 0, nullptr};
    int turn = 0;
    for (int64_t block = 0; block < matrix_.shape.blocks(); ++block) {
      for (int p = 0; p < kPanels; ++p) spread_codes(p, block);
      for (int64_t tile = 0; tile < tiles; tile += 2, turn ^= 1) {
        const Piece piece{block, tile, static_cast<int>(std::min<int64_t>(tiles - tile, 2)), products_[turn]};
        if (piece.tiles == 2) multiply<2>(piece);
        else multiply<1>(piece);
        // While the tile unit works, the vector units bring in what it stored before.
        add(before);
        before = piece;
      }
    }
    add(before);
    for (int64_t tile = 0; tile < tiles; ++tile) store(tile, bias, out);
  }

 private:
  using Products = int32_t[kMostHeight][kPanel];

  // One or two tiles' products with one block.
  struct Piece {
    int64_t block, tile;
    int tiles;
    Products (*products)[kPanels];
  };

  // Tiles have one height: the last begins so early that it is full, and computes some rows once more.
  int64_t first_row(int64_t tile) const { return std::min(row_ + tile * height_, rows_.rows - height_); }

  int64_t place(int p, int64_t block) const { return ((panel_ + p) * matrix_.shape.blocks() + block) * kPanel; }

  bool has_zero_points() const { return matrix_.zero_points.data() != nullptr; }

  __m512i zero_points(int p, int64_t block) const {
    return _mm512_loadu_si512(reinterpret_cast<const int32_t*>(matrix_.zero_points.data()) + place(p, block));
  }

  __m512 scales(int p, int64_t block) const {
    if (!matrix_.half_scales) {
      return _mm512_loadu_ps(reinterpret_cast<const float*>(matrix_.scales.data()) + place(p, block));
    }
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(matrix_.scales.data()) + place(p, block);
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }

  // A byte for each code, less its zero point. With 8 bits that may not fit a byte: codes are taken around 128,
  // and `add` makes up for zero points that differ.
  void spread_codes(int p, int64_t block) {
    const int64_t bytes = matrix_.shape.block_bytes();
    const uint8_t* packed = matrix_.panel_codes(panel_ + p) + block * bytes;
    __m512i zeros = _mm512_set1_epi8(static_cast<char>(1 << (kBits - 1)));
    if (kBits < 8 && has_zero_points()) {
      zeros = _mm512_mullo_epi32(zero_points(p, block), _mm512_set1_epi32(0x01010101));
    }
    int8_t* into = codes_[p];
    for (int64_t at = 0; at < bytes; at += kChunk) {
      _mm_prefetch(reinterpret_cast<const char*>(packed + at) + 2048, _MM_HINT_T0);
      __m512i left = _mm512_loadu_si512(packed + at);
      for (int plane = 0; plane < 8 / kBits; ++plane, into += kChunk) {
        __m512i codes = left;
        if constexpr (kBits < 8) {
          codes = _mm512_and_si512(left, _mm512_set1_epi8((1 << kBits) - 1));
          left = _mm512_srli_epi16(left, kBits);
        }
        _mm512_store_si512(into, _mm512_sub_epi8(codes, zeros));
      }
    }
  }

  // Two by two tiles: each one that is loaded is used twice, and four sums are under way at once, which hide
  // each other's latency.
  template <int kTiles>
  void multiply(const Piece& piece) const {
    const int64_t block_size = matrix_.shape.block_size, depth = std::min(block_size, kMostDepth);
    const int8_t* block = rows_.codes + piece.block * rows_.rows * block_size;
    const int8_t* upper = block + first_row(piece.tile) * block_size;
    const int8_t* lower = block + first_row(piece.tile + kTiles - 1) * block_size;
    zero_tile<0>();
    if constexpr (kPanels == 2) zero_tile<1>();
    if constexpr (kTiles == 2) zero_tile<2>();
    if constexpr (kTiles == 2 && kPanels == 2) zero_tile<3>();
    for (int64_t at = 0; at < block_size; at += depth) {
      load_tile<6>(codes_[0] + at * kPanel, kChunk);
      load_tile<4>(upper + at, block_size);
      multiply_tiles<0, 4, 6>();
      if constexpr (kTiles == 2) load_tile<5>(lower + at, block_size);
      if constexpr (kTiles == 2) multiply_tiles<2, 5, 6>();
      if constexpr (kPanels == 2) load_tile<7>(codes_[kPanels - 1] + at * kPanel, kChunk);
      if constexpr (kPanels == 2) multiply_tiles<1, 4, 7>();
      if constexpr (kTiles == 2 && kPanels == 2) multiply_tiles<3, 5, 7>();
    }
    store_tile<0>(piece.products[0][0], sizeof piece.products[0][0][0]);
    if constexpr (kPanels == 2) store_tile<1>(piece.products[0][1], sizeof piece.products[0][0][0]);
    if constexpr (kTiles == 2) store_tile<2>(piece.products[1][0], sizeof piece.products[0][0][0]);
    if constexpr (kTiles == 2 && kPanels == 2) {
      store_tile<3>(piece.products[1][1], sizeof piece.products[0][0][0]);
    }
  }

  void add(const Piece& piece) {
    for (int tile = 0; tile < piece.tiles; ++tile) {
      const int64_t first = piece.block * rows_.rows + first_row(piece.tile + tile);
      for (int p = 0; p < kPanels; ++p) {
        add_tile(piece.products[tile][p], p, piece.block, first, sums_[piece.tile + tile][p]);
      }
    }
  }

  void add_tile(Products& products, int p, int64_t block, int64_t first, float (*sums)[kPanel]) const {
    const __m512 scale = scales(p, block);
    __m512i rest = _mm512_setzero_si512();
    const bool has_rest = kBits == 8 && has_zero_points();
    if (has_rest) rest = _mm512_sub_epi32(_mm512_set1_epi32(128), zero_points(p, block));
    for (int64_t r = 0; r < height_; ++r) {
      __m512i total = _mm512_load_si512(products[r]);
      if (has_rest) {
        total = _mm512_add_epi32(total, _mm512_mullo_epi32(rest, _mm512_set1_epi32(rows_.sums[first + r])));
      }
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(rows_.scales[first + r]));
      _mm512_store_ps(sums[r], _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), both, _mm512_load_ps(sums[r])));
    }
  }

  void store(int64_t tile, const float* bias, float* out) const {
    const int64_t columns = matrix_.shape.columns;
    for (int p = 0; p < kPanels; ++p) {
      const int64_t column = (panel_ + p) * kPanel, count = std::min(columns - column, kPanel);
      const __mmask16 is_there = static_cast<__mmask16>((1u << count) - 1);
      for (int64_t r = 0; r < height_; ++r) {
        __m512 sum = _mm512_load_ps(sums_[tile][p][r]);
        if (bias != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(is_there, bias + column));
        _mm512_mask_storeu_ps(out + (first_row(tile) + r) * columns + column, is_there, sum);
      }
    }
  }

  const Matrix& matrix_;
  const QuantizedRows& rows_;
  const int64_t panel_, height_;
  int64_t row_ = 0;
  alignas(kAlignment) float sums_[kRowsTogether / kMostHeight][kPanels][kMostHeight][kPanel];
  alignas(kAlignment) int8_t codes_[kPanels][kMostBlock * kPanel];
  alignas(kAlignment) Products products_[2][2][kPanels];
};

template <int kBits>
void multiply_tiled(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const float* bias,
                    float* out) {
  const TilesInUse tiles(height_of(rows), std::min(matrix.shape.block_size, kMostDepth));
  for (int64_t row = 0; row < rows.rows; row += kRowsTogether) {
    const int64_t end = std::min(row + kRowsTogether, rows.rows);
    int64_t panel = first;
    for (; panel + 2 <= last; panel += 2) {
      PanelsProduct<kBits, 2>(matrix, rows, panel).compute(row, end, bias, out);
    }
    if (panel < last) PanelsProduct<kBits, 1>(matrix, rows, panel).compute(row, end, bias, out);
  }
}

void multiply_amx(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const float* bias,
                  float* out) {
  if (rows.rows < few_rows(matrix.shape.block_size)) return kAvx512Vnni.multiply(matrix, rows, first, last, bias, out);
  by_bits(matrix.shape.bits, [&](auto bits) {
    multiply_tiled<decltype(bits)::value>(matrix, rows, first, last, bias, out);
  });
}

}  // namespace

extern const KernelSet kAmxInt8 = {"amx-int8", quantize, multiply_amx};

}  // namespace phirt
