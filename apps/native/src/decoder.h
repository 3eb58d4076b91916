// One sequence on the decoder: what is cached of it, prefill in chunks, one token more.
//
// Knows ids, rows of media features and adapters by number. Knows nothing of text. A cached position is valid
// for one adapter and one rotary regime (LongRoPE has short and long factors): where either changes, all is
// run again.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "manifest.h"
#include "runtime.h"
#include "tokenizer.h"

namespace phirt {

// Features of one picture or recording, and where its placeholders stand in the prompt.
struct Span {
    size_t start;
    std::shared_ptr<const std::vector<float>> rows;  // [count, hidden]; the same object is the same content
};

struct Prompt {
    std::vector<TokenId> ids;
    std::vector<Span> spans;
    int64_t adapter = 0;
};

class Decoder {
  public:
    Decoder(std::shared_ptr<const Session> session, const Manifest& manifest);

    // Makes the cache hold exactly the prompt, running what it does not hold yet. Returns the logits [vocab]
    // behind it, valid until the next call; null where `cancelled` was set between two chunks.
    const float* prefill(const Prompt& prompt, const std::atomic<bool>& cancelled);
    // Appends one id. Logits as above.
    const float* decode_step(TokenId id, const std::atomic<bool>& cancelled);

    // How many positions of the prompt need not be run.
    size_t reusable(const Prompt& prompt) const;
    size_t length() const { return cached_.ids.size(); }
    void forget();

  private:
    bool is_long(size_t total) const;
    void truncate(size_t length);
    void reserve(size_t total);
    void run(const TokenId* ids, size_t count, const std::vector<float>& features);
    std::vector<float> features_between(const Prompt& prompt, size_t start, size_t stop) const;

    std::shared_ptr<const Session> session_;
    const Manifest& manifest_;
    Prompt cached_;
    bool long_ = false;
    size_t capacity_ = 0;
    std::vector<std::vector<uint8_t>> buffers_;  // keys and values, layer by layer
    std::vector<std::string> past_, present_;    // their names
    std::vector<float> logits_;
};

}  // namespace phirt
