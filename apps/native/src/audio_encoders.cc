// The kinds that take recordings. Formulas and their sources are in phirt/encoders/phi4mm_audio.py and
// whisper_audio.py.
#include <algorithm>
#include <cmath>

#include "encoders.h"
#include "error.h"
#include "exact_floats.h"
#include "sound.h"

namespace phirt {
namespace {

std::vector<double> evenly(double first, double last, size_t count) {
    std::vector<double> values(count);
    const double step = (last - first) / static_cast<double>(count - 1);
    for (size_t i = 0; i < count; ++i) values[i] = first + step * static_cast<double>(i);
    values.back() = last;
    return values;
}

class Phi4mmAudio : public AudioKind {
  public:
    explicit Phi4mmAudio(const Field& c)
        : mels_(c["num_mels"].integer(1, 512)), subsampling_(c["subsampling"].integer(1, 64)) {
        c["sample_rate"].integer(16000, 16000);
        // Triangles of height 1, linear in mel(f) = 1127 ln(1 + f / 700), up to 7690 Hz.
        const std::vector<double> frequencies = evenly(0.0, 8000.0, kBins);
        const double step = 1127.0 * std::log1p(7690.0 / 700.0) / static_cast<double>(mels_ + 1);
        filters_.resize(kBins * static_cast<size_t>(mels_));
        for (size_t bin = 1; bin <= kLastBin; ++bin) {
            const double mel = 1127.0 * std::log1p(frequencies[bin] / 700.0);
            for (int64_t m = 0; m < mels_; ++m) {
                const double centre = step * static_cast<double>(m + 1);
                filters_[bin * static_cast<size_t>(mels_) + static_cast<size_t>(m)] =
                    std::max(1.0 - std::fabs(mel - centre) / step, 0.0);
            }
        }
    }

    std::vector<int64_t> rates() const override { return {16000, 8000}; }

    Prepared prepare(const std::vector<float>& samples, int64_t rate) const override {
        const auto count = static_cast<int64_t>(samples.size());
        const int64_t window = rate / 40, hop = rate / 100;
        if (count < window) {
            refuse_media("the recording has " + std::to_string(count) + " samples at " +
                         std::to_string(rate) + " Hz; at least " + std::to_string(window) +
                         " are needed (25 ms)");
        }
        const int64_t frames = (count - window) / hop + 1;
        std::vector<float> mel(static_cast<size_t>(frames * mels_));
        const auto size = static_cast<size_t>(512 * rate / 16000);
        PowerSpectrum spectrum(size);
        const auto length = static_cast<size_t>(window);
        std::vector<double> hamming(length), frame(length), power(size / 2 + 1),
            sums(static_cast<size_t>(mels_));
        for (size_t i = 0; i < length; ++i) {
            hamming[i] =
                0.54 - 0.46 * std::cos(2.0 * M_PI * static_cast<double>(i) / static_cast<double>(length - 1));
        }
        // At 8 kHz the bins from Nyquist up count as zero.
        const size_t bins = std::min<size_t>(power.size() - (rate == 8000), kLastBin + 1);
        for (int64_t f = 0; f < frames; ++f) {
            const float* from = samples.data() + f * hop;
            for (size_t i = 0; i < length; ++i) {
                const double previous = i ? from[i - 1] : from[0];
                frame[i] = (from[i] - 0.97 * previous) * 32768.0 * hamming[i];
            }
            spectrum.of(frame.data(), length, power.data());
            std::fill(sums.begin(), sums.end(), 0.0);
            for (size_t bin = 1; bin < bins; ++bin) {
                const double* weights = filters_.data() + bin * sums.size();
                for (size_t m = 0; m < sums.size(); ++m) sums[m] += power[bin] * weights[m];
            }
            for (size_t m = 0; m < sums.size(); ++m) {
                mel[static_cast<size_t>(f) * sums.size() + m] =
                    static_cast<float>(std::log(std::max(sums[m], 1.0)));
            }
        }
        Prepared prepared;
        prepared.num_tokens = (frames + subsampling_ - 1) / subsampling_;
        prepared.runs.push_back({Array::of("audio_embeds", Dtype::float32, {1, frames, mels_}, mel)});
        return prepared;
    }

  private:
    static constexpr size_t kBins = 257, kLastBin = 245;
    int64_t mels_, subsampling_;
    std::vector<double> filters_;  // [bins, mels]
};

class WhisperAudio : public AudioKind {
  public:
    explicit WhisperAudio(const Field& c)
        : mels_(c["num_mels"].integer(1, 512)), frames_per_token_(c["frames_per_token"].integer(1, kFrames)) {
        const std::string padding = c["padding"].exists() ? c["padding"].string() : "kept";
        if (padding != "kept" && padding != "dropped" && padding != "none") {
            c["padding"].refuse("kept, dropped or none");
        }
        keeps_padding_ = padding == "kept", computes_padding_ = padding != "none";
        // Triangles of area 1 between neighbours on Slaney's scale up to 8000 Hz.
        const auto count = static_cast<size_t>(mels_);
        std::vector<double> edges = evenly(0.0, mel_of(8000.0), count + 2);
        for (double& edge : edges) edge = frequency_of(edge);
        const std::vector<double> bins = evenly(0.0, 8000.0, kBins);
        filters_.resize(kBins * count);
        for (size_t bin = 0; bin < kBins; ++bin) {
            for (size_t m = 0; m < count; ++m) {
                const double rising = (bins[bin] - edges[m]) / (edges[m + 1] - edges[m]);
                const double falling = (edges[m + 2] - bins[bin]) / (edges[m + 2] - edges[m + 1]);
                filters_[bin * count + m] =
                    std::max(0.0, std::min(rising, falling)) / ((edges[m + 2] - edges[m]) / 2.0);
            }
        }
    }

