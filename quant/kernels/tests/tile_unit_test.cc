// The tile unit in plain C++ with the instructions as a compiler's own macros write them, on products computed by
// hand. With an argument, a product of shapes that do not agree, which it has to refuse.
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tile_unit.h"

// Not known to this file alone: the compiler's macro does not say that it reads all of it.
struct Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
Shapes shapes;

namespace {

// Two rows of activations, 8 deep, and two columns.
const uint8_t kLeft[2][8] = {{1, 2, 3, 4, 5, 6, 7, 8}, {255, 0, 0, 0, 0, 0, 0, 128}};
const uint8_t kRight[2][8] = {{1, 1, 1, 1, 255, 0, 0, 0}, {1, 1, 1, 1, 0, 0, 0, 2}};

int failures = 0;

void expect(const char* name, const int32_t (&expected)[4]) {
  volatile int32_t found[2][4];
  std::memset(const_cast<int32_t(*)[4]>(found), 0x55, sizeof found);
  _tile_stored(0, const_cast<int32_t(*)[4]>(found), 16);
  const int32_t untouched = 0x55555555;
  for (int row = 0; row < 2; ++row) {
    if (found[row][0] == expected[2 * row] && found[row][1] == expected[2 * row + 1] && found[row][2] == untouched &&
        found[row][3] == untouched) {
      continue;
    }
    std::printf("%s, row %d: %d %d, expected %d %d\n", name, row, found[row][0], found[row][1], expected[2 * row],
                expected[2 * row + 1]);
    ++failures;
  }
  _tile_zero(0);
}

}  // namespace

int main(int count, char**) {
  syscall(SYS_arch_prctl, 0x1023, 18);
  compute_tile_instructions();
  shapes.rows[0] = shapes.rows[1] = shapes.rows[2] = 2;
  shapes.row_bytes[0] = shapes.row_bytes[1] = shapes.row_bytes[2] = 8;
  if (count > 1) shapes.rows[2] = 1;
  _tile_loadconfig(&shapes);
  _tile_loadd(1, kLeft, 8);
  _tile_loadd(2, kRight, 8);
  // (1+2+3+4) + (5+6+7+8) = 36; 1 * 255 + 8 * 2 = 271 where 255 is unsigned, else -1 + 16 = 15.
  // Row 1: 255 or -1 in place 0 and 128 or -128 in place 7.
  _tile_dpbuud(0, 1, 2);
  expect("unsigned by unsigned", {36, 271, 255 + 128, 255 * 255 + 128 * 2});
  _tile_dpbusd(0, 1, 2);
  expect("unsigned by signed", {36, 15, 255 + 128, -255 + 128 * 2});
  _tile_dpbsud(0, 1, 2);
  expect("signed by unsigned", {36, 271, -1 - 128, -255 - 128 * 2});
  _tile_dpbssd(0, 1, 2);
  _tile_dpbssd(0, 1, 2);
  expect("signed by signed, twice", {72, 30, 2 * (-1 - 128), 2 * (1 - 128 * 2)});
  _tile_release();
  return failures == 0 ? 0 : 1;
}
