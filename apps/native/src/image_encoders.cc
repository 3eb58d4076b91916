// The kinds that take pictures. Formulas and their sources are in phirt/encoders/phi4mm_image.py and
// fixed_image.py.
#include <algorithm>
#include <cmath>

#include "encoders.h"
#include "error.h"
#include "exact_floats.h"

namespace phirt {
namespace {

struct Size {
    int64_t width, height;
};

std::string shown(Size size) { return std::to_string(size.width) + " x " + std::to_string(size.height); }

class Phi4mmImage : public ImageKind {
  public:
    explicit Phi4mmImage(const Field& c)
        : crop_(c["crop_size"].integer(1, 4096)),
          patch_(c["patch_size"].integer(1, 4096)),
          pool_(c["pool"].integer(1, 64)),
          max_crops_(c["max_crops"].integer(1, 256)),
          min_side_(c["min_side"].integer(1, 4096)) {
        if (crop_ % (patch_ * pool_)) c["crop_size"].refuse("a multiple of patch_size x pool");
        grid_ = crop_ / patch_;
    }

    Prepared prepare(const Picture& picture, phirt_detail detail) const override {
        const int64_t cap = detail == PHIRT_DETAIL_LOW ? 1 : detail == PHIRT_DETAIL_AUTO ? 12 : max_crops_;
        const Layout layout = plan({picture.width, picture.height}, std::min(cap, max_crops_));
        return inputs(on_canvas(picture, layout), layout);
    }

  private:
    struct Layout {
        int64_t across, down;
        Size canvas, resized;
    };

    std::pair<int64_t, int64_t> choose_crops(Size size, int64_t limit) const {
        const int64_t across = (size.width + crop_ - 1) / crop_, down = (size.height + crop_ - 1) / crop_;
        if (across * down <= limit) return {across, down};
        std::vector<std::pair<int64_t, int64_t>> pairs;
        for (int64_t i = 1; i <= limit; ++i) {
            for (int64_t j = 1; j <= limit / i; ++j) pairs.emplace_back(i, j);
        }
        std::stable_sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) {
            return a.first * a.second < b.first * b.second;
        });
        const auto width = static_cast<double>(size.width), height = static_cast<double>(size.height);
        std::pair<int64_t, int64_t> best{1, 1};
        double least = INFINITY;
        for (const auto& [i, j] : pairs) {
            const double off = std::fabs(width / height - static_cast<double>(i) / static_cast<double>(j));
            const double half = 0.5 * static_cast<double>(crop_) * static_cast<double>(crop_);
            const bool covers = width * height > half * static_cast<double>(i) * static_cast<double>(j);
            if (off < least || (off == least && covers)) best = {i, j}, least = off;
        }
        return best;
    }

    Layout plan(Size size, int64_t max_crops) const {
        if (std::min(size.width, size.height) < min_side_) {
            refuse_media("the picture is " + shown(size) + " pixels; each side needs at least " +
                         std::to_string(min_side_));
        }
        const auto [across, down] = choose_crops(size, max_crops);
        Layout layout{across, down, {across * crop_, down * crop_}, {}};
        const auto width = static_cast<double>(size.width), height = static_cast<double>(size.height);
        const double by_width = static_cast<double>(layout.canvas.width) / width;
        const double by_height = static_cast<double>(layout.canvas.height) / height;
        layout.resized = by_width < by_height
                             ? Size{layout.canvas.width, static_cast<int64_t>(height * by_width)}
                             : Size{static_cast<int64_t>(width * by_height), layout.canvas.height};
        if (std::min(layout.resized.width, layout.resized.height) < min_side_) {
            refuse_media("the picture is " + shown(size) +
                         " pixels, too long and narrow: on the model's canvas it is " +
                         shown(layout.resized) + ", each side needs at least " + std::to_string(min_side_) +
                         "; crop it");
        }
        return layout;
    }

