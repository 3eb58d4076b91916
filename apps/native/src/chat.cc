#include "chat.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "error.h"
#include "sampling.h"
#include "unicode.h"

namespace phirt {
namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Chat::Turnstile::Turnstile(Chat& chat) : chat_(chat) {
    if (chat_.busy_.exchange(true)) {
        throw Error(PHIRT_ERROR_BUSY,
                    "the chat is answering another request; wait for its end, or cancel it");
    }
}

Chat::Chat(std::shared_ptr<Model> model, const std::string* system)
    : model_(std::move(model)), decoder_(model_->decoder, model_->manifest) {
    if (system) history_.push_back({Role::system, clean_utf8(*system), {}, {}});
    // A template without a place for it is to be refused now and not with the first question.
    std::vector<Turn> turns;
    if (system) turns.push_back({Role::system, history_[0].text, {}, {}});
    turns.push_back({Role::user, "", {}, {}});
    model_->rendering.encode(turns, model_->tokenizer);
}

void Chat::reset() {
    while (!history_.empty() && history_.back().role != Role::system) history_.pop_back();
    waiting_.clear();
    decoder_.forget();
}

void Chat::send(const std::string& text, const phirt_generation& generation,
                const std::function<bool(const std::string&)>& on_piece, phirt_result& result) {
    cancelled_ = false;
    result = phirt_result{};
    const double begin = seconds();
    std::vector<Said> history = history_;
    history.push_back({Role::user, clean_utf8(text), waiting_, {}});
    bool image = false, audio = false;
    for (const Said& said : history) {
        for (const auto& item : said.media) (item->modality == Modality::image ? image : audio) = true;
    }
    const Rule& rule = model_->manifest.rule_for(image, audio);
    const Prompt prompt = prompt_for(history, rule);
    result.media_seconds = seconds() - begin;
    result.prompt_tokens = static_cast<int32_t>(prompt.ids.size());
    std::strncpy(result.adapter, rule.adapter.c_str(), sizeof result.adapter - 1);
    prompt_ids = prompt.ids;
    answer.clear();
    answer_ids.clear();
    result.finish = generate(prompt, generation, on_piece, result);
    result.new_tokens = static_cast<int32_t>(answer_ids.size());
    history.push_back({Role::assistant, answer, {}, answer_ids});
    history_ = std::move(history);
    waiting_.clear();
}

Prompt Chat::prompt_for(const std::vector<Said>& history, const Rule& rule) {
    // What does not fit is refused before an encoder runs.
    const auto turns_with = [&](const std::function<Media(Attachment&)>& encode) {
        std::vector<Turn> turns;
        for (const Said& said : history) {
            turns.push_back({said.role, said.text, {}, said.ids});
            for (const auto& item : said.media) turns.back().media.push_back(encode(*item));
        }
        return model_->rendering.encode(turns, model_->tokenizer);
    };
    const Prompt measured = turns_with([](Attachment& item) {
        return Media{item.modality, 0, static_cast<size_t>(item.prepared.num_tokens), nullptr};
    });
    const auto context = static_cast<size_t>(model_->manifest.geometry.context);
    if (measured.ids.size() > context) {
        throw Error(PHIRT_ERROR_CONTEXT, "the conversation needs " + std::to_string(measured.ids.size()) +
                                             " tokens, the model's context has " + std::to_string(context) +
                                             "; shorten it, use fewer media, or start a new one");
    }
    Prompt prompt = turns_with([&](Attachment& item) { return model_->encoded(item, rule); });
    prompt.adapter = rule.adapter_id;
    return prompt;
}

phirt_finish Chat::generate(const Prompt& prompt, const phirt_generation& generation,
                            const std::function<bool(const std::string&)>& on_piece, phirt_result& result) {
    const Manifest& manifest = model_->manifest;
    Sampler sampler(generation, static_cast<size_t>(manifest.geometry.vocab_size), manifest.placeholders);
    for (const TokenId id : prompt.ids) sampler.has_occurred(id);
    result.cached_tokens = static_cast<int32_t>(decoder_.reusable(prompt));
    double begin = seconds();
    const float* logits = decoder_.prefill(prompt, cancelled_);
    result.prefill_seconds = seconds() - begin;
    begin = seconds();
    Utf8Stream stream;
    phirt_finish finish = PHIRT_FINISH_CANCELLED;
    while (logits && !cancelled_) {
        const TokenId token = sampler.choose(logits);
        if (std::count(manifest.eos.begin(), manifest.eos.end(), token)) {
            finish = PHIRT_FINISH_STOP;
            break;
        }
        answer_ids.push_back(token);
        const std::string piece = stream.feed(model_->tokenizer.bytes_of(token));
        answer += piece;
        if (!piece.empty() && !on_piece(piece)) break;
        if (answer_ids.size() == static_cast<size_t>(generation.max_new_tokens)) {
            finish = PHIRT_FINISH_LENGTH;
            break;
        }
        if (decoder_.length() == static_cast<size_t>(manifest.geometry.context)) {
            finish = PHIRT_FINISH_CONTEXT;
            break;
        }
        if (!cancelled_) logits = decoder_.decode_step(token, cancelled_);
    }
    result.decode_seconds = seconds() - begin;
    return finish;
}

}  // namespace phirt