    std::vector<int64_t> rates() const override { return {16000}; }

    Prepared prepare(const std::vector<float>& samples, int64_t) const override {
        const auto count = static_cast<int64_t>(samples.size());
        Prepared prepared;
        prepared.num_tokens = tokens_of(count);
        const int64_t per_window = (kFrames + frames_per_token_ - 1) / frames_per_token_;
        int64_t left = prepared.num_tokens;
        for (int64_t start = 0; start < count; start += kWindow, left -= per_window) {
            int64_t frames = kFrames;
            // Padding that is not computed is left out of the last window.
            if (!computes_padding_ && start + kWindow >= count)
                frames = std::min(left * frames_per_token_, frames);
            prepared.runs.push_back(
                {Array::of("input_features", Dtype::float32, {1, mels_, frames},
                           log_mel(samples.data() + start, std::min(kWindow, count - start), frames))});
        }
        return prepared;
    }

  private:
    static constexpr int64_t kFft = 400, kHop = 160, kWindow = 480000, kFrames = 3000;
    static constexpr size_t kBins = 201;

    static double mel_of(double f) {
        return f < 1000.0 ? f * 3.0 / 200.0 : 15.0 + 27.0 * std::log(f / 1000.0) / std::log(6.4);
    }
    static double frequency_of(double mel) {
        return mel < 15.0 ? mel * 200.0 / 3.0 : 1000.0 * std::exp((mel - 15.0) * std::log(6.4) / 27.0);
    }

    int64_t tokens_of(int64_t count) const {
        const int64_t per_window = (kFrames + frames_per_token_ - 1) / frames_per_token_;
        const int64_t whole = count / kWindow, rest = count % kWindow;
        int64_t tokens = whole * per_window;
        if (rest && keeps_padding_) {
            tokens += per_window;
        } else if (rest) {
            const int64_t frames = (rest + kHop - 1) / kHop;
            tokens += (frames + frames_per_token_ - 1) / frames_per_token_;
        }
        return tokens;
    }

    // [mels, frames] of one window; frames of 25 ms every 10 ms around their middle, the ends mirrored.
    std::vector<float> log_mel(const float* samples, int64_t count, int64_t frames) const {
        const auto mels = static_cast<size_t>(mels_);
        std::vector<double> levels(static_cast<size_t>(frames) * mels, -10.0);  // of silence
        PowerSpectrum spectrum(kFft);
        std::vector<double> frame(kFft), power(kBins), sums(mels);
        std::vector<double> hann(kFft);
        for (size_t i = 0; i < hann.size(); ++i) {
            hann[i] = 0.5 - 0.5 * std::cos(2.0 * M_PI * static_cast<double>(i) / static_cast<double>(kFft));
        }
        double loudest = -10.0;  // of all frames, also those that are not asked for
        for (int64_t f = 0; f < kFrames && f * kHop - kFft / 2 < count; ++f) {
            for (int64_t i = 0; i < kFft; ++i) {
                int64_t at = f * kHop + i - kFft / 2;
                at = at < 0 ? -at : at >= kWindow ? 2 * kWindow - 2 - at : at;
                frame[static_cast<size_t>(i)] = at < count ? samples[at] * hann[static_cast<size_t>(i)] : 0.0;
            }
            spectrum.of(frame.data(), kFft, power.data());
            std::fill(sums.begin(), sums.end(), 0.0);
            for (size_t bin = 0; bin < kBins; ++bin) {
                for (size_t m = 0; m < mels; ++m) sums[m] += power[bin] * filters_[bin * mels + m];
            }
            for (size_t m = 0; m < mels; ++m) {
                const double level = std::log10(std::max(sums[m], 1e-10));
                loudest = std::max(loudest, level);
                if (f < frames) levels[m * static_cast<size_t>(frames) + static_cast<size_t>(f)] = level;
            }
        }
        std::vector<float> values(levels.size());
        for (size_t i = 0; i < levels.size(); ++i) {
            values[i] = static_cast<float>((std::max(levels[i], loudest - 8.0) + 4.0) / 4.0);
        }
        return values;
    }

    int64_t mels_, frames_per_token_;
    bool keeps_padding_ = true, computes_padding_ = true;
    std::vector<double> filters_;  // [bins, mels]
};

}  // namespace

std::unique_ptr<AudioKind> open_audio_kind(const EncoderSpec& spec, const GraphSpec&) {
    if (spec.modality != Modality::audio) return nullptr;
    if (spec.kind == "phi4mm_audio") return std::make_unique<Phi4mmAudio>(spec.constants);
    if (spec.kind == "whisper_audio") return std::make_unique<WhisperAudio>(spec.constants);
    refuse_bundle("manifest.json: the encoder '" + spec.name + "' is of the kind '" + spec.kind +
                  "', accepted: phi4mm_audio, whisper_audio; update this library");
}

}  // namespace phirt
