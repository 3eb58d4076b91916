// Compares a set of kernels with the plain one, bit by bit, on matrices drawn at random:
//     same_bits SET CASES SEED
// Ends with 0 where all are equal, 1 at the first that is not, 3 where this CPU lacks the set.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "matrix.h"

#if defined(PHIRT_TILE_UNIT)
#include <sys/syscall.h>
#include <unistd.h>

#include "tile_unit.h"
#endif

namespace phirt {

extern const KernelSet kGeneric;
#if defined(PHIRT_TILE_UNIT)
extern const KernelSet kAmxInt8;
#endif

namespace {

const KernelSet* set_named(const char* name) {
#if defined(PHIRT_TILE_UNIT)
  if (std::strcmp(name, "amx-int8") == 0) {
    // Where there is a real unit, it is the one that is tested.
    syscall(SYS_arch_prctl, 0x1023, 18);
    compute_tile_instructions();
    return &kAmxInt8;
  }
  return nullptr;
#else
  return kernels_named(name);
#endif
}

class Draw {
 public:
  explicit Draw(uint32_t seed) : source_(seed) {}
  int64_t up_to(int64_t last) { return static_cast<int64_t>(source_() % static_cast<uint32_t>(last + 1)); }
  int64_t one_of(std::initializer_list<int64_t> values) {
    return values.begin()[up_to(static_cast<int64_t>(values.size()) - 1)];
  }
  float value() { return static_cast<float>(static_cast<int64_t>(source_()) - (int64_t{1} << 31)) * 0x1p-30f; }

 private:
  std::mt19937 source_;
};

// Quantized rows in memory that held something else, as what a thread keeps does.
struct Rows {
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  QuantizedRows rows;

  Rows(const MatrixShape& shape, int64_t count)
      : codes(static_cast<size_t>(shape.blocks() * count * shape.block_size), 0x5a),
        scales(static_cast<size_t>(shape.blocks() * count), 90.0f),
        sums(scales.size(), 0x5a5a5a),
        rows{count, codes.data(), scales.data(), sums.data()} {}

  bool operator==(const Rows& other) const {
    return codes == other.codes && sums == other.sums &&
           std::memcmp(scales.data(), other.scales.data(), scales.size() * sizeof(float)) == 0;
  }
};

struct Activations {
  Rows once, twice, rests;

  Activations(const KernelSet& set, const MatrixShape& shape, const std::vector<float>& values, int64_t count)
      : once(shape, count), twice(shape, count), rests(shape, count) {
    set.quantize(shape, values.data(), 0, count, once.rows);
    set.quantize_twice(shape, values.data(), 0, count, twice.rows, rests.rows);
  }

