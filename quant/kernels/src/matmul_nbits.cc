// The operator MatMulNBits of the domain "phirt.kernels", for onnxruntime on the CPU: what com.microsoft's
// operator of this name computes with accuracy level 4, from the same inputs and attributes but for g_idx.
//
// Knows onnxruntime's C interface. Weights are constants, and packed when a session is made; their
// copy in the session's initializers is then no longer read. Work is shared out on the session's own
// threads.
#include "matmul_nbits.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "matrix.h"
#include "operator_table.h"
#include "ort_api.h"

namespace phirt {

namespace {

enum Input : size_t { kActivations, kCodes, kScales, kZeroPoints, kGroups, kBias, kInputs };

// Weights that one piece of work reads with few rows: long enough to stream, short enough to share out evenly.
constexpr int64_t kPieceBytes = 64 << 10;
// Weights for which a thread is started while they are packed.
constexpr int64_t kThreadBytes = 1 << 20;
// Pieces into which a product with many rows is cut at least: threads that are slower do fewer of them.
constexpr int64_t kPieces = 64;
constexpr int64_t kManyRows = 16;

class MatMulNBits {
 public:
  MatMulNBits(const OrtApi* ort, const OrtKernelInfo* info) : api_{ort}, kernels_(best_kernels()) {
    const auto size = [&](const char* name) { return api_.attribute(info, name, int64_t{0}); };
    shape_ = {size("N"), size("K"), size("bits"), size("block_size")};
    if (!shape_.is_supported()) throw std::runtime_error("MatMulNBits: bits or block_size that are not supported");
    const OrtValue* constants[kInputs] = {};
    size_t count = 0;
    api_.check(ort->KernelInfo_GetInputCount(info, &count));
    if (count > kGroups && input_name(info, kGroups) != "") {
      throw std::runtime_error("MatMulNBits: g_idx is not supported");
    }
    for (size_t i = kCodes; i <= kZeroPoints && i < count; ++i) {
      int is_constant = 0;
      api_.check(ort->KernelInfoGetConstantInput_tensor(info, i, &is_constant, &constants[i]));
      if (is_constant == 0 && input_name(info, i) != "") {
        throw std::runtime_error("MatMulNBits: weights that are no constants are not supported");
      }
    }
    pack(constants);
  }

  void compute(OrtKernelContext* context) const {
    const OrtApi* ort = api_.ort;
    const OrtValue* inputs[kInputs] = {};
    size_t count = 0;
    api_.check(ort->KernelContext_GetInputCount(context, &count));
    for (size_t i = 0; i < std::min<size_t>(count, kInputs); ++i) {
      api_.check(ort->KernelContext_GetInput(context, i, &inputs[i]));
    }
    if (inputs[kActivations] == nullptr) throw std::runtime_error("MatMulNBits: A is missing");
    if (inputs[kBias] != nullptr) require(inputs[kBias], shape_.columns, "bias");
    std::vector<int64_t> dims = api_.shape(inputs[kActivations]);
    if (dims.empty() || dims.back() != shape_.rows) throw std::runtime_error("MatMulNBits: A has not K columns");
    const int64_t rows = elements(dims) / shape_.rows;
    dims.back() = shape_.columns;
    OrtValue* output = nullptr;
    api_.check(ort->KernelContext_GetOutput(context, 0, dims.data(), dims.size(), &output));
    if (rows == 0) return;
    const float* bias = inputs[kBias] != nullptr ? api_.data<float>(inputs[kBias]) : nullptr;
    multiply(context, api_.data<float>(inputs[kActivations]), rows, bias, static_cast<float*>(api_.memory(output)));
  }

 private:
  std::string input_name(const OrtKernelInfo* info, size_t index) const {
    size_t size = 0;
    api_.check(api_.ort->KernelInfo_GetInputName(info, index, nullptr, &size));
    std::string name(size, '\0');
    api_.check(api_.ort->KernelInfo_GetInputName(info, index, name.data(), &size));
    return name.c_str();
  }

