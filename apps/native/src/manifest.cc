#include "manifest.h"

#include <sys/stat.h>

#include <fstream>
#include <set>

#include "error.h"

namespace phirt {
namespace {

constexpr size_t kMaxManifest = 4 << 20;
constexpr int64_t kMaxDim = 1 << 24;
const char* const kRemedy = "; export the package again or fetch a fresh copy";
const std::pair<const char*, Dtype> kDtypes[] = {{"float32", Dtype::float32}, {"float16", Dtype::float16},
                                                 {"int64", Dtype::int64},     {"int32", Dtype::int32},
                                                 {"uint8", Dtype::uint8},     {"int8", Dtype::int8},
                                                 {"bool", Dtype::boolean}};

std::string read_whole(const std::string& path, size_t max_bytes) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) refuse_bundle(path + " cannot be read; name the folder of a package");
    std::string content;
    char block[1 << 16];
    while (stream.read(block, sizeof block) || stream.gcount()) {
        content.append(block, static_cast<size_t>(stream.gcount()));
        if (content.size() > max_bytes) refuse_bundle(path + " is too large" + kRemedy);
    }
    return content;
}

void require_plain_name(const Field& place, const std::string& name) {
    bool plain = !name.empty() && name.size() <= 255;
    for (const char c : name) plain = plain && static_cast<unsigned char>(c) >= 32 && c != '\\' && c != ':';
    size_t begin = 0;
    while (plain && begin <= name.size()) {
        const size_t end = std::min(name.find('/', begin), name.size());
        const std::string part = name.substr(begin, end - begin);
        plain = !part.empty() && part != "." && part != "..";
        begin = end + 1;
    }
    if (!plain) place.refuse("relative names inside the package");
}

std::vector<TensorSpec> read_tensors(const Field& list) {
    std::vector<TensorSpec> tensors;
    std::set<std::string> names;
    if (list.raw().items.size() > (1 << 14)) list.refuse("at most 16384 tensors");
    for (const Field& one : list.items()) {
        TensorSpec tensor{one["name"].string(200), Dtype::float32, {}};
        if (tensor.name.empty() || !names.insert(tensor.name).second) one["name"].refuse("each name once");
        const std::string dtype = one["dtype"].string(40);
        bool known = false;
        for (const auto& [name, value] : kDtypes) {
            if (dtype == name) tensor.dtype = value, known = true;
        }
        if (!known) one["dtype"].refuse("float32, float16, int64, int32, uint8, int8 or bool");
        for (const Field& size : one["shape"].items()) {
            tensor.shape.push_back(size.kind() == Json::string ? -1 : size.integer(0, int64_t{1} << 45));
        }
        if (tensor.shape.size() > 16) one["shape"].refuse("at most 16 sizes");
        tensors.push_back(std::move(tensor));
    }
    return tensors;
}

const TensorSpec* named(const std::vector<TensorSpec>& tensors, const std::string& name) {
    for (const TensorSpec& tensor : tensors) {
        if (tensor.name == name) return &tensor;
    }
    return nullptr;
}

void require_tensor(const TensorSpec* found, const std::string& name, std::initializer_list<Dtype> dtypes,
                    const std::vector<int64_t>& shape) {
    bool fits = found != nullptr && found->shape.size() == shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || found->shape[i] == shape[i];
    bool typed = false;
    for (const Dtype dtype : dtypes) typed = typed || (found && found->dtype == dtype);
    if (!fits || !typed) {
        refuse_bundle("manifest.json: the decoder's '" + name + "' is missing or not as the geometry has it" +
                      kRemedy);
    }
}

}  // namespace

size_t size_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::int64:
            return 8;
        case Dtype::float32:
        case Dtype::int32:
            return 4;
        case Dtype::float16:
            return 2;
        default:
            return 1;
    }
}

const TensorSpec* GraphSpec::input(const std::string& name) const { return named(inputs, name); }
const TensorSpec* GraphSpec::output(const std::string& name) const { return named(outputs, name); }

Manifest::Manifest(const std::string& folder)
    : Manifest(folder, read_whole(folder + "/manifest.json", kMaxManifest)) {}

