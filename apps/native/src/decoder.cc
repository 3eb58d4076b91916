#include "decoder.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace phirt {
namespace {

constexpr size_t kChunk = 128;  // what int4 kernels are fastest at, and the grain of cancelling
constexpr size_t kFirstCapacity = 256;

}  // namespace

Decoder::Decoder(std::shared_ptr<const Session> session, const Manifest& manifest)
    : session_(std::move(session)),
      manifest_(manifest),
      logits_(static_cast<size_t>(manifest.geometry.vocab_size)) {
    for (int64_t layer = 0; layer < manifest.geometry.num_layers; ++layer) {
        for (const char* part : {".key", ".value"}) {
            past_.push_back("past_key_values." + std::to_string(layer) + part);
            present_.push_back("present." + std::to_string(layer) + part);
        }
    }
    buffers_.resize(past_.size());
}

void Decoder::forget() {
    truncate(0);
    for (auto& buffer : buffers_) std::vector<uint8_t>().swap(buffer);
    capacity_ = 0;
    long_ = false;
}

void Decoder::truncate(size_t length) {
    cached_.ids.resize(length);
    auto& spans = cached_.spans;
    spans.erase(
        std::remove_if(spans.begin(), spans.end(), [&](const Span& span) { return span.start >= length; }),
        spans.end());
}

bool Decoder::is_long(size_t total) const {
    const Geometry& geometry = manifest_.geometry;
    return geometry.has_long_regime && total > static_cast<size_t>(geometry.original_context);
}

size_t Decoder::reusable(const Prompt& prompt) const {
    if (prompt.adapter != cached_.adapter || is_long(prompt.ids.size()) != long_) return 0;
    const size_t most = std::min(prompt.ids.size() - 1, cached_.ids.size());
    const auto same =
        std::mismatch(prompt.ids.begin(), prompt.ids.begin() + static_cast<long>(most), cached_.ids.begin());
    auto keep = static_cast<size_t>(same.first - prompt.ids.begin());
    // Placeholders look alike: the media under them must be the same, too.
    for (size_t i = 0; i < std::max(prompt.spans.size(), cached_.spans.size()); ++i) {
        const Span* ours = i < cached_.spans.size() ? &cached_.spans[i] : nullptr;
        const Span* theirs = i < prompt.spans.size() ? &prompt.spans[i] : nullptr;
        if (ours && theirs && ours->start == theirs->start && ours->rows == theirs->rows) continue;
        if (ours) keep = std::min(keep, ours->start);
        if (theirs) keep = std::min(keep, theirs->start);
        break;
    }
    return keep;
}

const float* Decoder::prefill(const Prompt& prompt, const std::atomic<bool>& cancelled) {
    const size_t total = prompt.ids.size(), context = static_cast<size_t>(manifest_.geometry.context);
    if (total > context) {
        throw Error(PHIRT_ERROR_CONTEXT, "the conversation needs " + std::to_string(total) +
                                             " tokens, the model's context " + "has " +
                                             std::to_string(context) +
                                             "; shorten it, use fewer media, or start a new one");
    }
    const size_t keep = reusable(prompt);
    truncate(keep);
    cached_.spans = prompt.spans;
    cached_.adapter = prompt.adapter;
    long_ = is_long(total);
    reserve(long_ ? std::max(total, static_cast<size_t>(manifest_.geometry.original_context) + 1) : total);
    for (size_t start = keep; start < total; start += kChunk) {
        if (cancelled) {
            truncate(cached_.ids.size());
            return nullptr;
        }
        const size_t stop = std::min(start + kChunk, total);
        run(&prompt.ids[start], stop - start, features_between(prompt, start, stop));
    }
    return logits_.data();
}

const float* Decoder::decode_step(TokenId id, const std::atomic<bool>& cancelled) {
    const size_t total = length() + 1;
    if (is_long(total) != long_) {  // every cached key was rotated by factors that no longer hold
        Prompt longer = cached_;
        longer.ids.push_back(id);
        return prefill(longer, cancelled);
    }
    reserve(long_ ? std::max(total, static_cast<size_t>(manifest_.geometry.original_context) + 1) : total);
    run(&id, 1, {});
    return logits_.data();
}

