// From logits to the next id, in the order of phirt/generate/sampling.py: penalty, temperature, top-k, top-p,
// min-p.
//
// Knows numbers only. Draws come from a generator of its own (SplitMix64), so that a seed gives the same
// answer on every device, though not that of Python's phirt.
#pragma once

#include <cstdint>
#include <vector>

#include "phirt.h"
#include "tokenizer.h"

namespace phirt {

class Sampler {
  public:
    // Throws Error for settings out of range. `suppressed` ids are never chosen.
    Sampler(const phirt_generation& settings, size_t vocab_size, std::vector<TokenId> suppressed);

    void has_occurred(TokenId id) { seen_[static_cast<size_t>(id)] = true; }

    // The next id, which has then occurred.
    TokenId choose(const float* logits);

  private:
    TokenId draw(std::vector<float>& work);
    double uniform();

    phirt_generation settings_;
    std::vector<TokenId> suppressed_;
    std::vector<bool> seen_;
    uint64_t state_;
};

}  // namespace phirt