Manifest::Manifest(const std::string& folder, std::string text) : folder_(folder) {
    document_ = std::make_unique<JsonDocument>(std::move(text), "manifest.json");
    const Field root = document_->root();
    if (!root["format"].exists() || root["format"].string(200) != "phirt-bundle") {
        root["format"].refuse("'phirt-bundle', of a folder made by 'phirt export'");
    }
    if (root["version"].integer(1, 1000) != 2)
        root["version"].refuse("2; update this library or export again");
    name = root["name"].string(200);
    read_files(root["files"]);
    tokenizer = require_listed(root["tokenizer"]).string(255);
    host = "host.json";
    if (!files_.count(host)) {
        refuse_bundle(folder_ +
                      " holds a bundle and no package: it has no host.json; make one with 'phirt export " +
                      "... --target android' or '--target ios'");
    }
    read_geometry(root["geometry"], root["limits"]);
    read_graphs(root["graphs"]);
    const int64_t last = geometry.vocab_size - 1;
    for (const Field& id : root["tokens"]["eos"].items())
        eos.push_back(static_cast<int32_t>(id.integer(0, last)));
    if (eos.empty() || eos.size() > 64) root["tokens"]["eos"].refuse("1 to 64 ids");
    read_encoders(root["encoders"]);
    read_rules(root);
    const Field chosen = root["generation"];
    if (chosen.exists()) {
        generation.temperature = chosen["temperature"].real_or(0, 0, 1000);
        generation.top_k = chosen["top_k"].integer_or(0, 0, 1 << 22);
        generation.top_p = chosen["top_p"].real_or(1, 1e-9, 1);
        generation.min_p = chosen["min_p"].real_or(0, 0, 1);
        generation.repetition_penalty = chosen["repetition_penalty"].real_or(1, 0.01, 100);
    }
}

void Manifest::read_files(const Field& files) {
    for (const auto& [file, entry] : files.members()) {
        require_plain_name(entry, file);
        const int64_t size = entry["size"].integer(0, int64_t{1} << 45);
        struct stat found;
        if (stat(path(file).c_str(), &found) != 0 || !S_ISREG(found.st_mode)) {
            refuse_bundle(path(file) + " is missing though the manifest lists it" + kRemedy);
        }
        if (found.st_size != size) {
            refuse_bundle(path(file) + " has " + std::to_string(found.st_size) +
                          " bytes, the manifest says " + std::to_string(size) + kRemedy);
        }
        files_[file] = size;
    }
}

const Field& Manifest::require_listed(const Field& file) const {
    if (!files_.count(file.string(255))) file.refuse("one of the listed files");
    return file;
}

std::string Manifest::read(const std::string& file, size_t max_bytes) const {
    return read_whole(path(file), max_bytes);
}

void Manifest::read_geometry(const Field& g, const Field& l) {
    geometry.num_layers = g["num_layers"].integer(1, 1024);
    geometry.num_kv_heads = g["num_kv_heads"].integer(1, 1024);
    geometry.head_dim = g["head_dim"].integer(1, 1024);
    geometry.hidden_size = g["hidden_size"].integer(1, 1 << 17);
    geometry.vocab_size = g["vocab_size"].integer(2, 1 << 22);
    geometry.context = g["context"].integer(1, kMaxDim);
    geometry.original_context = geometry.context;
    geometry.has_long_regime = false;
    const Field rope = g["rope"];
    if (rope.exists()) {
        const int64_t original = rope["original_context"].integer(1, kMaxDim);
        const auto short_factors = rope["short_factor"].items(), long_factors = rope["long_factor"].items();
        if (short_factors.size() != long_factors.size())
            rope["long_factor"].refuse("as many as 'short_factor'");
        bool differ = false;
        for (size_t i = 0; i < short_factors.size(); ++i) {
            differ = differ || short_factors[i].real(1e-6, 1e6) != long_factors[i].real(1e-6, 1e6);
        }
        geometry.has_long_regime = differ && geometry.context > original;
        geometry.original_context = original;
    }
    limits.image_pixels = l["image_pixels"].integer(1, int64_t{1} << 34);
    limits.audio_seconds = l["audio_seconds"].real(0.05, 86400);
    geometry.context = l["context"].integer_or(geometry.context, 1, geometry.context);
    if (geometry.context <= geometry.original_context) geometry.has_long_regime = false;
}

void Manifest::read_graphs(const Field& list) {
    for (const auto& [part, graph] : list.members()) {
        GraphSpec spec;
        spec.file = require_listed(graph["file"]).string(255);
        for (const Field& data : graph["data"].items()) require_listed(data);
        if (!graph["inputs"].exists() || !graph["outputs"].exists())
            graph.refuse("a graph with inputs and outputs");
        spec.inputs = read_tensors(graph["inputs"]);
        spec.outputs = read_tensors(graph["outputs"]);
        graphs[part] = std::move(spec);
    }
    if (!graphs.count("decoder")) list["decoder"].refuse("a graph");
    decoder = graphs["decoder"];
    check_decoder(list);
}

