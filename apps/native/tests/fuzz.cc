// Hostile inputs for all that reads outside data: `phirt_fuzz RUNS SEED FOLDER` mutates the files of a
// package.
//
// Every input either works or ends in a phirt::Error; anything else (a crash, another exception, a
// sanitizer's report) fails. With PHIRT_LIBFUZZER clang's driver looks for inputs instead.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "encoders.h"
#include "error.h"
#include "manifest.h"
#include "media_files.h"
#include "regex.h"
#include "rendering.h"
#include "sound.h"
#include "tokenizer.h"
#include "unicode.h"

namespace {

enum Part { json, manifest, tokenizer, rendering, regex, text, image, audio, kParts };

std::string folder = ".";

phirt::Tokenizer& sane_tokenizer() {
    static phirt::Tokenizer* const opened = [] {
        const phirt::JsonDocument document(read_file(folder + "/tokenizer.json"), "tokenizer.json");
        return new phirt::Tokenizer(document.root(), 1 << 22);
    }();
    return *opened;
}

void encode(const phirt::Tokenizer& tokenizer, const std::string& bytes) {
    phirt::Utf8Stream stream;
    for (const auto id : tokenizer.encode(bytes)) stream.feed(tokenizer.bytes_of(id));
}

// The first bytes of an input as numbers, the rest as what a part reads.
struct Reader {
    const std::string& bytes;
    size_t at = 0;
    int64_t number(int64_t most) {
        uint32_t value = 0;
        for (int i = 0; i < 3 && at < bytes.size(); ++i)
            value = value << 8 | static_cast<uint8_t>(bytes[at++]);
        return value % static_cast<uint32_t>(most + 1);
    }
    std::string rest() const { return bytes.substr(std::min(at, bytes.size())); }
};

phirt::EncoderSpec spec_of(const phirt::Field& constants, const char* kind, phirt::Modality modality) {
    return {"e", kind, "e", modality, 0, {"p"}, constants};
}

void prepare_image(const std::string& bytes) {
    Reader reader{bytes};
    const char* const kinds[] = {"phi4mm_image", "fixed_image"};
    const char* const kind = kinds[reader.number(1)];
    const auto detail = static_cast<phirt_detail>(reader.number(2));
    phirt::Picture picture{1 + reader.number(300), 1 + reader.number(300), {}};
    picture.rgb.resize(static_cast<size_t>(3 * picture.width * picture.height), 77);
    for (const char byte : bytes)
        picture.rgb[static_cast<size_t>(reader.number(100000)) % picture.rgb.size()] =
            static_cast<uint8_t>(byte);
    const std::string own = reader.rest();
    const phirt::JsonDocument constants(
        own.size() > 2 && own[0] == '{' ? own
        : kind == kinds[0]
            ? R"({"crop_size": 32, "patch_size": 4, "pool": 2, "max_crops": 4, "min_side": 2})"
            : R"({"size": 24, "tokens": 4, "mean": [0, 0, 0], "std": [1, 1, 1], "fit": "crop"})",
        "constants");
    if (constants.root()["size"].exists() && constants.root()["size"].integer(1, 4096) > 200) return;
    if (constants.root()["crop_size"].exists() && constants.root()["crop_size"].integer(1, 4096) > 64) return;
    phirt::open_image_kind(spec_of(constants.root(), kind, phirt::Modality::image), {})
        ->prepare(picture, detail);
}

void prepare_audio(const std::string& bytes) {
    Reader reader{bytes};
    const char* const kinds[] = {"phi4mm_audio", "whisper_audio"};
    const char* const kind = kinds[reader.number(1)];
    const int channels = static_cast<int>(1 + reader.number(3));
    const int64_t rate = 8000 + reader.number(60000);
    std::vector<float> samples(bytes.size() / sizeof(float) +
                               static_cast<size_t>(reader.number(4000) + 1) * static_cast<size_t>(channels));
    if (bytes.size() >= sizeof(float))
        std::memcpy(samples.data(), bytes.data(), bytes.size() / sizeof(float) * sizeof(float));
    const phirt::JsonDocument constants(
        R"({"sample_rate": 16000, "num_mels": 20, "subsampling": 8, "frames_per_token": 7, "padding": "none"})",
        "c");
    const auto opened = phirt::open_audio_kind(spec_of(constants.root(), kind, phirt::Modality::audio), {});
    const auto mono =
        phirt::mix_to_mono(samples.data(), static_cast<int64_t>(samples.size()) / channels, channels);
    opened->prepare(phirt::resample(mono, rate, 16000), 16000);
}

void read_one(Part part, const std::string& bytes) {
    switch (part) {
        case json:
            phirt::JsonDocument(bytes, "input");
            break;
        case manifest:
            phirt::Manifest(folder, bytes);
            break;
        case tokenizer: {
            const phirt::JsonDocument document(bytes, "input");
            encode(phirt::Tokenizer(document.root(), 1 << 22), "It's 12 o'clock,  naïve\n\n café 👍🏽!");
            break;
        }
        case rendering: {
            const phirt::JsonDocument document(bytes, "input");
            const phirt::Rendering made(document.root()["rendering"], sane_tokenizer());
            made.encode({{phirt::Role::user, " a ", {}, {}},
                         {phirt::Role::assistant, "b", {}, {5}},
                         {phirt::Role::user, "", {}, {}}},
                        sane_tokenizer());
            break;
        }
        case regex: {
            const size_t cut = std::min(bytes.find('\n'), bytes.size());
            const auto points = phirt::decode_utf8(bytes).points;
            phirt::Regex(bytes.substr(0, cut)).find(points, 0);
            break;
        }
        case text:
            encode(sane_tokenizer(), bytes);
            break;
        case image:
            prepare_image(bytes);
            break;
        case audio:
            prepare_audio(bytes);
            break;
        case kParts:
            break;
    }
}

bool accepts(Part part, const std::string& bytes) {
    try {
        read_one(part, bytes);
        return true;
    } catch (const phirt::Error& error) {
        if (std::strlen(error.what()) == 0) std::abort();
        return false;
    }
}

class Mutator {
  public:
    explicit Mutator(uint64_t seed) : random_(seed) {}

