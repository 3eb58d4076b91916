// An opened package: what chats share. Encoders open when they are first needed.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "encoders.h"
#include "manifest.h"
#include "rendering.h"
#include "runtime.h"
#include "tokenizer.h"

namespace phirt {

// A picture or a recording that was attached: what its encoder takes, and what it gave, by projector.
struct Attachment {
    Modality modality;
    Prepared prepared;
    std::map<int64_t, std::shared_ptr<const std::vector<float>>> features;
};

class Model {
  public:
    Model(const std::string& folder, int threads);

    Attachment prepare_image(const Picture& picture, phirt_detail detail) const;
    Attachment prepare_audio(const float* samples, int64_t count, int channels, int64_t rate) const;

    // The attachment under a rule, its features computed unless they are known.
    Media encoded(Attachment& attachment, const Rule& rule);
    void release_encoders();

    const Manifest manifest;
    const Tokenizer tokenizer;
    const Rendering rendering;
    const std::shared_ptr<const Session> decoder;

  private:
    const EncoderSpec& require_encoder(Modality modality, const char* what) const;
    std::shared_ptr<const Session> encoder_session(const std::string& graph);

    int threads_;
    std::unique_ptr<ImageKind> image_;
    std::unique_ptr<AudioKind> audio_;
    std::mutex mutex_;
    std::map<std::string, std::shared_ptr<const Session>> encoders_;
};

}  // namespace phirt
