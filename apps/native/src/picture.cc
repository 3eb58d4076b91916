#include "picture.h"

#include <algorithm>
#include <cmath>

#include "exact_floats.h"

namespace phirt {
namespace {

// Weights are whole numbers with this many bits behind the point, as Pillow rounds them.
constexpr int kFractionBits = 22;

double support_of(Filter filter) {
    return filter == Filter::bilinear ? 1.0 : filter == Filter::bicubic ? 2.0 : 3.0;
}

double sinc(double x) {
    const double angle = x * M_PI;
    return x == 0.0 ? 1.0 : std::sin(angle) / angle;
}

double weight_at(Filter filter, double x) {
    const double distance = std::fabs(x);
    switch (filter) {
        case Filter::bilinear:
            return distance < 1.0 ? 1.0 - distance : 0.0;
        case Filter::bicubic: {
            constexpr double a = -0.5;
            if (distance < 1.0) return ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0;
            return distance < 2.0 ? (((distance - 5.0) * distance + 8.0) * distance - 4.0) * a : 0.0;
        }
        case Filter::lanczos:
            return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
    }
    return 0.0;
}

// What one output pixel is made of: input pixels from `first` on, with these weights.
struct Taps {
    int64_t first;
    std::vector<int32_t> weights;
};

std::vector<Taps> taps_for(int64_t from, int64_t to, Filter filter) {
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    const double stretch = std::max(scale, 1.0), reach = support_of(filter) * stretch, shrink = 1.0 / stretch;
    std::vector<Taps> all(static_cast<size_t>(to));
    std::vector<double> exact;
    for (int64_t out = 0; out < to; ++out) {
        const double middle = (static_cast<double>(out) + 0.5) * scale;
        const int64_t first = std::max<int64_t>(static_cast<int64_t>(middle - reach + 0.5), 0);
        const int64_t end = std::min<int64_t>(static_cast<int64_t>(middle + reach + 0.5), from);
        double sum = 0.0;
        exact.clear();
        for (int64_t in = first; in < end; ++in) {
            exact.push_back(weight_at(filter, (static_cast<double>(in) - middle + 0.5) * shrink));
            sum += exact.back();
        }
        Taps& taps = all[static_cast<size_t>(out)];
        taps.first = first;
        for (const double weight : exact) {
            const double share = sum != 0.0 ? weight / sum : weight;
            const double scaled = share * (1 << kFractionBits);
            taps.weights.push_back(static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
        }
    }
    return all;
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255)); }

constexpr int32_t kHalf = 1 << (kFractionBits - 1);

Picture resize_across(const Picture& picture, int64_t width, Filter filter) {
    const std::vector<Taps> taps = taps_for(picture.width, width, filter);
    Picture out{width, picture.height, std::vector<uint8_t>(static_cast<size_t>(3 * width * picture.height))};
    for (int64_t y = 0; y < picture.height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
            const Taps& tap = taps[static_cast<size_t>(x)];
            int32_t red = kHalf, green = kHalf, blue = kHalf;
            const uint8_t* pixel = picture.at(tap.first, y);
            for (const int32_t weight : tap.weights) {
                red += pixel[0] * weight, green += pixel[1] * weight, blue += pixel[2] * weight;
                pixel += 3;
            }
            uint8_t* to = out.at(x, y);
            to[0] = rounded(red), to[1] = rounded(green), to[2] = rounded(blue);
        }
    }
    return out;
}

Picture resize_down(const Picture& picture, int64_t height, Filter filter) {
    const std::vector<Taps> taps = taps_for(picture.height, height, filter);
    Picture out{picture.width, height, std::vector<uint8_t>(static_cast<size_t>(3 * picture.width * height))};
    const size_t row = static_cast<size_t>(3 * picture.width);
    std::vector<int32_t> sums(row);
    for (int64_t y = 0; y < height; ++y) {
        const Taps& tap = taps[static_cast<size_t>(y)];
        std::fill(sums.begin(), sums.end(), kHalf);
        int64_t from = tap.first;
        for (const int32_t weight : tap.weights) {
            const uint8_t* pixel = picture.at(0, from++);
            for (size_t i = 0; i < row; ++i) sums[i] += pixel[i] * weight;
        }
        uint8_t* to = out.at(0, y);
        for (size_t i = 0; i < row; ++i) to[i] = rounded(sums[i]);
    }
    return out;
}

double cubic(double x) {
    constexpr double a = -0.75;
    if (x <= 1.0) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return ((x - 5) * x + 8) * x * a - 4 * a;
}

// One axis of cubic convolution over [outer, length, inner].
std::vector<float> cubic_along(const std::vector<float>& in, int64_t outer, int64_t length, int64_t inner,
                               int64_t size) {
    std::vector<float> out(static_cast<size_t>(outer * size * inner));
    const double scale = static_cast<double>(length) / static_cast<double>(size);
    for (int64_t i = 0; i < size; ++i) {
        const double position = (static_cast<double>(i) + 0.5) * scale - 0.5;
        const double first = std::floor(position), offset = position - first;
        float weights[4];
        int64_t index[4];
        for (int tap = -1; tap <= 2; ++tap) {
            weights[tap + 1] = static_cast<float>(cubic(std::fabs(offset - tap)));
            index[tap + 1] = std::clamp<int64_t>(static_cast<int64_t>(first) + tap, 0, length - 1);
        }
        for (int64_t o = 0; o < outer; ++o) {
            for (int64_t k = 0; k < inner; ++k) {
                const auto value = [&](int tap) {
                    return in[static_cast<size_t>((o * length + index[tap]) * inner + k)] * weights[tap];
                };
                float sum = value(0);
                for (int tap = 1; tap < 4; ++tap) sum += value(tap);
                out[static_cast<size_t>((o * size + i) * inner + k)] = sum;
            }
        }
    }
    return out;
}

}  // namespace

Picture resize(const Picture& picture, int64_t width, int64_t height, Filter filter) {
    // Pillow 13 begins with the height where that shrinks much more than the width; between the two
    // directions pixels are rounded, so the order shows.
    if (height < picture.height && picture.height - height > 2 * (picture.width - width)) {
        const Picture lower = resize_down(picture, height, filter);
        return width == lower.width ? lower : resize_across(lower, width, filter);
    }
    Picture out = width == picture.width ? picture : resize_across(picture, width, filter);
    return height == out.height ? out : resize_down(out, height, filter);
}

std::vector<float> resize_cubic(const Picture& picture, int64_t size) {
    std::vector<float> values(picture.rgb.begin(), picture.rgb.end());
    if (picture.height != size) values = cubic_along(values, 1, picture.height, picture.width * 3, size);
    if (picture.width != size) values = cubic_along(values, size, picture.width, 3, size);
    return values;
}

}  // namespace phirt
