// manifest.json as this library reads it: validated once, every relation that the code relies on.
//
// Knows the bundle format, version 2. Knows nothing of onnxruntime or of what graphs compute.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "json.h"

namespace phirt {

enum class Dtype { float32, float16, int64, int32, uint8, int8, boolean };
size_t size_of(Dtype dtype);

struct TensorSpec {
    std::string name;
    Dtype dtype;
    std::vector<int64_t> shape;  // -1 for a size that is known at run time
};

struct GraphSpec {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
    const TensorSpec* input(const std::string& name) const;
    const TensorSpec* output(const std::string& name) const;
};

struct Geometry {
    int64_t num_layers, num_kv_heads, head_dim, hidden_size, vocab_size, context, original_context;
    bool has_long_regime;
};

enum class Modality { image, audio };

struct EncoderSpec {
    std::string name, kind, graph;
    Modality modality;
    int32_t placeholder;
    std::vector<std::string> projectors;
    Field constants;  // of the kind
};

struct Rule {
    bool image = false, audio = false;  // what a conversation must have for it
    std::string adapter;                // "none" for the base weights
    int64_t adapter_id = 0;
    std::map<std::string, size_t> projectors;  // by encoder, their numbers
};

struct Limits {
    int64_t image_pixels;
    double audio_seconds;
};

struct GenerationDefaults {
    double temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
    int64_t top_k = 0;
};

class Manifest {
  public:
    // Reads and checks `folder`/manifest.json, and that every file is there with its size. Throws Error.
    explicit Manifest(const std::string& folder);
    // The same for a manifest's text.
    Manifest(const std::string& folder, std::string text);

    std::string path(const std::string& file) const { return folder_ + "/" + file; }
    // A listed file's content, at most `max_bytes` of it.
    std::string read(const std::string& file, size_t max_bytes) const;

    const Rule& rule_for(bool image, bool audio) const;
    const EncoderSpec* encoder_for(Modality modality) const;

    std::string name, tokenizer, host;
    GraphSpec decoder;
    std::map<std::string, GraphSpec> graphs;
    Geometry geometry;
    std::vector<int32_t> eos;
    std::vector<int32_t> placeholders;
    std::vector<EncoderSpec> encoders;
    std::vector<Rule> rules;
    Limits limits;
    GenerationDefaults generation;
    Dtype cache_dtype;

  private:
    void read_files(const Field& files);
    void read_geometry(const Field& geometry, const Field& limits);
    void read_graphs(const Field& graphs);
    void read_encoders(const Field& encoders);
    void read_rules(const Field& root);
    void check_decoder(const Field& graphs);
    const Field& require_listed(const Field& name) const;

    std::string folder_;
    std::map<std::string, int64_t> files_;
    std::unique_ptr<JsonDocument> document_;
};

}  // namespace phirt
