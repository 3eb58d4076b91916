#include "node_product.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

namespace phirt {

namespace {

// Weights that one piece of work reads with few rows: long enough to stream, short enough to share out evenly.
constexpr int64_t kPieceBytes = 64 << 10;
// Weights for which a thread is started while they are packed.
constexpr int64_t kThreadBytes = 1 << 20;
// Pieces into which a product with many rows is cut at least: threads that are slower do fewer of them.
constexpr int64_t kPieces = 64;
constexpr int64_t kManyRows = 16;
// Of many rows, those that are quantized at a time.
constexpr int64_t kRowsAtATime = 4;

void share_out(const Api& api, OrtKernelContext* context, void (*work)(void*, size_t), int64_t total, int64_t piece,
               void* data) {
  const size_t pieces = static_cast<size_t>((total + piece - 1) / piece);
  if (pieces == 1) return work(data, 0);
  api.check(api.ort->KernelContext_ParallelFor(context, work, pieces, 0, data));
}

MatrixShape shape_of(const Api& api, const OrtKernelInfo* info, const std::string& suffix) {
  const auto size = [&](const char* name) { return api.attribute(info, (name + suffix).c_str(), int64_t{0}); };
  const MatrixShape shape{size("N"), size("K"), size("bits"), size("block_size")};
  if (!shape.is_supported()) throw std::runtime_error("bits or block_size that are not supported" + suffix);
  return shape;
}

struct Quantization {
  const KernelSet* kernels;
  MatrixShape shape;
  Activations from;
  Operands into;
  int64_t piece;  // rows
  std::atomic<bool> lacks_memory{false};

