// Encoder kinds: from a picture or samples to what an encoder's graph takes, formula by formula as
// phirt/encoders.
//
// Knows the kinds `phi4mm_image`, `fixed_image`, `phi4mm_audio` and `whisper_audio`. Knows nothing of
// sessions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "phirt.h"
#include "picture.h"

namespace phirt {

// An input of a graph: bytes with a type and a shape.
struct Array {
    std::string name;
    Dtype dtype;
    std::vector<int64_t> shape;
    std::vector<uint8_t> bytes;

    template <typename T>
    static Array of(std::string name, Dtype dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
        const auto* first = reinterpret_cast<const uint8_t*>(values.data());
        return {std::move(name), dtype, std::move(shape), {first, first + values.size() * sizeof(T)}};
    }
};

// One picture or recording, ready for its encoder: the graph is run once for each of `runs`, and `num_tokens`
// rows of what it gives one after the other are features.
struct Prepared {
    int64_t num_tokens = 0;
    std::vector<std::vector<Array>> runs;
};

class ImageKind {
  public:
    virtual ~ImageKind() = default;
    virtual Prepared prepare(const Picture& picture, phirt_detail detail) const = 0;
};

class AudioKind {
  public:
    virtual ~AudioKind() = default;
    // The rates that are taken as they are; another one is resampled to the first.
    virtual std::vector<int64_t> rates() const = 0;
    virtual Prepared prepare(const std::vector<float>& samples, int64_t rate) const = 0;
};

// Null for an encoder of the other modality. Throw Error for a kind that is not known, or constants that do
// not fit.
std::unique_ptr<ImageKind> open_image_kind(const EncoderSpec& spec, const GraphSpec& graph);
std::unique_ptr<AudioKind> open_audio_kind(const EncoderSpec& spec, const GraphSpec& graph);

}  // namespace phirt