std::vector<float> Decoder::features_between(const Prompt& prompt, size_t start, size_t stop) const {
    const auto hidden = static_cast<size_t>(manifest_.geometry.hidden_size);
    std::vector<float> rows;
    for (const Span& span : prompt.spans) {
        const size_t end = span.start + span.rows->size() / hidden;
        const size_t first = std::max(start, span.start), last = std::min(stop, end);
        if (first >= last) continue;
        const float* from = span.rows->data();
        rows.insert(rows.end(), from + (first - span.start) * hidden, from + (last - span.start) * hidden);
    }
    return rows;
}

// Buffers double, so that a short conversation does not pay for the longest.
void Decoder::reserve(size_t total) {
    if (total <= capacity_) return;
    size_t capacity = std::max(capacity_, kFirstCapacity);
    while (capacity < total) capacity *= 2;
    capacity = std::max(std::min(capacity, static_cast<size_t>(manifest_.geometry.context)), total);
    const auto heads = static_cast<size_t>(manifest_.geometry.num_kv_heads);
    const size_t position = static_cast<size_t>(manifest_.geometry.head_dim) * size_of(manifest_.cache_dtype);
    try {
        for (auto& buffer : buffers_) {
            std::vector<uint8_t> grown(heads * capacity * position);
            for (size_t head = 0; head < heads && length(); ++head) {
                std::memcpy(&grown[head * capacity * position], &buffer[head * capacity_ * position],
                            length() * position);
            }
            buffer.swap(grown);
        }
    } catch (const std::bad_alloc&) {
        forget();
        throw;
    }
    capacity_ = capacity;
}

void Decoder::run(const TokenId* ids, size_t count, const std::vector<float>& features) {
    const Geometry& geometry = manifest_.geometry;
    const size_t stop = length() + count;
    std::vector<int64_t> input(ids, ids + count);
    int64_t route = cached_.adapter, num_logits = 1;
    auto seqlens_k = static_cast<int32_t>(stop - 1);
    // The graph picks its rotary factors by the total; a chunk of a longer whole announces that.
    auto total = static_cast<int32_t>(
        long_ ? std::max<int64_t>(static_cast<int64_t>(stop), geometry.original_context + 1)
              : static_cast<int64_t>(stop));
    const int64_t rows = static_cast<int64_t>(features.size()) / geometry.hidden_size;
    std::vector<Value> owned;
    std::vector<const char*> names{"input_ids",  "media_features", "route",
                                   "num_logits", "seqlens_k",      "total_sequence_length"};
    owned.push_back(value_over(input.data(), 8 * count, {1, static_cast<int64_t>(count)}, Dtype::int64));
    owned.push_back(value_over(const_cast<float*>(features.data()), features.size() * sizeof(float),
                               {rows, geometry.hidden_size}, Dtype::float32));
    owned.push_back(value_over(&route, sizeof route, {1}, Dtype::int64));
    owned.push_back(value_over(&num_logits, sizeof num_logits, {1}, Dtype::int64));
    owned.push_back(value_over(&seqlens_k, sizeof seqlens_k, {1}, Dtype::int32));
    owned.push_back(value_over(&total, sizeof total, {1}, Dtype::int32));
    std::vector<const char*> output_names{"logits"};
    const Value logits = value_over(logits_.data(), logits_.size() * sizeof(float),
                                    {1, 1, geometry.vocab_size}, Dtype::float32);
    std::vector<OrtValue*> outputs{logits.get()};
    const std::vector<int64_t> shape{1, geometry.num_kv_heads, static_cast<int64_t>(capacity_),
                                     geometry.head_dim};
    for (size_t i = 0; i < buffers_.size();
         ++i) {  // past and present are one buffer: new entries go behind the old
        owned.push_back(value_over(buffers_[i].data(), buffers_[i].size(), shape, manifest_.cache_dtype));
        names.push_back(past_[i].c_str());
        output_names.push_back(present_[i].c_str());
        outputs.push_back(owned.back().get());
    }
    std::vector<const OrtValue*> inputs;
    for (const Value& value : owned) inputs.push_back(value.get());
    session_->run(names, inputs, output_names, outputs);
    cached_.ids.insert(cached_.ids.end(), ids, ids + count);
}

}  // namespace phirt