  void quantize(const float* values, int64_t first, int64_t last) const {
    if (from.has_rests) kernels->quantize_twice(shape, values, first, last, into.rows, into.rests);
    else kernels->quantize(shape, values, first, last, into.rows);
  }
};

void quantize_piece(void* data, size_t index) {
  Quantization& work = *static_cast<Quantization*>(data);
  const int64_t inner = work.shape.rows;
  const int64_t first = static_cast<int64_t>(index) * work.piece, last = std::min(first + work.piece, work.from.rows);
  if (!work.from.is_gated) return work.quantize(work.from.values + first * inner, first, last);
  try {
    float* gated = reinterpret_cast<float*>(scratch<Purpose::kGatedRow>(static_cast<size_t>(inner) * sizeof(float)));
    for (int64_t row = first; row < last; ++row) {
      work.kernels->gate(work.from.values + 2 * row * inner, inner, work.from.alpha, gated);
      work.quantize(gated, row, row + 1);
    }
  } catch (const std::bad_alloc&) {  // which may not leave a thread of onnxruntime's
    work.lacks_memory = true;
  }
}

struct Multiplication {
  const KernelSet* kernels;
  const Matrix* matrix;
  Operands operands;
  Addends added;
  float* out;
  int64_t piece;  // panels
};

void multiply_piece(void* data, size_t index) {
  const Multiplication& work = *static_cast<const Multiplication*>(data);
  const int64_t first = static_cast<int64_t>(index) * work.piece;
  const int64_t last = std::min(first + work.piece, work.matrix->shape.panels());
  work.kernels->multiply(*work.matrix, work.operands.rows, first, last, work.added, work.out);
  if (work.operands.rests.rows == 0) return;
  // The matrix's piece is in the cache now.
  work.kernels->multiply(*work.matrix, work.operands.rests, first, last, {nullptr, work.out}, work.out);
}

}  // namespace

void describe_product(OrtCustomOp& op) {
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index < 3 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
}

bool has_input(const Api& api, const OrtKernelInfo* info, size_t index) {
  size_t count = 0, size = 0;
  api.check(api.ort->KernelInfo_GetInputCount(info, &count));
  if (index >= count) return false;
  api.check(api.ort->KernelInfo_GetInputName(info, index, nullptr, &size));
  return size > 1;  // its end is counted
}

NodeProduct::NodeProduct(const Api& api, const OrtKernelInfo* info, size_t first, const std::string& suffix)
    : api_(api), kernels_(best_kernels()) {
  const MatrixShape shape = shape_of(api, info, suffix);
  const auto constant = [&](size_t index, int64_t count, const char* name) -> const OrtValue* {
    if (!has_input(api, info, index)) return nullptr;
    int is_constant = 0;
    const OrtValue* value = nullptr;
    api.check(api.ort->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
    if (is_constant == 0) {
      throw std::runtime_error("weights that are no constants are not supported: " + (name + suffix));
    }
    if (elements(api.shape(value)) != count) {
      throw std::runtime_error(name + suffix + " has not the size that N, K and bits say");
    }
    return value;
  };
  const int64_t blocks = shape.blocks(), blob = shape.block_size * shape.bits / 8;
  const OrtValue* codes = constant(first, shape.columns * blocks * blob, "B");
  const OrtValue* scales = constant(first + 1, shape.columns * blocks, "scales");
  const OrtValue* zeros = constant(first + 2, shape.columns * ((blocks * shape.bits + 7) / 8), "zero_points");
  if (codes == nullptr || scales == nullptr) throw std::runtime_error("B or scales are missing" + suffix);
  const int64_t worthwhile = shape.panels() * shape.panel_bytes() / kThreadBytes + 1;
  const int64_t there = std::max(std::thread::hardware_concurrency(), 1u);
  matrix_ = pack_matrix(shape, api.data<uint8_t>(codes), api.data<float>(scales),
                        zeros != nullptr ? api.data<uint8_t>(zeros) : nullptr,
                        static_cast<int>(std::min(worthwhile, there)));
}

const float* NodeProduct::bias(const OrtValue* input) const {
  if (input == nullptr) return nullptr;
  if (elements(api_.shape(input)) != shape().columns) throw std::runtime_error("bias has not N elements");
  return api_.data<float>(input);
}

Operands NodeProduct::quantize(OrtKernelContext* context, const Activations& activations) const {
  const int64_t rows = activations.rows, blocks = shape().blocks();
  const size_t codes = static_cast<size_t>(blocks * rows * shape().block_size);
  const size_t scales = static_cast<size_t>(blocks * rows) * sizeof(float);
  constexpr size_t kEnd = kAlignment - 1;
  const size_t size = (codes + 2 * scales + kEnd) & ~kEnd;  // rests begin on a boundary, too
  uint8_t* memory = scratch<Purpose::kQuantizedRows>(activations.has_rests ? 2 * size : size);
  const auto placed = [&](uint8_t* at) {
    return QuantizedRows{rows, reinterpret_cast<int8_t*>(at), reinterpret_cast<float*>(at + codes),
                         reinterpret_cast<int32_t*>(at + codes + scales)};
  };
  Operands operands{placed(memory), {}};
  if (activations.has_rests) operands.rests = placed(memory + size);
  // A few are one thread's, but where each takes longer than another thread takes to begin.
  const int64_t few = activations.is_gated ? 1 : rows;
  Quantization work{&kernels_, shape(), activations, operands, rows < kManyRows ? few : kRowsAtATime, {}};
  share_out(api_, context, quantize_piece, rows, work.piece, &work);
  if (work.lacks_memory) throw std::bad_alloc();
  return operands;
}

void NodeProduct::multiply(OrtKernelContext* context, const Operands& operands, const Addends& added,
                           float* out) const {
  int64_t piece = std::max<int64_t>(kPieceBytes / shape().panel_bytes(), 1);
  if (operands.rows.rows >= kManyRows) piece = std::min(std::max<int64_t>(shape().panels() / kPieces, 1), piece * 4);
  // Panels are computed in pairs.
  Multiplication work{&kernels_, &matrix_, operands, added, out, (piece + 1) / 2 * 2};
  share_out(api_, context, multiply_piece, shape().panels(), work.piece, &work);
}

}  // namespace phirt
