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

// Below this AVX-512 is faster: the shorter a block is, the more of the time goes to working in scales, and a tile is
// stored and added whole. Measured on an Emerald Rapids core (columns: 1, 4, 8 rows; share of AVX-512's time):
// blocks of 128 94, 81, 65 %; of 64 109, 95, 68 %; of 32 148, 136, 95 %; of 16 98 % at 24 rows.
constexpr int64_t few_rows(int64_t block_size) {
  return block_size >= 128 ? 1 : block_size == 64 ? 3 : block_size == 32 ? 8 : 24;
}

// Rows for which codes are spread once. Their sums take 16 KiB of the first cache; the activations of all blocks
// stay in the second.
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

// Calls `work` with the numbers from 0 to sizeof...(kNumbers) - 1 as constants.
template <int... kNumbers, typename Work>
inline void for_each_of(std::integer_sequence<int, kNumbers...>, const Work& work) {
  (work(std::integral_constant<int, kNumbers>()), ...);
}

// Rows with the columns of a pair of panels; a block of the matrix is kSteps tiles deep. Blocks are the outer loop:
// their codes are spread once for all rows, and sums stay in memory between them. All of that is in the first
// cache, and activations come from the second. kHasRest: codes of 8 bits are taken around 128, and zero points
// differ from that.
template <int kSteps, bool kHasRest>
class PairProduct {
 public:
  PairProduct(const Matrix& matrix, const QuantizedRows& rows, int64_t panel)
      : matrix_(matrix), rows_(rows), panel_(panel), height_(height_of(rows)) {}

  // Rows `row` to `end` fill one tile, or an even number of them that are 16 rows high.
  void compute(int64_t row, int64_t end, const Addends& added, float* out) {
    row_ = row;
    const int64_t tiles = (end - row + height_ - 1) / height_;
    std::memset(sums_, 0, sizeof sums_[0] * static_cast<size_t>(tiles * kMostHeight));
    if (tiles == 1) compute_one_tile();
    else compute_pairs(tiles);
    for (int64_t tile = 0; tile < tiles; ++tile) store(tile, added, out);
  }

 private:
  static constexpr int kPair = 2;  // panels
  static constexpr int64_t kPieceRows = 2 * kMostHeight;  // at most

  // One or two tiles of rows with one block. Its products are in tiles until they are stored in products_.
  struct Piece {
    int64_t block, tile;
    int tiles;
  };

  // Brings a piece's products into the sums.
  class Addition {
   public:
    Addition(PairProduct& product, const Piece& piece)
        : products_(product.products_), sums_(product.sums_ + piece.tile * kMostHeight) {
      for (int p = 0; p < kPair; ++p) {
        scales_[p] = product.scales(p, piece.block);
        if constexpr (kHasRest) rests_[p] = product.rest(p, piece.block);
      }
      const __mmask16 is_there = static_cast<__mmask16>((1u << product.height_) - 1);
      for (int tile = 0; tile < piece.tiles; ++tile) {
        const int64_t at = piece.block * product.rows_.rows + product.first_row(piece.tile + tile);
        const __m512 row_scales = _mm512_maskz_loadu_ps(is_there, product.rows_.scales + at);
        _mm512_store_ps(row_scales_ + tile * kMostHeight, row_scales);
        if constexpr (kHasRest) {
          const __m512i row_sums = _mm512_maskz_loadu_epi32(is_there, product.rows_.sums + at);
          _mm512_store_si512(row_sums_ + tile * kMostHeight, row_sums);
        }
      }
    }

