// Products with one instruction set, for tests:
//
//     products NAME < cases > results
//
// A case is thirteen int64: N, K, bits, block_size, rows, whether there are zero points, a bias and sums to be added,
// whether activations are gated (with alpha 1) and whether what rounding leaves of them is multiplied too, how many
// bytes the activations and scales lie off a boundary of 64 (a multiple of 4), how many the codes and zero points do,
// and how many threads share the work; then the codes, the scales, the zero points and the bias if there are any, and
// the activations, as MatMulNBits has them, twice as many if they are gated; then the sums, [rows][N], if there are
// any. A result is float32 [rows][N]. Every array lies in memory of its exact size, so that a sanitizer sees what is
// read or written beside it. Ends with status 3 where this CPU lacks the instruction set; without a NAME the best
// one's is written.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "matrix.h"

namespace {

// An array that ends where its memory ends.
template <typename T>
class Placed {
 public:
  Placed(int64_t count, int64_t offset)
      : memory_(static_cast<size_t>(count) * sizeof(T) + static_cast<size_t>(offset)),
        data_(memory_.data() == nullptr ? nullptr : reinterpret_cast<T*>(memory_.data() + offset)) {}
  T* data() const { return data_; }

 private:
  std::vector<uint8_t> memory_;
  T* data_;
};

bool read(void* into, size_t size) { return size == 0 || std::fread(into, size, 1, stdin) == 1; }

template <typename T>
std::unique_ptr<Placed<T>> read_array(int64_t count, int64_t offset) {
  auto placed = std::make_unique<Placed<T>>(count, offset);
  if (!read(placed->data(), static_cast<size_t>(count) * sizeof(T))) std::exit(4);
  return placed;
}

struct Case {
  int64_t columns, inner, bits, block_size, rows, has_zero_points, has_bias, has_sums, is_gated, has_rests;
  int64_t float_offset, byte_offset, threads;
};

// Memory for quantized rows.
struct Rows {
  Placed<int8_t> codes;
  Placed<float> scales;
  Placed<int32_t> sums;
  phirt::QuantizedRows rows;

  Rows(const phirt::MatrixShape& shape, int64_t count)
      : codes(shape.blocks() * count * shape.block_size, 0),
        scales(shape.blocks() * count, 0),
        sums(shape.blocks() * count, 0),
        rows{count, codes.data(), scales.data(), sums.data()} {
    // Something else is in the memory that a thread keeps.
    std::fill_n(codes.data(), shape.blocks() * count * shape.block_size, int8_t{0x5a});
    std::fill_n(scales.data(), shape.blocks() * count, 90.0f);
    std::fill_n(sums.data(), shape.blocks() * count, 0x5a5a5a);
  }
};

// Calls work(first, last) on as many pieces of [0, total) as there are threads, each on a thread.
template <typename Work>
void share_out(int64_t total, int64_t threads, const Work& work) {
  std::vector<std::thread> others;
  for (int64_t i = 0; i < threads; ++i) {
    const int64_t first = total * i / threads, last = total * (i + 1) / threads;
    if (first < last) others.emplace_back([&work, first, last] { work(first, last); });
  }
  for (std::thread& other : others) other.join();
}

void multiply(const phirt::KernelSet& kernels, const Case& given) {
  const phirt::MatrixShape shape{given.columns, given.inner, given.bits, given.block_size};
  const int64_t blocks = shape.blocks(), rows = given.rows;
  const int64_t zero_row = (blocks * given.bits + 7) / 8;
  const auto codes = read_array<uint8_t>(given.columns * blocks * given.block_size * given.bits / 8, given.byte_offset);
  const auto scales = read_array<float>(given.columns * blocks, given.float_offset);
  const auto zero_points = read_array<uint8_t>(given.has_zero_points ? given.columns * zero_row : 0, given.byte_offset);
  const auto bias = read_array<float>(given.has_bias ? given.columns : 0, given.float_offset);
  const int64_t width = given.inner * (given.is_gated ? 2 : 1);
  auto values = read_array<float>(rows * width, given.float_offset);
  const auto sums = read_array<float>(given.has_sums ? rows * given.columns : 0, given.float_offset);
  if (given.is_gated) {
    auto gated = std::make_unique<Placed<float>>(rows * given.inner, given.float_offset);
    for (int64_t row = 0; row < rows; ++row) {
      kernels.gate(values->data() + row * width, given.inner, 1.0f, gated->data() + row * given.inner);
    }
    values = std::move(gated);
  }

  const phirt::Matrix matrix =
      phirt::pack_matrix(shape, codes->data(), scales->data(), given.has_zero_points ? zero_points->data() : nullptr,
                         static_cast<int>(given.threads));
  const Rows quantized(shape, rows), rests(shape, given.has_rests ? rows : 0);
  const Placed<float> fresh(given.has_sums ? 0 : rows * given.columns, given.float_offset);
  float* out = given.has_sums ? sums->data() : fresh.data();  // sums may be added where they are
  share_out(rows, given.threads, [&](int64_t first, int64_t last) {
    const float* from = values->data() + first * given.inner;
    if (given.has_rests) kernels.quantize_twice(shape, from, first, last, quantized.rows, rests.rows);
    else kernels.quantize(shape, from, first, last, quantized.rows);
  });
  share_out(shape.panels(), given.threads, [&](int64_t first, int64_t last) {
    const phirt::Addends added{given.has_bias ? bias->data() : nullptr, given.has_sums ? out : nullptr};
    kernels.multiply(matrix, quantized.rows, first, last, added, out);
    if (given.has_rests) kernels.multiply(matrix, rests.rows, first, last, {nullptr, out}, out);
  });
  std::fwrite(out, sizeof(float), static_cast<size_t>(rows * given.columns), stdout);
}

}  // namespace

int main(int count, char** words) {
  if (count < 2) {
    std::puts(phirt::best_kernels().name);
    return 0;
  }
  const phirt::KernelSet* kernels = phirt::kernels_named(words[1]);
  if (kernels == nullptr) return 3;
  Case given{};
  while (read(&given, sizeof given)) multiply(*kernels, given);
  return 0;
}
