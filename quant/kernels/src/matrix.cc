// Puts matrices into the order of matrix.h. Knows the layout of MatMulNBits' inputs; no instruction set.
#include "matrix.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "half.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace phirt {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Calls work(first, last) on pieces of [0, total), on so many threads.
template <typename Work>
void share_out(int64_t total, int threads, const Work& work) {
  const int64_t count = std::clamp<int64_t>(threads, 1, std::max<int64_t>(total, 1));
  std::vector<std::thread> others;
  int64_t started = 1;
  try {
    others.reserve(static_cast<size_t>(count));
    for (; started < count; ++started) {
      others.emplace_back([&, started] { work(total * started / count, total * (started + 1) / count); });
    }
  } catch (const std::system_error&) {  // no more threads for this process: what is left is done here
  }
  work(0, total / count);
  work(total * started / count, total);
  for (std::thread& other : others) other.join();
}

// Four codes that lie side by side from the lowest bit of `packed` on, a byte each.
template <int kBits>
uint32_t spread(uint32_t packed) {
  if constexpr (kBits == 2) {
    packed = (packed | packed << 12) & 0x000f000fu;
    return (packed | packed << 6) & 0x03030303u;
  } else {
    packed = (packed | packed << 8) & 0x00ff00ffu;
    return (packed | packed << 4) & 0x0f0f0f0fu;
  }
}

// One block of a column into its chunks. The source has as many codes in four bytes as a chunk has for a column.
template <int kBits>
void place_block(const uint8_t* source, int64_t bytes, uint8_t* into) {
  for (int64_t at = 0; at < bytes; at += 4, into += kChunk) {
    uint32_t codes, placed = 0;
    std::memcpy(&codes, source + at, sizeof codes);
    if constexpr (kBits == 8) {
      placed = codes;
    } else {
      for (int plane = 0; plane < 8 / kBits; ++plane) {
        const uint32_t four = (codes >> (4 * kBits * plane)) & ((1u << (4 * kBits)) - 1);
        placed |= spread<kBits>(four) << (plane * kBits);
      }
    }
    std::memcpy(into, &placed, sizeof placed);
  }
}

using PlaceBlock = void (*)(const uint8_t* source, int64_t bytes, uint8_t* into);

bool fit_half(const float* scales, int64_t count) {
  return std::all_of(scales, scales + count, [](float scale) { return half_value(half_bits(scale)) == scale; });
}

}  // namespace

bool MatrixShape::is_supported() const {
  const bool known_bits = bits == 2 || bits == 4 || bits == 8;
  const bool known_block = block_size >= 16 && block_size <= kMostBlock && (block_size & (block_size - 1)) == 0;
  // Beyond these nothing that is computed from sizes fits into 64 bits.
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  return known_bits && known_block && columns > 0 && columns <= most && rows > 0 && rows <= most;
}

AlignedBytes::AlignedBytes(size_t size) {
  const size_t alignment = size >= kHugePage ? kHugePage : static_cast<size_t>(kAlignment);
  const size_t rounded = std::max((size + alignment - 1) / alignment * alignment, alignment);
#if defined(_WIN32)
  void* memory = _aligned_malloc(rounded, alignment);
#else
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, rounded) != 0) memory = nullptr;
#endif
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // A step reads all weights once: with pages of 4 KiB a fifth of the time goes into finding them.
  if (rounded >= kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  data_.reset(static_cast<uint8_t*>(memory));
}

void AlignedBytes::Free::operator()(uint8_t* memory) const {
#if defined(_WIN32)
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

Matrix pack_matrix(const MatrixShape& shape, const uint8_t* codes, const float* scales,
                   const uint8_t* zero_points, int threads) {
  const int64_t blocks = shape.blocks(), panels = shape.panels();
  const int64_t blob = shape.block_size * shape.bits / 8;
  const int64_t zero_row = (blocks * shape.bits + 7) / 8;
  Matrix matrix;
  matrix.shape = shape;
  matrix.codes = AlignedBytes(static_cast<size_t>(panels * shape.panel_bytes()));
  matrix.half_scales = fit_half(scales, shape.columns * blocks);
  const int64_t entries = panels * blocks * kPanel;
  matrix.scales = AlignedBytes(static_cast<size_t>(entries * (matrix.half_scales ? 2 : 4)));
  if (zero_points != nullptr) matrix.zero_points = AlignedBytes(static_cast<size_t>(entries * 4));
  const PlaceBlock place = shape.bits == 2 ? place_block<2> : shape.bits == 4 ? place_block<4> : place_block<8>;
  const auto place_panel = [&](int64_t panel) {
    uint8_t* into = matrix.codes.data() + panel * shape.panel_bytes();
    if ((panel + 1) * kPanel > shape.columns) std::memset(into, 0, static_cast<size_t>(shape.panel_bytes()));
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const int64_t column = panel * kPanel + lane;
      const bool is_there = column < shape.columns;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t at = (panel * blocks + block) * kPanel + lane;
        const float scale = is_there ? scales[column * blocks + block] : 0.0f;
        if (matrix.half_scales) {
          reinterpret_cast<uint16_t*>(matrix.scales.data())[at] = half_bits(scale);
        } else {
          reinterpret_cast<float*>(matrix.scales.data())[at] = scale;
        }
        if (zero_points != nullptr) {
          const int64_t bit = block * shape.bits;
          const int mask = (1 << shape.bits) - 1;
          reinterpret_cast<int32_t*>(matrix.zero_points.data())[at] =
              is_there ? (zero_points[column * zero_row + bit / 8] >> (bit % 8)) & mask : 0;
        }
        if (is_there) {
          place(codes + (column * blocks + block) * blob, blob, into + block * shape.block_bytes() + lane * 4);
        }
      }
    }
  };
  share_out(panels, threads, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) place_panel(panel);
  });
  return matrix;
}

}  // namespace phirt
