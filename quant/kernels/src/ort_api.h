// onnxruntime's C interface with errors as exceptions, as far as operators use it.
#pragma once

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "matrix.h"

namespace phirt {

struct Api {
  const OrtApi* ort;

  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = ort->GetErrorMessage(status);
    ort->ReleaseStatus(status);
    throw std::runtime_error(message);
  }
  std::vector<int64_t> shape(const OrtValue* value) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort->GetTensorTypeAndShape(value, &info));
    size_t count = 0;
    OrtStatus* status = ort->GetDimensionsCount(info, &count);
    std::vector<int64_t> dims(count);
    if (status == nullptr) status = ort->GetDimensions(info, dims.data(), count);
    ort->ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    return dims;
  }
  ONNXTensorElementDataType type(const OrtValue* value) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort->GetTensorTypeAndShape(value, &info));
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    OrtStatus* status = ort->GetTensorElementType(info, &type);
    ort->ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    return type;
  }
  void* memory(OrtValue* value) const {
    void* memory = nullptr;
    check(ort->GetTensorMutableData(value, &memory));
    return memory;
  }
  template <typename T>
  const T* data(const OrtValue* value) const {
    return static_cast<const T*>(memory(const_cast<OrtValue*>(value)));
  }
  // Of the call; null where an optional one is left out.
  std::vector<const OrtValue*> inputs(OrtKernelContext* context, size_t most) const {
    std::vector<const OrtValue*> found(most);
    size_t count = 0;
    check(ort->KernelContext_GetInputCount(context, &count));
    for (size_t i = 0; i < std::min(count, most); ++i) check(ort->KernelContext_GetInput(context, i, &found[i]));
    return found;
  }
  float* output(OrtKernelContext* context, size_t index, const std::vector<int64_t>& dims) const {
    OrtValue* value = nullptr;
    check(ort->KernelContext_GetOutput(context, index, dims.data(), dims.size(), &value));
    return static_cast<float*>(memory(value));
  }
  // An attribute, or what is taken where the node has none.
  int64_t attribute(const OrtKernelInfo* info, const char* name, int64_t otherwise) const {
    int64_t value = 0;
    return is_there(ort->KernelInfoGetAttribute_int64(info, name, &value)) ? value : otherwise;
  }
  float attribute(const OrtKernelInfo* info, const char* name, float otherwise) const {
    float value = 0.0f;
    return is_there(ort->KernelInfoGetAttribute_float(info, name, &value)) ? value : otherwise;
  }

 private:
  bool is_there(OrtStatus* status) const {
    if (status == nullptr) return true;
    ort->ReleaseStatus(status);
    return false;
  }
};

inline int64_t elements(const std::vector<int64_t>& dims) {
  int64_t count = 1;
  for (int64_t dim : dims) count *= dim;
  return count;
}

// What memory of a thread is for, as it may be used for several things at the same time.
enum class Purpose { kQuantizedRows, kGatedRow, kReduced, kPieces, kTile };

// Memory of a thread that grows and stays, for what is computed between two calls.
template <Purpose kPurpose>
uint8_t* scratch(size_t size) {
  thread_local AlignedBytes memory;
  thread_local size_t held = 0;
  if (size > held) {
    memory = AlignedBytes();
    held = 0;
    memory = AlignedBytes(size);
    held = size;
  }
  return memory.data();
}

}  // namespace phirt