    // The picture resized, with white to its right or below it.
    static Picture on_canvas(const Picture& picture, const Layout& layout) {
        Picture resized = resize(picture, layout.resized.width, layout.resized.height, Filter::bilinear);
        if (resized.width == layout.canvas.width && resized.height == layout.canvas.height) return resized;
        Picture canvas{layout.canvas.width, layout.canvas.height, {}};
        canvas.rgb.assign(static_cast<size_t>(3 * canvas.width * canvas.height), 255);
        for (int64_t y = 0; y < resized.height; ++y) {
            std::copy(resized.at(0, y), resized.at(0, y) + 3 * resized.width, canvas.at(0, y));
        }
        return canvas;
    }

    Prepared inputs(const Picture& canvas, const Layout& layout) const {
        const int64_t crops = 1 + layout.across * layout.down, plane = crop_ * crop_, patches = grid_ * grid_;
        std::vector<float> values(static_cast<size_t>(crops * 3 * plane));
        const std::vector<float> whole = resize_cubic(canvas, crop_);
        for (int64_t at = 0; at < plane; ++at) {
            for (int64_t c = 0; c < 3; ++c) values[index(c * plane + at)] = normal(whole[index(3 * at + c)]);
        }
        // Columns and rows of patches that show the picture; the others are wholly padding.
        const int64_t columns = layout.across * grid_ - (layout.canvas.width - layout.resized.width) / patch_;
        const int64_t rows = layout.down * grid_ - (layout.canvas.height - layout.resized.height) / patch_;
        std::vector<uint8_t> mask(static_cast<size_t>(crops * patches), 0);
        std::vector<int64_t> positions(static_cast<size_t>(crops * patches), 0);
        for (int64_t crop = 0; crop < crops; ++crop) {
            const int64_t row = crop ? (crop - 1) / layout.across : 0,
                          column = crop ? (crop - 1) % layout.across : 0;
            if (crop) copy_crop(canvas, column * crop_, row * crop_, &values[index(crop * 3 * plane)]);
            const int64_t right = crop ? std::clamp<int64_t>(columns - column * grid_, 0, grid_) : grid_;
            const int64_t below = crop ? std::clamp<int64_t>(rows - row * grid_, 0, grid_) : grid_;
            for (int64_t y = 0; y < below; ++y) {
                for (int64_t x = 0; x < right; ++x) {
                    mask[index(crop * patches + y * grid_ + x)] = 1;
                    positions[index(crop * patches + y * grid_ + x)] =
                        (y * grid_ / below) * grid_ + x * grid_ / right;
                }
            }
        }
        const int64_t kept_rows = (rows + pool_ - 1) / pool_, kept_columns = (columns + pool_ - 1) / pool_;
        const int64_t pooled = grid_ / pool_;
        Prepared prepared;
        prepared.num_tokens = kept_rows * kept_columns + kept_rows + 1 + pooled * pooled + pooled;
        prepared.runs.push_back(
            {Array::of("pixel_values", Dtype::float32, {crops, 3, crop_, crop_}, values),
             Array::of("patch_mask", Dtype::boolean, {crops, patches}, mask),
             Array::of("position_ids", Dtype::int64, {crops, patches}, positions),
             Array::of("crop_grid", Dtype::int64, {2}, std::vector<int64_t>{layout.down, layout.across}),
             Array::of("feature_grid", Dtype::int64, {2}, std::vector<int64_t>{kept_rows, kept_columns})});
        return prepared;
    }

    void copy_crop(const Picture& canvas, int64_t left, int64_t top, float* out) const {
        for (int64_t y = 0; y < crop_; ++y) {
            const uint8_t* pixel = canvas.at(left, top + y);
            for (int64_t x = 0; x < crop_; ++x, pixel += 3) {
                for (int64_t c = 0; c < 3; ++c) out[c * crop_ * crop_ + y * crop_ + x] = normal(pixel[c]);
            }
        }
    }

