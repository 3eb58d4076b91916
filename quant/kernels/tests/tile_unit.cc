#include "tile_unit.h"

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <ucontext.h>
#include <unistd.h>

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Tile {
  int rows = 0, row_bytes = 0;
  uint8_t data[kRows][kRowBytes] = {};
};

thread_local Tile tiles[kTiles];
thread_local bool in_use = false;
volatile long computed = 0;

[[noreturn]] void refuse(const char* why) {
  static_cast<void>(!write(2, why, std::strlen(why)));
  static_cast<void>(!write(2, "\n", 1));
  _exit(70);
}

void require(bool condition, const char* why) {
  if (!condition) refuse(why);
}

// LDTILECFG
void load_shapes(const uint8_t* from) {
  require(from[0] == 1, "palette 1 is the one with tiles");
  for (int i = 1; i < 16; ++i) require(from[i] == 0, "start row and reserved bytes are 0");
  for (int tile = 0; tile < 16; ++tile) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, from + 16 + 2 * tile, sizeof row_bytes);
    const int rows = from[48 + tile];
    if (tile >= kTiles) {
      require(rows == 0 && row_bytes == 0, "there are 8 tiles");
      continue;
    }
    require(rows <= kRows && row_bytes <= kRowBytes, "tiles have at most 16 rows of 64 bytes");
    require((rows == 0) == (row_bytes == 0), "rows without bytes");
    tiles[tile] = Tile{};
    tiles[tile].rows = rows;
    tiles[tile].row_bytes = row_bytes;
  }
  in_use = true;
}

Tile& tile_in_use(int tile) {
  require(in_use, "a tile instruction without a configuration");
  require(tile < kTiles && tiles[tile].rows > 0, "a tile without a shape");
  return tiles[tile];
}

// TILELOADD: what lies beyond the shape becomes 0.
void load(int number, const uint8_t* from, int64_t stride) {
  Tile& tile = tile_in_use(number);
  std::memset(tile.data, 0, sizeof tile.data);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(tile.data[row], from + row * stride, static_cast<size_t>(tile.row_bytes));
  }
}

// TILESTORED
void store(int number, uint8_t* into, int64_t stride) {
  const Tile& tile = tile_in_use(number);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(into + row * stride, tile.data[row], static_cast<size_t>(tile.row_bytes));
  }
}

int32_t as_signed(uint8_t byte, bool is_signed) { return is_signed ? static_cast<int8_t>(byte) : byte; }

// TDPB[SU][SU]D: what lies beyond the shape of the sums becomes 0.
void multiply(int into, int left, int right, bool left_signed, bool right_signed) {
  require(into != left && into != right && left != right, "three different tiles");
  Tile& sums = tile_in_use(into);
  const Tile &a = tile_in_use(left), &b = tile_in_use(right);
  require(sums.row_bytes % 4 == 0 && a.row_bytes % 4 == 0 && b.row_bytes % 4 == 0, "rows of whole words");
  require(sums.rows == a.rows && a.row_bytes / 4 == b.rows && sums.row_bytes == b.row_bytes, "shapes that agree");
  Tile result{};
  result.rows = sums.rows;
  result.row_bytes = sums.row_bytes;
  for (int m = 0; m < sums.rows; ++m) {
    for (int n = 0; n < sums.row_bytes / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, sums.data[m] + 4 * n, sizeof sum);
      for (int k = 0; k < a.row_bytes / 4; ++k) {
        for (int j = 0; j < 4; ++j) {
          sum += as_signed(a.data[m][4 * k + j], left_signed) * as_signed(b.data[k][4 * n + j], right_signed);
        }
      }
      std::memcpy(result.data[m] + 4 * n, &sum, sizeof sum);
    }
  }
  sums = result;
}

// A VEX instruction of three prefix bytes with its operands; chapter 2 of the manual's volume 2.
struct Instruction {
  int prefix;  // 0: none, 1: 66, 2: F3, 3: F2
  int opcode, reg, rm, third;
  bool is_memory;
  uint64_t base = 0, index = 0;  // of memory: base with displacement, and index * scale
  int length;
};