    __attribute__((always_inline)) void add(int64_t first, int64_t last) const {
      for (int64_t row = first; row < last; ++row) {
        const __m512 row_scale = _mm512_set1_ps(row_scales_[row]);
        for (int p = 0; p < kPair; ++p) {
          __m512i total = _mm512_load_si512(products_[row][p]);
          if constexpr (kHasRest) {
            const __m512i row_sum = _mm512_set1_epi32(row_sums_[row]);
            total = _mm512_add_epi32(total, _mm512_mullo_epi32(rests_[p], row_sum));
          }
          const __m512 both = _mm512_mul_ps(scales_[p], row_scale), sum = _mm512_load_ps(sums_[row][p]);
          _mm512_store_ps(sums_[row][p], _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), both, sum));
        }
      }
    }

   private:
    const int32_t (*products_)[kPair][kPanel];
    float (*sums_)[kPair][kPanel];
    __m512 scales_[kPair];
    __m512i rests_[kPair];
    alignas(kAlignment) float row_scales_[kPieceRows];
    alignas(kAlignment) int32_t row_sums_[kPieceRows];
  };

  // Tiles have one height: the last begins so early that it is full, and computes some rows once more.
  int64_t first_row(int64_t tile) const { return std::min(row_ + tile * height_, rows_.rows - height_); }

  const int8_t* activations(int64_t block, int64_t tile) const {
    return rows_.codes + (block * rows_.rows + first_row(tile)) * matrix_.shape.block_size;
  }

  int64_t place(int p, int64_t block) const { return ((panel_ + p) * matrix_.shape.blocks() + block) * kPanel; }

  __m512i zero_points(int p, int64_t block) const {
    return _mm512_loadu_si512(reinterpret_cast<const int32_t*>(matrix_.zero_points.data()) + place(p, block));
  }

  // What times a row's sum of codes is missing from its products.
  __m512i rest(int p, int64_t block) const { return _mm512_sub_epi32(_mm512_set1_epi32(128), zero_points(p, block)); }

  __m512 scales(int p, int64_t block) const {
    if (!matrix_.half_scales) {
      return _mm512_loadu_ps(reinterpret_cast<const float*>(matrix_.scales.data()) + place(p, block));
    }
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(matrix_.scales.data()) + place(p, block);
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }

  void spread_codes(int64_t block) {
    by_bits(matrix_.shape.bits, [&](auto bits) {
      for (int p = 0; p < kPair; ++p) spread_panel<decltype(bits)::value>(p, block);
    });
  }

  // A byte for each code, less its zero point; with 8 bits that may not fit a byte, and it is less 128.
  template <int kBits>
  void spread_panel(int p, int64_t block) {
    const int64_t bytes = matrix_.shape.block_bytes();
    const uint8_t* packed = matrix_.panel_codes(panel_ + p) + block * bytes;
    __m512i zeros = _mm512_set1_epi8(static_cast<char>(1 << (kBits - 1)));
    if (kBits < 8 && matrix_.zero_points.data() != nullptr) {
      zeros = _mm512_mullo_epi32(zero_points(p, block), _mm512_set1_epi32(0x01010101));
    }
    int8_t* into = codes_[p];
    for (int64_t at = 0; at < bytes; at += kChunk) {
      _mm_prefetch(reinterpret_cast<const char*>(packed + at) + 4096, _MM_HINT_T1);
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

  // The sums in tile 2 * kTile + kAt are those of a piece's tile kTile with panel kAt.
  template <int kTile, int kAt>
  void store_products() {
    store_tile<2 * kTile + kAt>(products_[kTile * kMostHeight][kAt], sizeof products_[0]);
  }

  void compute_one_tile() {
    const int64_t block_size = matrix_.shape.block_size, depth = block_size / kSteps;
    for (int64_t block = 0; block < matrix_.shape.blocks(); ++block) {
      spread_codes(block);
      const int8_t* rows = activations(block, 0);
      zero_tile<0>();
      zero_tile<1>();
      for (int64_t at = 0; at < block_size; at += depth) {
        load_tile<4>(rows + at, block_size);
        load_tile<6>(codes_[0] + at * kPanel, kChunk);
        multiply_tiles<0, 4, 6>();
        load_tile<7>(codes_[1] + at * kPanel, kChunk);
        multiply_tiles<1, 4, 7>();
      }
      store_products<0, 0>();
      store_products<0, 1>();
      Addition(*this, {block, 0, 1}).add(0, height_);
    }
  }

  void compute_pairs(int64_t tiles) {
    Piece before{};
    for (int64_t block = 0; block < matrix_.shape.blocks(); ++block) {
      spread_codes(block);
      for (int64_t tile = 0; tile < tiles; tile += 2) {
        const Piece piece{block, tile, 2};
        before.tiles != 0 ? multiply_in_turns<true>(piece, before) : multiply_in_turns<false>(piece, before);
        before = piece;
      }
    }
    // What a piece leaves to the one behind it.
    store_products<0, 0>();
    store_products<0, 1>();
    store_products<1, 0>();
    store_products<1, 1>();
    Addition(*this, before).add(0, kPieceRows);
  }

  // Two tiles by two panels: each tile that is loaded is used twice, and four sums are under way at once, which
  // hide each other's latency. The tile unit multiplies while the vector units add the products of the piece
  // before. For that their instructions take turns: a core does not look far enough ahead to find those of the
  // other unit behind a whole piece. And sums in tiles are stored only just before the tile is used again: a store
  // holds up what follows until the products before it are ready.
  template <bool kHasBefore>
  __attribute__((always_inline)) void multiply_in_turns(const Piece& piece, const Piece& before) {
    const int64_t block_size = matrix_.shape.block_size, depth = block_size / kSteps;
    const int8_t* rows[2] = {activations(piece.block, piece.tile), activations(piece.block, piece.tile + 1)};
    const Addition addition(*this, before);
    for_each_of(std::make_integer_sequence<int, 4 * kSteps>(), [&](auto turn) __attribute__((always_inline)) {
      constexpr int kTurn = decltype(turn)::value, kStep = kTurn / 4, kTile = kTurn / 2 % 2, kAt = kTurn % 2;
      if constexpr (kAt == 0) load_tile<4 + kTile>(rows[kTile] + kStep * depth, block_size);
      if constexpr (kTile == 0) load_tile<6 + kAt>(codes_[kAt] + kStep * depth * kPanel, kChunk);
      if constexpr (kStep == 0) {
        if constexpr (kHasBefore) store_products<kTile, kAt>();
        zero_tile<2 * kTile + kAt>();
      }
      multiply_tiles<2 * kTile + kAt, 4 + kTile, 6 + kAt>();
      // From turn kFirst on as many rows as the others: the products of the first tile's rows are stored after two
      // turns, those of all after four.
      constexpr int kFirst = kSteps == 1 ? 2 : 4, kTurns = 4 * kSteps - kFirst, kDone = kTurn - kFirst;
      if constexpr (kHasBefore && kDone >= 0) {
        addition.add(kDone * kPieceRows / kTurns, (kDone + 1) * kPieceRows / kTurns);
      }
    });
  }

  void store(int64_t tile, const Addends& added, float* out) const {
    const int64_t columns = matrix_.shape.columns;
    for (int p = 0; p < kPair; ++p) {
      const int64_t column = (panel_ + p) * kPanel, count = std::min(columns - column, kPanel);
      const __mmask16 is_there = static_cast<__mmask16>((1u << count) - 1);
      for (int64_t r = row_ + tile * height_ - first_row(tile); r < height_; ++r) {  // the others are stored
        __m512 sum = _mm512_load_ps(sums_[tile * kMostHeight + r][p]);
        const int64_t place = (first_row(tile) + r) * columns + column;
        if (added.bias != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(is_there, added.bias + column));
        if (added.sums != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(is_there, added.sums + place));
        _mm512_mask_storeu_ps(out + place, is_there, sum);
      }
    }
  }

  const Matrix& matrix_;
  const QuantizedRows& rows_;
  const int64_t panel_, height_;
  int64_t row_ = 0;
  alignas(kAlignment) float sums_[kRowsTogether][kPair][kPanel];
  alignas(kAlignment) int8_t codes_[kPair][kMostDepth * kSteps * kPanel];
  alignas(kAlignment) int32_t products_[kPieceRows][kPair][kPanel];
};

// Rows that are computed together from `row` on. The last few, if they fill one tile and not two, are by
// themselves: a tile alone does not take turns.
int64_t end_of_rows(int64_t row, int64_t rows) {
  const int64_t left = rows - row, single = left % (2 * kMostHeight);
  if (left > kRowsTogether) return row + kRowsTogether;
  return single <= kMostHeight && single < left ? rows - single : rows;
}

template <int kSteps, bool kHasRest>
void multiply_pairs(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const Addends& added,
                    float* out) {
  const TilesInUse tiles(height_of(rows), std::min(matrix.shape.block_size, kMostDepth));
  for (int64_t row = 0, end; row < rows.rows; row = end) {
    end = end_of_rows(row, rows.rows);
    for (int64_t panel = first; panel < last; panel += 2) {
      PairProduct<kSteps, kHasRest>(matrix, rows, panel).compute(row, end, added, out);
    }
  }
}

void multiply_amx(const Matrix& matrix, const QuantizedRows& rows, int64_t first, int64_t last, const Addends& added,
                  float* out) {
  if (rows.rows < few_rows(matrix.shape.block_size)) return kAvx512Vnni.multiply(matrix, rows, first, last, added, out);
  // Panels are computed in pairs; a last one without another is AVX-512's.
  if ((last - first) % 2 != 0) kAvx512Vnni.multiply(matrix, rows, last - 1, last, added, out);
  last -= (last - first) % 2;
  if (first == last) return;
  const bool has_rest = matrix.shape.bits == 8 && matrix.zero_points.data() != nullptr;
  const auto product = [&](auto steps) {
    constexpr int kSteps = decltype(steps)::value;
    (has_rest ? multiply_pairs<kSteps, true> : multiply_pairs<kSteps, false>)(matrix, rows, first, last, added, out);
  };
  switch (matrix.shape.block_size / kMostDepth) {
    case 4:
      return product(std::integral_constant<int, 4>());
    case 2:
      return product(std::integral_constant<int, 2>());
    default:
      return product(std::integral_constant<int, 1>());
  }
}

}  // namespace

extern const KernelSet kAmxInt8 = {"amx-int8", gate, quantize, quantize_twice, multiply_amx};

}  // namespace phirt
