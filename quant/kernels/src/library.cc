// What onnxruntime and Python call in this library: the operators are registered, the instruction set is named.
#include <onnxruntime_c_api.h>

#include <initializer_list>

#include "group_query_attention.h"
#include "matmul_nbits.h"
#include "matrix.h"
#include "projection.h"

#if defined(_WIN32)
#define PHIRT_EXPORT extern "C" __declspec(dllexport)
#else
#define PHIRT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Registers the operators; they live as long as the program, and so does their domain.
PHIRT_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* ort = base->GetApi(ORT_API_VERSION);
  if (ort == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "onnxruntime is older than what phirt-kernels was built for");
  }
  static OrtCustomOpDomain* const domain = [ort] {
    OrtCustomOpDomain* made = nullptr;
    if (OrtStatus* status = ort->CreateCustomOpDomain("phirt.kernels", &made)) {
      ort->ReleaseStatus(status);
      return static_cast<OrtCustomOpDomain*>(nullptr);
    }
    for (const OrtCustomOp* op : {phirt::matmul_nbits(), phirt::projection(), phirt::group_query_attention(ort)}) {
      if (OrtStatus* status = ort->CustomOpDomain_Add(made, op)) {
        ort->ReleaseStatus(status);
        return static_cast<OrtCustomOpDomain*>(nullptr);
      }
    }
    return made;
  }();
  if (domain == nullptr) return ort->CreateStatus(ORT_FAIL, "the operators of phirt.kernels cannot be made");
  return ort->AddCustomOpDomain(options, domain);
}

// Which operators there are, with which inputs and attributes: a number that changes with them.
PHIRT_EXPORT int phirt_kernels_interface() { return 3; }

// The instruction set that products use here.
PHIRT_EXPORT const char* phirt_kernels_name() { return phirt::best_kernels().name; }
