// The operator MatMulNBits of the domain "phirt.kernels", for onnxruntime on the CPU: what com.microsoft's
// operator of this name computes with accuracy level 4, from the same inputs and attributes but for g_idx.
#include "matmul_nbits.h"

#include <stdexcept>
#include <vector>

#include "node_product.h"
#include "operator_table.h"

namespace phirt {

namespace {

enum Input : size_t { kActivations, kCodes, kScales, kZeroPoints, kGroups, kBias, kInputs };

class MatMulNBits {
 public:
  MatMulNBits(const OrtApi* ort, const OrtKernelInfo* info) : api_{ort}, product_(api_, info, kCodes, "") {
    if (has_input(api_, info, kGroups)) throw std::runtime_error("g_idx is not supported");
  }

  void compute(OrtKernelContext* context) const {
    const std::vector<const OrtValue*> inputs = api_.inputs(context, kInputs);
    const float* bias = product_.bias(inputs[kBias]);
    const int64_t inner = product_.shape().rows;
    std::vector<int64_t> dims = api_.shape(inputs[kActivations]);
    if (dims.empty() || dims.back() != inner) throw std::runtime_error("A has not K columns");
    const int64_t rows = elements(dims) / inner;
    dims.back() = product_.shape().columns;
    float* out = api_.output(context, 0, dims);
    if (rows == 0) return;
    const Operands operands = product_.quantize(context, {api_.data<float>(inputs[kActivations]), rows});
    product_.multiply(context, operands, {bias, nullptr}, out);
  }

 private:
  Api api_;
  NodeProduct product_;
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
  describe_product(op);
  return op;
}

}  // namespace

const OrtCustomOp* matmul_nbits() {
  static const OrtCustomOp op = describe();
  return &op;
}

}  // namespace phirt
