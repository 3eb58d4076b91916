// A matrix that a node of onnxruntime's holds, packed when the session is made, and its product with rows of
// activations, shared out on the session's threads. Its copy in the session's initializers is then no longer read.
#pragma once

#include <onnxruntime_c_api.h>

#include <string>

#include "matrix.h"
#include "ort_api.h"

namespace phirt {

// Rows of activations before they are quantized: float32 [rows][K]; or [rows][2K], and what is meant is their gated
// activation (`KernelSet::gate`). What rounding leaves of them may be multiplied as well.
struct Activations {
  const float* values;
  int64_t rows;
  bool is_gated = false;
  float alpha = 0.0f;
  bool has_rests = false;
};

// The same, quantized: `rests` has no rows where rests are not wanted.
struct Operands {
  QuantizedRows rows, rests;
};

class NodeProduct {
 public:
  // The matrix of inputs `first` (codes), `first` + 1 (scales) and `first` + 2 (zero points, optional), whose sizes
  // are the attributes N, K, bits and block_size with `suffix` behind their names. Throws std::runtime_error.
  NodeProduct(const Api& api, const OrtKernelInfo* info, size_t first, const std::string& suffix);

  const MatrixShape& shape() const { return matrix_.shape; }
  // Of an input that is to be added to each row of a product, float32 [N]; null where there is none. Throws
  // std::runtime_error where it has another size.
  const float* bias(const OrtValue* input) const;
  // Quantized for this matrix, in the calling thread's memory, until the next are. Throws std::bad_alloc, and
  // std::runtime_error where onnxruntime does not share the work out.
  Operands quantize(OrtKernelContext* context, const Activations& activations) const;
  // Such rows by the matrix. Throws std::runtime_error likewise.
  void multiply(OrtKernelContext* context, const Operands& operands, const Addends& added, float* out) const;

 private:
  Api api_;
  const KernelSet& kernels_;
  Matrix matrix_;
};

// What operators that multiply have alike: activations, codes and scales are needed, inputs behind them optional;
// one output, float32.
void describe_product(OrtCustomOp& op);

// Whether a node has this input: an optional one has an empty name, or is none.
bool has_input(const Api& api, const OrtKernelInfo* info, size_t index);

}  // namespace phirt