void Manifest::check_decoder(const Field& list) {
    const int64_t hidden = geometry.hidden_size;
    require_tensor(decoder.input("input_ids"), "input_ids", {Dtype::int64}, {1, -1});
    require_tensor(decoder.input("media_features"), "media_features", {Dtype::float32}, {-1, hidden});
    for (const char* one : {"route", "num_logits"})
        require_tensor(decoder.input(one), one, {Dtype::int64}, {1});
    for (const char* one : {"seqlens_k", "total_sequence_length"}) {
        require_tensor(decoder.input(one), one, {Dtype::int32}, {1});
    }
    require_tensor(decoder.output("logits"), "logits", {Dtype::float32}, {1, -1, geometry.vocab_size});
    const TensorSpec* first = decoder.input("past_key_values.0.key");
    cache_dtype = first && first->dtype == Dtype::int8 ? Dtype::int8 : Dtype::float32;
    const std::vector<int64_t> cache{1, geometry.num_kv_heads, -1, geometry.head_dim};
    for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
        for (const char* part : {".key", ".value"}) {
            const std::string past = "past_key_values." + std::to_string(layer) + part;
            const std::string present = "present." + std::to_string(layer) + part;
            require_tensor(decoder.input(past), past, {cache_dtype}, cache);
            require_tensor(decoder.output(present), present, {cache_dtype}, cache);
        }
    }
    const size_t known = 6 + 2 * static_cast<size_t>(geometry.num_layers);
    if (decoder.inputs.size() != known) list["decoder"]["inputs"].refuse(std::to_string(known) + " inputs");
}

void Manifest::read_encoders(const Field& list) {
    std::set<std::string> used{"decoder", "decoder_lora"};
    std::set<Modality> taken;
    for (const auto& [encoder, field] : list.members()) {
        const std::string modality = field["modality"].string(40);
        if (modality != "image" && modality != "audio") field["modality"].refuse("image or audio");
        const Modality kind = modality == "image" ? Modality::image : Modality::audio;
        EncoderSpec spec{encoder, field["kind"].string(200), field["graph"].string(200), kind, 0,
                         {},      field["constants"]};
        spec.placeholder = static_cast<int32_t>(field["placeholder"].integer(0, geometry.vocab_size - 1));
        for (const Field& projector : field["projectors"].items())
            spec.projectors.push_back(projector.string(200));
        if (spec.projectors.empty() || spec.projectors.size() > 16)
            field["projectors"].refuse("1 to 16 names");
        if (!graphs.count(spec.graph) || !used.insert(spec.graph).second)
            field["graph"].refuse("a graph of its own");
        if (!taken.insert(kind).second) field["modality"].refuse("one encoder for each modality");
        placeholders.push_back(spec.placeholder);
        encoders.push_back(std::move(spec));
    }
}

void Manifest::read_rules(const Field& root) {
    std::map<std::string, int64_t> ids{{"none", 0}};
    for (const auto& [adapter, field] : root["adapters"].members())
        ids[adapter] = field["id"].integer(1, 255);
    for (const Field& field : root["rules"].items()) {
        Rule rule;
        for (const Field& modality : field["modalities"].items()) {
            const std::string wanted = modality.string(40);
            if (wanted != "image" && wanted != "audio") modality.refuse("image or audio");
            (wanted == "image" ? rule.image : rule.audio) = true;
        }
        rule.adapter = field["adapter"].exists() ? field["adapter"].string(200) : "none";
        if (!ids.count(rule.adapter)) field["adapter"].refuse("one of 'adapters'");
        rule.adapter_id = ids[rule.adapter];
        for (const auto& [encoder, projector] : field["projectors"].members()) {
            bool found = false;
            for (const EncoderSpec& spec : encoders) {
                for (size_t i = 0; spec.name == encoder && i < spec.projectors.size(); ++i) {
                    if (spec.projectors[i] == projector.string(200))
                        rule.projectors[encoder] = i, found = true;
                }
            }
            if (!found) projector.refuse("a projector of an encoder");
        }
        rules.push_back(std::move(rule));
    }
    if (rules.empty() || rules.size() > 64) root["rules"].refuse("1 to 64 rules");
    if (rules.back().image || rules.back().audio) root["rules"].refuse("a last rule that fits always");
}

const Rule& Manifest::rule_for(bool image, bool audio) const {
    for (const Rule& rule : rules) {
        if ((!rule.image || image) && (!rule.audio || audio)) return rule;
    }
    return rules.back();
}

const EncoderSpec* Manifest::encoder_for(Modality modality) const {
    for (const EncoderSpec& encoder : encoders) {
        if (encoder.modality == modality) return &encoder;
    }
    return nullptr;
}

}  // namespace phirt