  bool operator==(const Activations& other) const {
    return once == other.once && twice == other.twice && rests == other.rests && once == twice;
  }
};

// Rows of activations among which are blocks of zeros and single values that stand out.
std::vector<float> drawn_activations(Draw& draw, const MatrixShape& shape, int64_t rows) {
  std::vector<float> values(static_cast<size_t>(rows * shape.rows));
  for (float& value : values) value = draw.value();
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t begin = draw.up_to(shape.rows - 1);
    float* row = values.data() + i * shape.rows;
    if (draw.up_to(3) == 0) std::fill(row + begin, row + std::min(begin + 2 * shape.block_size, shape.rows), 0.0f);
    if (draw.up_to(3) == 0) row[begin] = draw.value() * 1000.0f;
    if (draw.up_to(7) == 0) std::fill(row, row + shape.rows, 2.0f);  // the greatest sums
  }
  return values;
}

Matrix drawn_matrix(Draw& draw, const MatrixShape& shape) {
  const int64_t entries = shape.columns * shape.blocks();
  std::vector<uint8_t> codes(static_cast<size_t>(entries * shape.block_size * shape.bits / 8));
  const int64_t fixed = draw.one_of({-1, -1, -1, 0, 255});
  for (uint8_t& code : codes) code = static_cast<uint8_t>(fixed >= 0 ? fixed : draw.up_to(255));
  std::vector<float> scales(static_cast<size_t>(entries));
  const bool is_half = draw.up_to(1) == 0;
  for (float& scale : scales) {
    scale = is_half ? static_cast<float>(draw.up_to(2047) - 1024) * 0x1p-14f : draw.value() * 0x1p-4f;
  }
  std::vector<uint8_t> zero_points(static_cast<size_t>(shape.columns * ((shape.blocks() * shape.bits + 7) / 8)));
  for (uint8_t& byte : zero_points) byte = static_cast<uint8_t>(draw.up_to(255));
  const bool has_zero_points = draw.up_to(1) == 0;
  return pack_matrix(shape, codes.data(), scales.data(), has_zero_points ? zero_points.data() : nullptr, 1);
}

// Also what is not to be written is compared: columns of other panels keep what was there. Sums are added in place,
// and then those of rests.
std::vector<float> multiplied(const KernelSet& set, const Matrix& matrix, const Activations& activations, int64_t first,
                              int64_t last, const float* bias, const std::vector<float>& sums) {
  const QuantizedRows& rows = activations.once.rows;
  std::vector<float> out(static_cast<size_t>(rows.rows * matrix.shape.columns), 12345.0f);
  if (!sums.empty()) out = sums;
  set.multiply(matrix, rows, first, last, {bias, sums.empty() ? nullptr : out.data()}, out.data());
  set.multiply(matrix, activations.rests.rows, first, last, {nullptr, out.data()}, out.data());
  return out;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

MatrixShape drawn_shape(Draw& draw) {
  MatrixShape shape{};
  shape.bits = draw.one_of({2, 4, 8});
  shape.block_size = draw.one_of({16, 32, 64, 128, 256});
  shape.rows = 1 + draw.up_to(draw.one_of({15, 63, 300, 600}));
  shape.columns = 1 + draw.up_to(draw.one_of({15, 40, 70}));
  return shape;
}

int64_t drawn_rows(Draw& draw) {
  const int64_t some = 1 + draw.up_to(9), more = 1 + draw.up_to(39), most = 128 + draw.up_to(20);
  return draw.one_of({1, 2, 3, some, 8, 16, 17, more, 32, most});
}

bool is_same(const KernelSet& set, Draw& draw, const MatrixShape& shape, int64_t rows) {
  const int64_t first = draw.up_to(shape.panels() - 1), last = first + 1 + draw.up_to(shape.panels() - first - 1);
  const Matrix matrix = drawn_matrix(draw, shape);
  const std::vector<float> values = drawn_activations(draw, shape, rows);
  std::vector<float> bias(static_cast<size_t>(shape.columns));
  for (float& value : bias) value = draw.value();
  const float* with = draw.up_to(1) == 0 ? bias.data() : nullptr;
  std::vector<float> sums(static_cast<size_t>(draw.up_to(2) == 0 ? rows * shape.columns : 0));
  for (float& value : sums) value = draw.value();

  const Activations expected(kGeneric, shape, values, rows), found(set, shape, values, rows);
  const bool equal = expected == found && same(multiplied(kGeneric, matrix, expected, first, last, with, sums),
                                               multiplied(set, matrix, found, first, last, with, sums));
  if (!equal) {
    std::printf("%s differs: N %lld, K %lld, %lld bits, block %lld, %lld rows, panels %lld to %lld%s%s%s%s\n", set.name,
                static_cast<long long>(shape.columns), static_cast<long long>(shape.rows),
                static_cast<long long>(shape.bits), static_cast<long long>(shape.block_size),
                static_cast<long long>(rows), static_cast<long long>(first), static_cast<long long>(last),
                with != nullptr ? ", bias" : "", sums.empty() ? "" : ", sums",
                matrix.half_scales ? ", half scales" : "", matrix.zero_points.data() != nullptr ? ", zero points" : "");
  }
  return equal;
}

// Many rows at every block size: whole tiles, pairs of them, and what is left beside either; several blocks, the
// last one not full.
bool are_many_rows_same(const KernelSet& set, Draw& draw) {
  for (int64_t block_size : {16, 32, 64, 128, 256}) {
    for (int64_t rows : {15, 16, 17, 31, 32, 33, 48, 64, 100, 128, 129, 145, 161, 300}) {
      for (int64_t bits : {4, 8}) {
        const MatrixShape shape{70, 2 * block_size + 9, bits, block_size};
        if (!is_same(set, draw, shape, rows)) return false;
      }
    }
  }
  return true;
}

bool are_gates_same(const KernelSet& set, Draw& draw) {
  for (int64_t count : {1, 7, 16, 33, 1000}) {
    std::vector<float> both(static_cast<size_t>(2 * count));
    for (float& value : both) value = draw.value() * static_cast<float>(draw.one_of({1, 8, 60, 100}));
    both[0] = static_cast<float>(draw.one_of({0, 1})) * std::numeric_limits<float>::infinity();  // or no number
    std::vector<float> expected(static_cast<size_t>(count)), found(expected);
    kGeneric.gate(both.data(), count, 1.702f, expected.data());
    set.gate(both.data(), count, 1.702f, found.data());
    for (int64_t i = 0; i < count; ++i) {
      const float one = expected[static_cast<size_t>(i)], other = found[static_cast<size_t>(i)];
      if (std::isnan(one) ? !std::isnan(other) : std::memcmp(&one, &other, sizeof one) != 0) {
        std::printf("%s gates otherwise: %a and %a\n", set.name, static_cast<double>(one), static_cast<double>(other));
        return false;
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace phirt

int main(int count, char** arguments) {
  if (count != 4) {
    std::puts("same_bits SET CASES SEED");
    return 2;
  }
  const phirt::KernelSet* set = phirt::set_named(arguments[1]);
  if (set == nullptr) {
    std::printf("this CPU has no %s\n", arguments[1]);
    return 3;
  }
  phirt::Draw draw(static_cast<uint32_t>(std::atol(arguments[3])));
  for (long i = std::atol(arguments[2]); i > 0; --i) {
    const phirt::MatrixShape shape = phirt::drawn_shape(draw);
    if (!phirt::is_same(*set, draw, shape, phirt::drawn_rows(draw))) return 1;
  }
  if (!phirt::are_many_rows_same(*set, draw) || !phirt::are_gates_same(*set, draw)) return 1;
#if defined(PHIRT_TILE_UNIT)
  std::printf("%ld tile instructions computed\n", tile_instructions());
#endif
  return 0;
}