uint64_t register_value(const ucontext_t& context, int number) {
  static const int kPlaces[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context.uc_mcontext.gregs[kPlaces[number]]);
}

Instruction decoded(const ucontext_t& context, const uint8_t* at) {
  require(at[0] == 0xc4 && (at[1] & 0x1f) == 2 && (at[2] & 0x84) == 0, "an instruction that is none of AMX's");
  const int r = (at[1] & 0x80) ? 0 : 8, x = (at[1] & 0x40) ? 0 : 8, b = (at[1] & 0x20) ? 0 : 8;
  const uint8_t modrm = at[4];
  const int mode = modrm >> 6;
  Instruction result{};
  result.prefix = at[2] & 3;
  result.third = (~at[2] >> 3) & 15;
  result.opcode = at[3];
  result.reg = ((modrm >> 3) & 7) + r;
  result.rm = (modrm & 7) + b;
  result.is_memory = mode != 3;
  const uint8_t* next = at + 5;
  if (result.is_memory) {
    const bool follows_code = mode == 0 && (modrm & 7) == 5;  // an address relative to the next instruction
    int base = result.rm;
    if ((modrm & 7) == 4) {
      const uint8_t sib = *next++;
      const int index = ((sib >> 3) & 7) + x;
      base = (sib & 7) + b;
      require(mode != 0 || (sib & 7) != 5, "addresses without a base");
      if (index != 4) result.index = register_value(context, index) << (sib >> 6);
    }
    int32_t displacement = 0;
    if (mode == 1) displacement = static_cast<int8_t>(*next++);
    if (mode == 2 || follows_code) {
      std::memcpy(&displacement, next, sizeof displacement);
      next += sizeof displacement;
    }
    result.base = follows_code ? reinterpret_cast<uint64_t>(next) : register_value(context, base);
    result.base += static_cast<uint64_t>(static_cast<int64_t>(displacement));
  }
  result.length = static_cast<int>(next - at);
  return result;
}

void compute(const Instruction& instruction) {
  uint8_t* base = reinterpret_cast<uint8_t*>(instruction.base);
  const int64_t stride = static_cast<int64_t>(instruction.index);
  const int prefix = instruction.prefix;
  if (instruction.opcode == 0x49 && prefix == 0 && instruction.is_memory && instruction.reg == 0) {
    return load_shapes(base + stride);
  }
  if (instruction.opcode == 0x49 && prefix == 0 && !instruction.is_memory) {  // TILERELEASE
    in_use = false;
    return;
  }
  if (instruction.opcode == 0x49 && prefix == 3 && !instruction.is_memory) {  // TILEZERO
    Tile& tile = tile_in_use(instruction.reg);
    std::memset(tile.data, 0, sizeof tile.data);
    return;
  }
  if (instruction.opcode == 0x4b && prefix == 3) return load(instruction.reg, base, stride);
  if (instruction.opcode == 0x4b && prefix == 2) return store(instruction.reg, base, stride);
  if (instruction.opcode == 0x5e && !instruction.is_memory) {
    return multiply(instruction.reg, instruction.rm, instruction.third, prefix >= 2, (prefix & 1) != 0);
  }
  refuse("an instruction that is none of AMX's");
}

void on_refused(int, siginfo_t*, void* data) {
  ucontext_t& context = *static_cast<ucontext_t*>(data);
  greg_t& place = context.uc_mcontext.gregs[REG_RIP];
  const Instruction instruction = decoded(context, reinterpret_cast<const uint8_t*>(place));
  compute(instruction);
  place += instruction.length;
  computed = computed + 1;
}

}  // namespace

void compute_tile_instructions() {
  struct sigaction action {};
  action.sa_sigaction = on_refused;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGILL, &action, nullptr) != 0) std::abort();
}

long tile_instructions() { return computed; }