    std::string of(std::string bytes, const std::string& other) {
        for (size_t i = 1 + below(4); i-- > 0;) change(bytes, other);
        return bytes;
    }
    size_t below(size_t count) { return count ? random_() % count : 0; }

  private:
    void change(std::string& bytes, const std::string& other) {
        static const char* const words[] = {"null", "-1",       "1e999",  "99999999999999999999",
                                            "[]",   "{}",       "\"",     "\\u0000",
                                            "\xff", "..",       "/",      "true",
                                            "0",    "\xF0\x9F", "\\p{L}", "(?i:",
                                            "{3,",  "[^",       "&&",     "*+"};
        const size_t at = below(bytes.size() + 1);
        switch (below(6)) {
            case 0:
                if (!bytes.empty()) bytes[at % bytes.size()] = static_cast<char>(below(256));
                break;
            case 1:
                bytes.insert(at, words[below(sizeof words / sizeof *words)]);
                break;
            case 2:
                bytes.erase(at, below(40));
                break;
            case 3:
                bytes.resize(at);
                break;
            case 4:
                bytes.insert(at, other, below(other.size() + 1), below(200));
                break;
            default:
                bytes.insert(at, bytes, below(bytes.size() + 1), below(200));
                break;
        }
    }
    std::mt19937_64 random_;
};

[[maybe_unused]] int run(size_t runs, uint64_t seed) {
    const std::string tokenizer_json =
        R"({"added_tokens":[{"id":0,"content":"<|end|>","special":true}],"normalizer":null,"pre_tokenizer":{"type":"Sequence",)"
        R"("pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}| ?\\p{L}+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated"},)"
        R"({"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}]},)"
        R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":1,"t":2,"at":3,"'":4,"s":5,"'s":6,"i":7},)"
        R"("merges":["a t",["'","s"]]}})";
    const std::string seeds[kParts] = {
        R"({"a": [1, -2.5e3, "x\u00e9\ud83d\ude00", true, null], "b": {"c": ""}})",
        read_file(folder + "/manifest.json"),
        tokenizer_json,
        read_file(folder + "/host.json"),
        "(?i:'s|'t)|[^\\r\\n\\p{L}]?\\p{L}+(?=x)|\\p{N}{1,3}|\\s+(?!\\S)\nIt's 123 x",
        "It's 12 o'clock,  naïve\n\n café 👍🏽!",
        std::string("\0\0\1\0\0\1\0\0\x7f\0\0\x50", 12),
        std::string("\0\0\1\0\0\1\0\x1f\x40", 9) + std::string(900, 'q')};
    Mutator mutator(seed);
    size_t accepted = 0;
    for (size_t i = 0; i < runs; ++i) {
        const auto part = static_cast<Part>(i % kParts);
        accepted +=
            accepts(part, i < kParts ? seeds[part] : mutator.of(seeds[part], seeds[mutator.below(kParts)]));
    }
    std::printf("%zu inputs, %zu accepted, the others refused in one line each\n", runs, accepted);
    return 0;
}

}  // namespace

#ifdef PHIRT_LIBFUZZER
extern "C" int LLVMFuzzerInitialize(int*, char***) {
    if (const char* given = std::getenv("PHIRT_PACKAGE")) folder = given;
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size)
        accepts(static_cast<Part>(data[0] % kParts),
                std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
    return 0;
}
#else
int main(int count, char** words) {
    if (count != 4) {
        std::fprintf(stderr, "usage: phirt_fuzz RUNS SEED FOLDER\n");
        return 2;
    }
    folder = words[3];
    return run(static_cast<size_t>(std::atoll(words[1])), static_cast<uint64_t>(std::atoll(words[2])));
}
#endif
