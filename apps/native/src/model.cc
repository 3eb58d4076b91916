#include "model.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "sound.h"

namespace phirt {
namespace {

constexpr size_t kMaxTokenizer = 256u << 20, kMaxHost = 4u << 20;
constexpr float kSilence = 3.16227766e-5f;  // -90 dBFS: less than one step of a 16-bit recording
constexpr int64_t kMinRate = 8000, kMaxRate = 384000;
constexpr int kMaxChannels = 64;

Tokenizer read_tokenizer(const Manifest& manifest) {
    const JsonDocument document(manifest.read(manifest.tokenizer, kMaxTokenizer), manifest.tokenizer);
    return Tokenizer(document.root(), manifest.geometry.vocab_size);
}

Rendering read_rendering(const Manifest& manifest, const Tokenizer& tokenizer) {
    const JsonDocument document(manifest.read(manifest.host, kMaxHost), manifest.host);
    const Field root = document.root();
    if (root["format"].string() != "phirt-host") root["format"].refuse("'phirt-host'");
    if (root["version"].integer(1, 1000) != 1)
        root["version"].refuse("1; update this library or export again");
    return Rendering(root["rendering"], tokenizer);
}

}  // namespace

Model::Model(const std::string& folder, int threads)
    : manifest(folder),
      tokenizer(read_tokenizer(manifest)),
      rendering(read_rendering(manifest, tokenizer)),
      decoder(std::make_shared<Session>(manifest.path(manifest.decoder.file), threads)),
      threads_(threads) {
    for (const EncoderSpec& spec : manifest.encoders) {
        const GraphSpec& graph = manifest.graphs.at(spec.graph);
        if (spec.modality == Modality::image) image_ = open_image_kind(spec, graph);
        if (spec.modality == Modality::audio) audio_ = open_audio_kind(spec, graph);
    }
}

const EncoderSpec& Model::require_encoder(Modality modality, const char* what) const {
    const EncoderSpec* spec = manifest.encoder_for(modality);
    if (!spec)
        refuse_media("the model '" + manifest.name + "' takes no " + what +
                     "; use one that was exported with an encoder for them");
    return *spec;
}

Attachment Model::prepare_image(const Picture& picture, phirt_detail detail) const {
    require_encoder(Modality::image, "images");
    return {Modality::image, image_->prepare(picture, detail), {}};
}

Attachment Model::prepare_audio(const float* samples, int64_t count, int channels, int64_t rate) const {
    require_encoder(Modality::audio, "audio");
    if (rate < kMinRate || rate > kMaxRate) {
        refuse_media("the recording has " + std::to_string(rate) +
                     " samples a second, accepted: 8000 to 384000");
    }
    if (channels < 1 || channels > kMaxChannels) {
        refuse_media("the recording has " + std::to_string(channels) + " channels, accepted: 1 to 64");
    }
    if (count <= 0) refuse_media("the recording holds no samples; give a complete recording");
    const double seconds = static_cast<double>(count) / static_cast<double>(rate);
    if (count > static_cast<int64_t>(manifest.limits.audio_seconds * static_cast<double>(rate))) {
        refuse_media("the recording lasts " + std::to_string(seconds) +
                     " seconds, the limit of this model is " + std::to_string(manifest.limits.audio_seconds) +
                     "; cut it into parts");
    }
    std::vector<float> samples_ = mix_to_mono(samples, count, channels);
    float loudest = 0.0f;
    for (const float sample : samples_) {
        if (!std::isfinite(sample))
            refuse_media("the recording holds samples that are no numbers; record it again");
        loudest = std::max(loudest, std::fabs(sample));
    }
    if (loudest < kSilence) refuse_media("the recording is silent: no sample reaches -90 dBFS; check it");
    const std::vector<int64_t> rates = audio_->rates();
    if (std::find(rates.begin(), rates.end(), rate) == rates.end()) {
        samples_ = resample(samples_, rate, rates[0]);
        rate = rates[0];
    }
    return {Modality::audio, audio_->prepare(samples_, rate), {}};
}

Media Model::encoded(Attachment& attachment, const Rule& rule) {
    const EncoderSpec& spec = require_encoder(attachment.modality, "such media");
    const auto at = rule.projectors.find(spec.name);
    const auto projector = static_cast<int64_t>(at == rule.projectors.end() ? 0 : at->second);
    auto& features = attachment.features[projector];
    const auto wanted = static_cast<size_t>(attachment.prepared.num_tokens);
    const auto hidden = static_cast<size_t>(manifest.geometry.hidden_size);
    if (!features) {
        const auto session = encoder_session(spec.graph);
        const GraphSpec& graph = manifest.graphs.at(spec.graph);
        std::vector<float> rows;
        for (const auto& inputs : attachment.prepared.runs) {
            const std::vector<float> more =
                run_encoder(*session, graph, inputs, projector, manifest.geometry.hidden_size);
            rows.insert(rows.end(), more.begin(), more.end());
        }
        if (rows.size() < wanted * hidden) {
            refuse_bundle("the encoder '" + spec.name + "' gave " + std::to_string(rows.size() / hidden) +
                          " rows instead of " + std::to_string(wanted) + "; export the package again");
        }
        rows.resize(wanted * hidden);
        features = std::make_shared<const std::vector<float>>(std::move(rows));
        if (attachment.features.size() == spec.projectors.size()) attachment.prepared.runs.clear();
    }
    return {attachment.modality, spec.placeholder, wanted, features};
}

std::shared_ptr<const Session> Model::encoder_session(const std::string& graph) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& session = encoders_[graph];
    if (!session)
        session = std::make_shared<Session>(manifest.path(manifest.graphs.at(graph).file), threads_);
    return session;
}

void Model::release_encoders() {
    const std::lock_guard<std::mutex> lock(mutex_);
    encoders_.clear();
}

}  // namespace phirt
