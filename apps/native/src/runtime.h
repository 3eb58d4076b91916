// onnxruntime's C interface with owners: an environment, sessions, values over memory of ours.
//
// Knows onnxruntime. Knows nothing of what graphs are for.
#pragma once

// As a framework on Apple's systems, as a plain header elsewhere.
#if __has_include(<onnxruntime/onnxruntime_c_api.h>)
#include <onnxruntime/onnxruntime_c_api.h>
#else
#include <onnxruntime_c_api.h>
#endif

#include <memory>
#include <string>
#include <vector>

#include "encoders.h"

namespace phirt {

// The functions of the loaded library. Throws Error where it is older than the headers of the build.
const OrtApi& ort();

// Throws Error for a status that is none of success.
void check(OrtStatus* status);

struct ReleaseValue {
    void operator()(OrtValue* value) const { ort().ReleaseValue(value); }
};
using Value = std::unique_ptr<OrtValue, ReleaseValue>;

// A tensor over memory that stays somebody else's.
Value value_over(void* data, size_t bytes, const std::vector<int64_t>& shape, Dtype dtype);

class Session {
  public:
    Session(const std::string& path, int threads);
    ~Session();
    Session(const Session&) = delete;

    // Names, and values in the same order; of `outputs` those that are null are made by onnxruntime.
    void run(const std::vector<const char*>& input_names, const std::vector<const OrtValue*>& inputs,
             const std::vector<const char*>& output_names, std::vector<OrtValue*>& outputs) const;

  private:
    OrtSession* session_ = nullptr;
};

// Rows of the first output of an encoder's graph, float32 [rows, width].
std::vector<float> run_encoder(const Session& session, const GraphSpec& graph,
                               const std::vector<Array>& inputs, int64_t projector, int64_t width);

}  // namespace phirt
