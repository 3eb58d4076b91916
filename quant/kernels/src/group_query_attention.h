// The operator GroupQueryAttention, as onnxruntime registers operators.
#pragma once

#include <onnxruntime_c_api.h>

namespace phirt {

// `ort` must stay for as long as the operator.
const OrtCustomOp* group_query_attention(const OrtApi* ort);

}  // namespace phirt
