// The operator Projection of the domain "phirt.kernels": a product of quantized weights as MatMulNBits has it, with
// what stands around it in a layer. In between there are no tensors: sums are added where they are stored, an
// activation is gated row by row.
//
// - Before: with an attribute gate_alpha > 0, A is [..., 2K] and what is multiplied is its gated activation,
//   a * sigmoid(gate_alpha * a) * b of its halves a and b. With inputs_twice 1, what rounding to int8 leaves of the
//   activations is rounded and multiplied as well, except by adapters' matrices.
// - Beside: another matrix of the base's sizes whose product is added, `low`: weights of 6 bits are kept as 4 and 2.
// - Behind: up to two LoRA adapters (arXiv 2106.09685), each a pair of matrices down [r, K] and up [N, r], of which
//   one at most is active. With `inactive` true, none; else with `first` true, or none given, the first, else the
//   second. An adapter's scale is part of its matrices.
//
// out = product + bias + low + up(down(A)), added in this order; products of rests directly behind their own. Without
// rests, sums are rounded as the nodes that this stands for round them. Each matrix is three inputs, and has its
// sizes in the attributes N, K, bits and block_size with its name behind them: none for the base, _low, _down0, _up0,
// _down1, _up1.
#include "projection.h"

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "node_product.h"
#include "operator_table.h"

namespace phirt {

namespace {

constexpr int kAdapters = 2;
constexpr size_t kMatrixInputs = 3;
enum Input : size_t {
  kActivations, kCodes, kScales, kZeroPoints, kBias, kLow, kInactive = kLow + kMatrixInputs, kFirst, kPairs
};
constexpr size_t kPairInputs = 2 * kMatrixInputs, kInputs = kPairs + kAdapters * kPairInputs;

class Projection {
 public:
  Projection(const OrtApi* ort, const OrtKernelInfo* info)
      : api_{ort}, alpha_(api_.attribute(info, "gate_alpha", 0.0f)),
        has_rests_(api_.attribute(info, "inputs_twice", int64_t{0}) == 1), base_(api_, info, kCodes, "") {
    if (has_input(api_, info, kLow)) low_.emplace(api_, info, kLow, "_low");
    const MatrixShape& base = base_.shape();
    if (low_ && (low_->shape().rows != base.rows || low_->shape().columns != base.columns)) {
      throw std::runtime_error("the sizes of low do not fit");
    }
    for (int i = 0; i < kAdapters; ++i) {
      const size_t down = kPairs + static_cast<size_t>(i) * kPairInputs;
      if (!has_input(api_, info, down)) break;
      const std::string number = std::to_string(i);
      Pair pair{{api_, info, down, "_down" + number}, {api_, info, down + kMatrixInputs, "_up" + number}};
      const MatrixShape &of_down = pair.down.shape(), &of_up = pair.up.shape();
      if (of_down.rows != base.rows || of_down.columns != of_up.rows || of_up.columns != base.columns) {
        throw std::runtime_error("an adapter's sizes do not fit");
      }
      adapters_.push_back(std::move(pair));
    }
  }

  void compute(OrtKernelContext* context) const {
    const std::vector<const OrtValue*> inputs = api_.inputs(context, kInputs);
    const float* bias = base_.bias(inputs[kBias]);
    const bool is_gated = alpha_ > 0.0f;
    const int64_t width = base_.shape().rows * (is_gated ? 2 : 1);
    std::vector<int64_t> dims = api_.shape(inputs[kActivations]);
    if (dims.empty() || dims.back() != width) throw std::runtime_error("A has not as many columns as K says");
    // The nodes that this stands for add up a batch.
    if (has_rests_ && (dims.size() != 3 || dims[0] != 1)) throw std::runtime_error("A is no [1, rows, columns]");
    const Activations given{api_.data<float>(inputs[kActivations]), elements(dims) / width, is_gated, alpha_,
                            has_rests_};
    dims.back() = base_.shape().columns;
    float* out = api_.output(context, 0, dims);
    if (given.rows == 0) return;
    Blocks blocks(context, given);
    base_.multiply(context, blocks.of(base_), {bias, nullptr}, out);
    const Addends already{nullptr, out};
    if (low_) low_->multiply(context, blocks.of(*low_), already, out);
    if (const Pair* pair = active(inputs)) {
      float* reduced = reduced_rows(given.rows, pair->down.shape().columns);
      pair->down.multiply(context, blocks.once(pair->down), {}, reduced);
      // In the memory of the blocks, which are not asked for again.
      pair->up.multiply(context, pair->up.quantize(context, {reduced, given.rows}), already, out);
    }
  }

 private:
  struct Pair {
    NodeProduct down, up;
  };

  // Activations in blocks: quantized again where those of the next matrix have another size.
  class Blocks {
   public:
    Blocks(OrtKernelContext* context, const Activations& given) : context_(context), given_(given) {}
    const Operands& of(const NodeProduct& product) {
      const int64_t wanted = product.shape().block_size;
      if (size_ != wanted) operands_ = product.quantize(context_, given_);
      size_ = wanted;
      return operands_;
    }
    // Without rests, from here on.
    Operands once(const NodeProduct& product) {
      given_.has_rests = false;
      return {of(product).rows, {}};
    }

   private:
    OrtKernelContext* context_;
    Activations given_;
    int64_t size_ = 0;
    Operands operands_;
  };

  const Pair* active(const std::vector<const OrtValue*>& inputs) const {
    if (adapters_.empty() || is_true(inputs[kInactive], false)) return nullptr;
    if (is_true(inputs[kFirst], true)) return &adapters_.front();
    return adapters_.size() > 1 ? &adapters_.back() : nullptr;
  }

  bool is_true(const OrtValue* value, bool otherwise) const {
    if (value == nullptr) return otherwise;
    if (elements(api_.shape(value)) != 1) throw std::runtime_error("a condition is no single value");
    return *api_.data<bool>(value);
  }

  static float* reduced_rows(int64_t rows, int64_t rank) {
    return reinterpret_cast<float*>(scratch<Purpose::kReduced>(static_cast<size_t>(rows * rank) * sizeof(float)));
  }

  Api api_;
  float alpha_;
  bool has_rests_;
  NodeProduct base_;
  std::optional<NodeProduct> low_;
  std::vector<Pair> adapters_;
};

ONNXTensorElementDataType input_type(const OrtCustomOp*, size_t index) {
  if (index == kInactive || index == kFirst) return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  if (index == kActivations || index == kBias) return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  const size_t first = index >= kPairs ? static_cast<size_t>(kPairs) : index >= kLow ? kLow : kCodes;
  const bool is_scales = (index - first) % kMatrixInputs == 1;
  return is_scales ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

OrtCustomOp describe() {
  OrtCustomOp op{};
  fill_table<Projection>(op);
  op.GetName = [](const OrtCustomOp*) { return "Projection"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  op.GetInputType = input_type;
  describe_product(op);
  return op;
}

}  // namespace

const OrtCustomOp* projection() {
  static const OrtCustomOp op = describe();
  return &op;
}

}  // namespace phirt
