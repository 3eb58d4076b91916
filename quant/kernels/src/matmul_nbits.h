// The operator MatMulNBits, as onnxruntime registers operators.
#pragma once

#include <onnxruntime_c_api.h>

namespace phirt {

const OrtCustomOp* matmul_nbits();

}  // namespace phirt
