// The operator Projection, as onnxruntime registers operators.
#pragma once

#include <onnxruntime_c_api.h>

namespace phirt {

const OrtCustomOp* projection();

}  // namespace phirt
