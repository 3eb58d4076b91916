// Recordings as samples: channels made one, any rate made the model's, spectra.
//
// Knows floats and rates. Knows nothing of log-mel formulas, which are the encoder kinds'.
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace phirt {

// The average of interleaved channels; where they cancel each other (one microphone wired the wrong way
// round) the loudest of them.
std::vector<float> mix_to_mono(const float* samples, int64_t count, int channels);

// Band-limited interpolation with a windowed sinc: round(count * to / from) samples.
std::vector<float> resample(const std::vector<float>& samples, int64_t from, int64_t to);

// |DFT|^2 of real frames of a fixed length, zero-padded to `size`, whose prime factors are small.
class PowerSpectrum {
  public:
    explicit PowerSpectrum(size_t size);
    // `power` gets size / 2 + 1 values.
    void of(const double* frame, size_t length, double* power);

  private:
    void transform(const std::complex<double>* in, size_t stride, std::complex<double>* out, size_t count);

    size_t size_;
    std::vector<std::complex<double>> roots_, in_, out_, part_;
};

}  // namespace phirt
