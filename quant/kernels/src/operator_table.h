// What onnxruntime asks of every operator here, in the order of its table; names, inputs and outputs are each
// operator's own. A kernel is a class K made of (const OrtApi*, const OrtKernelInfo*) that has
// compute(OrtKernelContext*); what it throws becomes a status.
#pragma once

#include <onnxruntime_c_api.h>

#include <exception>

namespace phirt {

// A kernel with the table of functions that it was made with.
template <class K>
struct Held {
  Held(const OrtApi* given, const OrtKernelInfo* info) : ort(given), kernel(given, info) {}

  const OrtApi* ort;
  K kernel;
};

template <class K>
OrtStatus* create_kernel(const OrtCustomOp*, const OrtApi* ort, const OrtKernelInfo* info, void** kernel) {
  try {
    *kernel = new Held<K>(ort, info);
    return nullptr;
  } catch (const std::exception& error) {
    return ort->CreateStatus(ORT_FAIL, error.what());
  }
}

template <class K>
OrtStatus* compute_kernel(void* kernel, OrtKernelContext* context) {
  Held<K>& held = *static_cast<Held<K>*>(kernel);
  try {
    held.kernel.compute(context);
    return nullptr;
  } catch (const std::exception& error) {
    return held.ort->CreateStatus(ORT_FAIL, error.what());
  }
}

template <class K>
void fill_table(OrtCustomOp& op) {
  op.version = ORT_API_VERSION;
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create_kernel<K>;
  op.KernelComputeV2 = compute_kernel<K>;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Held<K>*>(kernel); };
}

}  // namespace phirt
