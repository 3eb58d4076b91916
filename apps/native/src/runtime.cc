#include "runtime.h"

#include <algorithm>

#include "error.h"

namespace phirt {
namespace {

ONNXTensorElementDataType type_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::float32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case Dtype::float16:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case Dtype::int64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case Dtype::int32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case Dtype::uint8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
        case Dtype::int8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
        case Dtype::boolean:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

// One for the process, never released: onnxruntime's threads may outlive the last session.
OrtEnv* environment() {
    static OrtEnv* const shared = [] {
        OrtEnv* made = nullptr;
        check(ort().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "phirt", &made));
        check(ort().DisableTelemetryEvents(made));
        return made;
    }();
    return shared;
}

const OrtMemoryInfo* memory() {
    static OrtMemoryInfo* const shared = [] {
        OrtMemoryInfo* made = nullptr;
        check(ort().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &made));
        return made;
    }();
    return shared;
}

struct Options {
    Options() { check(ort().CreateSessionOptions(&options)); }
    ~Options() { ort().ReleaseSessionOptions(options); }
    OrtSessionOptions* options = nullptr;
};

}  // namespace

const OrtApi& ort() {
    static const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!api) {
        throw Error(PHIRT_ERROR_RUNTIME, std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() +
                                             " is older than this library was built for; ship the newer one");
    }
    return *api;
}

void check(OrtStatus* status) {
    if (!status) return;
    std::string message = ort().GetErrorMessage(status);
    ort().ReleaseStatus(status);
    std::replace(message.begin(), message.end(), '\n', ' ');
    const bool memory = message.find("bad_alloc") != std::string::npos ||
                        message.find("Failed to allocate memory") != std::string::npos;
    throw Error(memory ? PHIRT_ERROR_MEMORY : PHIRT_ERROR_RUNTIME,
                memory ? "the device has no memory left for this; close other apps, or use fewer media"
                       : "onnxruntime: " + message.substr(0, 700));
}

Value value_over(void* data, size_t bytes, const std::vector<int64_t>& shape, Dtype dtype) {
    static uint64_t nothing = 0;  // an address for tensors without elements
    OrtValue* made = nullptr;
    check(ort().CreateTensorWithDataAsOrtValue(memory(), bytes ? data : &nothing, bytes, shape.data(),
                                               shape.size(), type_of(dtype), &made));
    return Value(made);
}

Session::Session(const std::string& path, int threads) {
    Options options;
    if (threads > 0) check(ort().SetIntraOpNumThreads(options.options, threads));
    check(ort().SetInterOpNumThreads(options.options, 1));
    // A phone that waits for the next token is not to burn its cores.
    check(ort().AddSessionConfigEntry(options.options, "session.intra_op.allow_spinning", "0"));
    // On ARM these kernels round activations in int8 with one scale a row, all others with one a block, as bundles
    // are measured with: answers would differ between a phone and everything else.
    check(ort().AddSessionConfigEntry(options.options, "mlas.disable_kleidiai", "1"));
#ifdef _WIN32
    const std::wstring name(path.begin(), path.end());
    check(ort().CreateSession(environment(), name.c_str(), options.options, &session_));
#else
    check(ort().CreateSession(environment(), path.c_str(), options.options, &session_));
#endif
}

Session::~Session() { ort().ReleaseSession(session_); }

void Session::run(const std::vector<const char*>& input_names, const std::vector<const OrtValue*>& inputs,
                  const std::vector<const char*>& output_names, std::vector<OrtValue*>& outputs) const {
    check(ort().Run(session_, nullptr, input_names.data(), inputs.data(), inputs.size(), output_names.data(),
                    output_names.size(), outputs.data()));
}

std::vector<float> run_encoder(const Session& session, const GraphSpec& graph,
                               const std::vector<Array>& inputs, int64_t projector, int64_t width) {
    std::vector<const char*> names;
    std::vector<Value> owned;
    std::vector<const OrtValue*> values;
    for (const Array& array : inputs) {
        names.push_back(array.name.c_str());
        owned.push_back(value_over(const_cast<uint8_t*>(array.bytes.data()), array.bytes.size(), array.shape,
                                   array.dtype));
    }
    if (graph.input("projector")) {
        names.push_back("projector");
        owned.push_back(value_over(&projector, sizeof projector, {1}, Dtype::int64));
    }
    for (const Value& value : owned) values.push_back(value.get());
    if (graph.outputs.empty()) refuse_bundle("manifest.json: an encoder's graph has no output; export again");
    std::vector<OrtValue*> outputs{nullptr};
    session.run(names, values, {graph.outputs[0].name.c_str()}, outputs);
    const Value output(outputs[0]);
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort().GetTensorTypeAndShape(output.get(), &info));
    size_t count = 0;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    OrtStatus* counted = ort().GetTensorShapeElementCount(info, &count);
    OrtStatus* typed = ort().GetTensorElementType(info, &type);
    ort().ReleaseTensorTypeAndShapeInfo(info);
    check(counted);
    check(typed);
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || count % static_cast<size_t>(width)) {
        refuse_bundle(graph.file +
                      " gives something other than float32 rows of the decoder's width; export again");
    }
    void* data = nullptr;
    check(ort().GetTensorMutableData(output.get(), &data));
    const auto* rows = static_cast<const float*>(data);
    return std::vector<float>(rows, rows + count);
}

}  // namespace phirt
