// Parts of the core for tests: `phirt_parts WHAT …` reads a request on stdin and writes what the part makes
// of it.
//
//   tokenizer FILE VOCAB     lines "length\n" + bytes; a line of ids for each
//   decode FILE VOCAB        lines of ids; for each the bytes, as hex, of the stream's pieces
//   resize W H w h FILTER    raw RGB; raw RGB
//   image KIND CONSTANTS W H DETAIL, audio KIND CONSTANTS CHANNELS RATE
//                            raw pixels or float32 samples; each array as "name shape…\n" and its bytes
//   resample FROM TO         raw float32; raw float32
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "encoders.h"
#include "error.h"
#include "sound.h"
#include "tokenizer.h"
#include "unicode.h"

namespace {

std::string all_of(std::istream& stream) {
    return std::string(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
}

phirt::Tokenizer open_tokenizer(const char* path, const char* vocab) {
    std::ifstream file(path, std::ios::binary);
    const phirt::JsonDocument document(all_of(file), path);
    return phirt::Tokenizer(document.root(), std::atoll(vocab));
}

void tokenize(const phirt::Tokenizer& tokenizer) {
    for (std::string line; std::getline(std::cin, line);) {
        std::string text(std::stoul(line), '\0');
        std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
        for (const auto id : tokenizer.encode(text)) std::cout << id << ' ';
        std::cout << '\n';
    }
}

void decode(const phirt::Tokenizer& tokenizer) {
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream ids(line);
        phirt::Utf8Stream stream;
        for (phirt::TokenId id; ids >> id;) {
            for (const unsigned char byte : stream.feed(tokenizer.bytes_of(id))) std::printf("%02x", byte);
            std::printf(" ");
        }
        std::printf("\n");
    }
}

void write(const phirt::Prepared& prepared) {
    std::cout << prepared.num_tokens << ' ' << prepared.runs.size() << '\n';
    for (const auto& run : prepared.runs) {
        for (const auto& array : run) {
            std::cout << array.name;
            for (const auto size : array.shape) std::cout << ' ' << size;
            std::cout << '\n';
            std::cout.write(reinterpret_cast<const char*>(array.bytes.data()),
                            static_cast<std::streamsize>(array.bytes.size()));
        }
    }
}

std::vector<float> floats(const std::string& bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
}

int run(int count, char** words) {
    const std::string what = count > 1 ? words[1] : "";
    if (what == "tokenizer" && count == 4) {
        tokenize(open_tokenizer(words[2], words[3]));
    } else if (what == "decode" && count == 4) {
        decode(open_tokenizer(words[2], words[3]));
    } else if (what == "resize" && count == 7) {
        const std::string filter = words[6], bytes = all_of(std::cin);
        const phirt::Picture picture{
            std::atoll(words[2]), std::atoll(words[3]), {bytes.begin(), bytes.end()}};
        const phirt::Picture out = phirt::resize(picture, std::atoll(words[4]), std::atoll(words[5]),
                                                 filter == "bilinear"  ? phirt::Filter::bilinear
                                                 : filter == "bicubic" ? phirt::Filter::bicubic
                                                                       : phirt::Filter::lanczos);
        std::cout.write(reinterpret_cast<const char*>(out.rgb.data()),
                        static_cast<std::streamsize>(out.rgb.size()));
    } else if ((what == "image" || what == "audio") && count == (what == "image" ? 7 : 6)) {
        const phirt::JsonDocument constants(words[3], "constants");
        const bool image = what == "image";
        const phirt::EncoderSpec spec{
            "e",   words[2],        "e", image ? phirt::Modality::image : phirt::Modality::audio, 0,
            {"p"}, constants.root()};
        const std::string bytes = all_of(std::cin);
        if (image) {
            const phirt::Picture picture{
                std::atoll(words[4]), std::atoll(words[5]), {bytes.begin(), bytes.end()}};
            write(phirt::open_image_kind(spec, {})->prepare(picture,
                                                            static_cast<phirt_detail>(std::atoi(words[6]))));
        } else {
            const std::vector<float> samples = floats(bytes);
            const int channels = std::atoi(words[4]);
            const auto mono =
                phirt::mix_to_mono(samples.data(), static_cast<int64_t>(samples.size()) / channels, channels);
            const auto kind = phirt::open_audio_kind(spec, {});
            int64_t rate = std::atoll(words[5]);
            const auto rates = kind->rates();
            const bool taken = std::find(rates.begin(), rates.end(), rate) != rates.end();
            write(
                kind->prepare(taken ? mono : phirt::resample(mono, rate, rates[0]), taken ? rate : rates[0]));
        }
    } else if (what == "resample" && count == 4) {
        const auto out =
            phirt::resample(floats(all_of(std::cin)), std::atoll(words[2]), std::atoll(words[3]));
        std::cout.write(reinterpret_cast<const char*>(out.data()),
                        static_cast<std::streamsize>(out.size() * sizeof(float)));
    } else {
        std::cerr << "usage: see the head of parts.cc\n";
        return 2;
    }
    return 0;
}

}  // namespace

int main(int count, char** words) {
    std::ios::sync_with_stdio(true);
    try {
        return run(count, words);
    } catch (const phirt::Error& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
