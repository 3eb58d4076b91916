// The tile unit's instructions, one function each. Knows their operands; not what is computed with them.
//
// They are written out because compilers' own macros do not say that tiles are loaded from memory and stored to
// it: stores before a load could then be left out as never read.
#pragma once

#include <cstdint>

namespace phirt {
namespace {

// What LDTILECFG reads (palette 1: eight tiles of at most 16 rows of 64 bytes).
struct TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "as the instruction has it");

inline void begin_tiles(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes)); }

inline void end_tiles() { __asm__ volatile("tilerelease"); }

template <int kTile>
void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kTile>
void load_tile(const void* rows, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
void store_tile(void* rows, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}

// Adds products of signed bytes: into[m][n] += left[m][4k + j] * right[k][4n + j].
template <int kInto, int kLeft, int kRight>
void multiply_tiles() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kInto), "i"(kLeft), "i"(kRight));
}

}  // namespace
}  // namespace phirt
