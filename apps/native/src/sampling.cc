#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "error.h"

namespace phirt {
namespace {

void require(const char* name, double value, double low, double high, bool low_included = true) {
    if (value >= low && value <= high && (low_included || value > low)) return;
    std::string range =
        (low_included ? "from " : "above ") + std::to_string(low) + " to " + std::to_string(high);
    refuse_argument(std::string(name) + " is " + std::to_string(value) + ", accepted: a number " + range);
}

}  // namespace

Sampler::Sampler(const phirt_generation& settings, size_t vocab_size, std::vector<TokenId> suppressed)
    : settings_(settings), suppressed_(std::move(suppressed)), seen_(vocab_size), state_(settings.seed) {
    require("max_new_tokens", settings.max_new_tokens, 1, 1 << 24);
    require("temperature", settings.temperature, 0, 1000);
    require("top_k", settings.top_k, 0, 1 << 22);
    require("top_p", settings.top_p, 0, 1, false);
    require("min_p", settings.min_p, 0, 1);
    require("repetition_penalty", settings.repetition_penalty, 0.01, 100);
    if (!state_) state_ = (static_cast<uint64_t>(std::random_device()()) << 32) | std::random_device()();
}

TokenId Sampler::choose(const float* logits) {
    std::vector<float> work(logits, logits + seen_.size());
    for (const TokenId id : suppressed_) work[static_cast<size_t>(id)] = -INFINITY;
    const float penalty = settings_.repetition_penalty;
    if (penalty != 1.0f) {
        for (size_t id = 0; id < work.size(); ++id) {
            if (seen_[id]) work[id] = work[id] > 0 ? work[id] / penalty : work[id] * penalty;
        }
    }
    const auto best = std::max_element(work.begin(), work.end());
    if (std::any_of(work.begin(), work.end(), [](float x) { return std::isnan(x); }) ||
        !std::isfinite(*best)) {
        refuse_bundle("the model's scores are no numbers; fetch a fresh copy of the package");
    }
    const TokenId id = settings_.temperature == 0.0f ? static_cast<TokenId>(best - work.begin()) : draw(work);
    has_occurred(id);
    return id;
}

TokenId Sampler::draw(std::vector<float>& work) {
    const float best = *std::max_element(work.begin(), work.end());
    const float temperature = std::max(settings_.temperature, 1e-6f);
    for (float& logit : work) logit = (logit - best) / temperature;
    std::vector<TokenId> order(work.size());
    std::iota(order.begin(), order.end(), 0);
    const auto logit = [&](TokenId id) { return work[static_cast<size_t>(id)]; };
    std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) { return logit(a) > logit(b); });
    size_t kept = order.size();
    if (settings_.top_k > 0) kept = std::min(kept, static_cast<size_t>(settings_.top_k));
    std::vector<double> weights(kept);
    for (size_t i = 0; i < kept; ++i) weights[i] = std::exp(static_cast<double>(logit(order[i])));
    double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    if (settings_.top_p < 1.0f) {
        double reached = 0.0;
        size_t count = 0;
        while (count < kept && reached < settings_.top_p * total) reached += weights[count++];
        kept = std::max<size_t>(count, 1);
    }
    if (settings_.min_p > 0.0f) {
        size_t count = 1;
        while (count < kept && weights[count] >= settings_.min_p * weights[0]) ++count;
        kept = count;
    }
    total = std::accumulate(weights.begin(), weights.begin() + static_cast<long>(kept), 0.0);
    double left = uniform() * total;
    size_t at = 0;
    while (at + 1 < kept && left >= weights[at]) left -= weights[at++];
    return order[at];
}

double Sampler::uniform() {
    uint64_t mixed = state_ += 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
    mixed ^= mixed >> 31;
    return static_cast<double>(mixed >> 11) * 0x1p-53;
}

}  // namespace phirt
