// Pictures as arrays: resized exactly as Pillow does it, and as torch's bicubic interpolation does it.
//
// Knows 8-bit RGB and floats. Knows nothing of what an encoder wants.
#pragma once

#include <cstdint>
#include <vector>

namespace phirt {

struct Picture {  // 8-bit red, green, blue, rows from the top
    int64_t width = 0, height = 0;
    std::vector<uint8_t> rgb;
    const uint8_t* at(int64_t x, int64_t y) const { return rgb.data() + 3 * (y * width + x); }
    uint8_t* at(int64_t x, int64_t y) { return rgb.data() + 3 * (y * width + x); }
};

enum class Filter { bilinear, bicubic, lanczos };

// Convolution with a filter that widens where the picture shrinks, in 8 bits between the two directions.
Picture resize(const Picture& picture, int64_t width, int64_t height, Filter filter);

// [height, width, 3] to float [size, size, 3]: cubic convolution (a = -0.75) without widening, borders
// repeated.
std::vector<float> resize_cubic(const Picture& picture, int64_t size);

}  // namespace phirt