    static float normal(float value) { return (value / 255.0f - 0.5f) / 0.5f; }
    static size_t index(int64_t at) { return static_cast<size_t>(at); }

    int64_t crop_, patch_, pool_, max_crops_, min_side_, grid_ = 0;
};

class FixedImage : public ImageKind {
  public:
    explicit FixedImage(const Field& c)
        : size_(c["size"].integer(1, 4096)), tokens_(c["tokens"].integer(1, 1 << 16)) {
        const auto means = c["mean"].items(), deviations = c["std"].items();
        if (means.size() != 3 || deviations.size() != 3)
            c["mean"].refuse("three numbers, and three of 'std'");
        for (size_t i = 0; i < 3; ++i) {
            mean_[i] = static_cast<float>(means[i].real(-10, 10));
            std_[i] = static_cast<float>(deviations[i].real(1e-3, 10));
        }
        const std::string filter = c["resample"].exists() ? c["resample"].string() : "bicubic";
        if (filter != "bilinear" && filter != "bicubic" && filter != "lanczos") {
            c["resample"].refuse("bilinear, bicubic or lanczos");
        }
        filter_ = filter == "bilinear"  ? Filter::bilinear
                  : filter == "bicubic" ? Filter::bicubic
                                        : Filter::lanczos;
        const std::string fit = c["fit"].exists() ? c["fit"].string() : "stretch";
        if (fit != "stretch" && fit != "crop") c["fit"].refuse("stretch or crop");
        crops_ = fit == "crop";
    }

    Prepared prepare(const Picture& picture, phirt_detail) const override {
        int64_t width = size_, height = size_, left = 0, top = 0;
        if (crops_) {
            const int64_t narrow = std::min(picture.width, picture.height);
            const int64_t wide = std::max(picture.width, picture.height);
            if (wide > kMaxAspect * narrow) {
                refuse_media("the picture is " + shown({picture.width, picture.height}) +
                             " pixels, too long and narrow for this model; crop it");
            }
            const auto other =
                static_cast<int64_t>(static_cast<double>(size_ * wide) / static_cast<double>(narrow));
            (picture.width <= picture.height ? height : width) = other;
            left = (width - size_) / 2, top = (height - size_) / 2;
        }
        const Picture scaled = resize(picture, width, height, filter_);
        const int64_t plane = size_ * size_;
        std::vector<float> values(static_cast<size_t>(3 * plane));
        for (int64_t y = 0; y < size_; ++y) {
            const uint8_t* pixel = scaled.at(left, top + y);
            for (int64_t x = 0; x < size_; ++x, pixel += 3) {
                for (size_t c = 0; c < 3; ++c) {
                    values[c * static_cast<size_t>(plane) + static_cast<size_t>(y * size_ + x)] =
                        (static_cast<float>(pixel[c]) / 255.0f - mean_[c]) / std_[c];
                }
            }
        }
        Prepared prepared;
        prepared.num_tokens = tokens_;
        prepared.runs.push_back({Array::of("pixel_values", Dtype::float32, {1, 3, size_, size_}, values)});
        return prepared;
    }

  private:
    static constexpr int64_t kMaxAspect = 50;
    int64_t size_, tokens_;
    float mean_[3], std_[3];
    Filter filter_ = Filter::bicubic;
    bool crops_ = false;
};

}  // namespace

std::unique_ptr<ImageKind> open_image_kind(const EncoderSpec& spec, const GraphSpec&) {
    if (spec.modality != Modality::image) return nullptr;
    if (spec.kind == "phi4mm_image") return std::make_unique<Phi4mmImage>(spec.constants);
    if (spec.kind == "fixed_image") return std::make_unique<FixedImage>(spec.constants);
    refuse_bundle("manifest.json: the encoder '" + spec.name + "' is of the kind '" + spec.kind +
                  "', accepted: phi4mm_image, fixed_image; update this library");
}

}  // namespace phirt
