#include "sound.h"

#include <algorithm>
#include <cmath>

#include "exact_floats.h"

namespace phirt {
namespace {

constexpr double kCancelled = 0.1;   // of the energy that unrelated channels would leave in their average
constexpr int kCrossings = 40;       // of the sinc, on each side
constexpr int kPerCrossing = 1024;   // values of the table; linear between them is exact to -118 dB
constexpr double kBeta = 12.0;       // of the Kaiser window: side lobes below -115 dB
constexpr double kPassband = 0.955;  // of the lower rate's band

double bessel_i0(double x) {
    double sum = 1.0, term = 1.0;
    for (int k = 1; k < 60; ++k) {
        term *= (x / (2 * k)) * (x / (2 * k));
        sum += term;
    }
    return sum;
}

// The right half of the windowed sinc, with a zero behind its end.
const std::vector<float>& sinc_table() {
    static const std::vector<float> table = [] {
        constexpr int last = kCrossings * kPerCrossing;
        std::vector<float> values(last + 2);
        for (int i = 0; i <= last; ++i) {
            const double x = static_cast<double>(i) / kPerCrossing, ratio = x / kCrossings;
            const double window = bessel_i0(kBeta * std::sqrt(1.0 - ratio * ratio)) / bessel_i0(kBeta);
            values[static_cast<size_t>(i)] =
                static_cast<float>(window * (i == 0 ? 1.0 : std::sin(M_PI * x) / (M_PI * x)));
        }
        return values;
    }();
    return table;
}

}  // namespace

std::vector<float> mix_to_mono(const float* samples, int64_t count, int channels) {
    std::vector<float> mono(static_cast<size_t>(count));
    if (channels == 1) {
        std::copy(samples, samples + count, mono.begin());
        return mono;
    }
    std::vector<double> energy(static_cast<size_t>(channels));
    double left = 0.0, total = 0.0;
    for (int64_t i = 0; i < count; ++i) {
        float sum = 0.0f;
        for (int c = 0; c < channels; ++c) {
            const float value = samples[i * channels + c];
            sum += value;
            energy[static_cast<size_t>(c)] += static_cast<double>(value) * value;
        }
        mono[static_cast<size_t>(i)] = sum / static_cast<float>(channels);
        left += static_cast<double>(mono[static_cast<size_t>(i)]) * mono[static_cast<size_t>(i)];
    }
    for (const double one : energy) total += one;
    if (!(left < kCancelled * total / (static_cast<double>(channels) * channels))) return mono;
    const auto loudest = std::max_element(energy.begin(), energy.end()) - energy.begin();
    for (int64_t i = 0; i < count; ++i) mono[static_cast<size_t>(i)] = samples[i * channels + loudest];
    return mono;
}

std::vector<float> resample(const std::vector<float>& samples, int64_t from, int64_t to) {
    const auto count = static_cast<int64_t>(samples.size());
    const double step = static_cast<double>(from) / static_cast<double>(to);
    const auto length = static_cast<int64_t>(std::llround(static_cast<double>(count) / step));
    // Below the lower of both rates' bands nothing is lost and nothing folds over.
    const double cutoff = kPassband * std::min(1.0, 1.0 / step);
    const double reach = kCrossings / cutoff;
    const std::vector<float>& table = sinc_table();
    std::vector<float> out(static_cast<size_t>(std::max<int64_t>(length, 0)));
    for (int64_t i = 0; i < length; ++i) {
        const double middle = static_cast<double>(i) * step;
        const int64_t first = std::max<int64_t>(static_cast<int64_t>(std::ceil(middle - reach)), 0);
        const int64_t last = std::min<int64_t>(static_cast<int64_t>(std::floor(middle + reach)), count - 1);
        double sum = 0.0;
        for (int64_t j = first; j <= last; ++j) {
            const double place = std::fabs(static_cast<double>(j) - middle) * cutoff * kPerCrossing;
            const auto entry = std::min<size_t>(static_cast<size_t>(place), kCrossings * kPerCrossing);
            const double share = place - static_cast<double>(entry);
            const double weight = table[entry] + share * (table[entry + 1] - table[entry]);
            sum += samples[static_cast<size_t>(j)] * weight;
        }
        out[static_cast<size_t>(i)] = static_cast<float>(sum * cutoff);
    }
    return out;
}

PowerSpectrum::PowerSpectrum(size_t size) : size_(size), roots_(size), in_(size), out_(size), part_(size) {
    for (size_t k = 0; k < size; ++k) {
        const double angle = -2.0 * M_PI * static_cast<double>(k) / static_cast<double>(size);
        roots_[k] = {std::cos(angle), std::sin(angle)};
    }
}

void PowerSpectrum::of(const double* frame, size_t length, double* power) {
    for (size_t i = 0; i < size_; ++i) in_[i] = i < length ? frame[i] : 0.0;
    transform(in_.data(), 1, out_.data(), size_);
    for (size_t k = 0; k <= size_ / 2; ++k) power[k] = std::norm(out_[k]);
}

// Cooley and Tukey's: transforms of every radix-th value, then sums of them turned by roots of unity.
void PowerSpectrum::transform(const std::complex<double>* in, size_t stride, std::complex<double>* out,
                              size_t count) {
    if (count == 1) {
        out[0] = in[0];
        return;
    }
    size_t radix = 2;
    while (count % radix) ++radix;
    const size_t rest = count / radix, turn = size_ / count;
    for (size_t r = 0; r < radix; ++r) transform(in + r * stride, stride * radix, out + r * rest, rest);
    std::vector<std::complex<double>>& sums = part_;
    for (size_t k = 0; k < rest; ++k) {
        for (size_t q = 0; q < radix; ++q) {
            std::complex<double> sum = out[k];
            for (size_t r = 1; r < radix; ++r) {
                const std::complex<double>& a = out[k + r * rest];
                const std::complex<double>& b = roots_[(k + q * rest) * r * turn % size_];
                sum += std::complex<double>(a.real() * b.real() - a.imag() * b.imag(),
                                            a.real() * b.imag() + a.imag() * b.real());
            }
            sums[q] = sum;
        }
        for (size_t q = 0; q < radix; ++q) out[k + q * rest] = sums[q];
    }
}

}  // namespace phirt