  void pack(const OrtValue* const* inputs) {
    const int64_t blob = shape_.block_size * shape_.bits / 8, blocks = shape_.blocks();
    const int64_t zero_row = (blocks * shape_.bits + 7) / 8;
    require(inputs[kCodes], shape_.columns * blocks * blob, "B");
    require(inputs[kScales], shape_.columns * blocks, "scales");
    const uint8_t* zero_points = nullptr;
    if (inputs[kZeroPoints] != nullptr) {
      require(inputs[kZeroPoints], shape_.columns * zero_row, "zero_points");
      zero_points = api_.data<uint8_t>(inputs[kZeroPoints]);
    }
    const int64_t worthwhile = shape_.panels() * shape_.panel_bytes() / kThreadBytes + 1;
    const int64_t there = std::max(std::thread::hardware_concurrency(), 1u);
    const int threads = static_cast<int>(std::min(worthwhile, there));
    matrix_ = pack_matrix(shape_, api_.data<uint8_t>(inputs[kCodes]), api_.data<float>(inputs[kScales]), zero_points,
                          threads);
  }

  void require(const OrtValue* value, int64_t count, const char* name) const {
    if (value == nullptr || elements(api_.shape(value)) != count) {
      throw std::runtime_error(std::string("MatMulNBits: ") + name + " has not the size that N, K and bits say");
    }
  }

  struct Product {
    const MatMulNBits* kernel;
    QuantizedRows rows;
    const float* values;
    const float* bias;
    float* out;
    int64_t piece;  // panels, or rows while they are quantized
  };

  void multiply(OrtKernelContext* context, const float* values, int64_t rows, const float* bias, float* out) const {
    const int64_t blocks = shape_.blocks();
    const size_t codes = static_cast<size_t>(blocks * rows * shape_.block_size);
    const size_t scales = static_cast<size_t>(blocks * rows) * sizeof(float);
    uint8_t* memory = scratch<Purpose::kQuantizedRows>(codes + 2 * scales);
    Product product{this, {}, values, bias, out, 0};
    product.rows.rows = rows;
    product.rows.codes = reinterpret_cast<int8_t*>(memory);
    product.rows.scales = reinterpret_cast<float*>(memory + codes);
    product.rows.sums = reinterpret_cast<int32_t*>(memory + codes + scales);
    product.piece = rows < kManyRows ? rows : 4;
    share_out(context, quantize_piece, rows, &product);
    int64_t piece = std::max<int64_t>(kPieceBytes / shape_.panel_bytes(), 1);
    if (rows >= kManyRows) piece = std::min(std::max<int64_t>(shape_.panels() / kPieces, 1), piece * 4);
    product.piece = (piece + 1) / 2 * 2;  // panels are computed in pairs
    share_out(context, multiply_piece, shape_.panels(), &product);
  }

  void share_out(OrtKernelContext* context, void (*work)(void*, size_t), int64_t total, Product* product) const {
    const size_t pieces = static_cast<size_t>((total + product->piece - 1) / product->piece);
    if (pieces == 1) return work(product, 0);
    api_.check(api_.ort->KernelContext_ParallelFor(context, work, pieces, 0, product));
  }

  static void quantize_piece(void* data, size_t index) {
    const Product& product = *static_cast<Product*>(data);
    const int64_t first = static_cast<int64_t>(index) * product.piece;
    const int64_t last = std::min(first + product.piece, product.rows.rows);
    product.kernel->kernels_.quantize(product.kernel->shape_, product.values, first, last, product.rows);
  }

  static void multiply_piece(void* data, size_t index) {
    const Product& product = *static_cast<Product*>(data);
    const int64_t first = static_cast<int64_t>(index) * product.piece;
    const int64_t last = std::min(first + product.piece, product.kernel->shape_.panels());
    product.kernel->kernels_.multiply(product.kernel->matrix_, product.rows, first, last, product.bias, product.out);
  }

  Api api_;
  const KernelSet& kernels_;
  MatrixShape shape_{};
  Matrix matrix_;
};

ONNXTensorElementDataType input_type(const OrtCustomOp*, size_t index) {
  switch (index) {
    case kCodes:
    case kZeroPoints:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case kGroups:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

OrtCustomOp describe() {
  OrtCustomOp op{};
  fill_table<MatMulNBits>(op);
  op.GetName = [](const OrtCustomOp*) { return "MatMulNBits"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  op.GetInputType = input_type;
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index >= kZeroPoints ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  return op;
}

}  // namespace

const OrtCustomOp* matmul_nbits() {
  static const OrtCustomOp op = describe();
  return &op;
}

}  // namespace phirt
