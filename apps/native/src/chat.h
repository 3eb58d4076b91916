// A conversation: its history, the media that wait for the next turn, and one answer at a time.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "decoder.h"
#include "model.h"
#include "phirt.h"

namespace phirt {

class Chat {
  public:
    Chat(std::shared_ptr<Model> model, const std::string* system);

    void reset();
    void attach(Attachment attachment) {
        waiting_.push_back(std::make_shared<Attachment>(std::move(attachment)));
    }
    void discard_media() { waiting_.clear(); }

    // Computes the answer; `on_piece` returns false to end it.
    void send(const std::string& text, const phirt_generation& generation,
              const std::function<bool(const std::string&)>& on_piece, phirt_result& result);
    void cancel() { cancelled_ = true; }

    Model& model() const { return *model_; }

    // Nobody else uses the chat while one of these lives. Throws Error where somebody does.
    class Turnstile {
      public:
        explicit Turnstile(Chat& chat);
        ~Turnstile() { chat_.busy_ = false; }
        Turnstile(const Turnstile&) = delete;

      private:
        Chat& chat_;
    };

    std::string answer;
    std::vector<TokenId> answer_ids, prompt_ids;

  private:
    struct Said {
        Role role;
        std::string text;
        std::vector<std::shared_ptr<Attachment>> media;
        std::vector<TokenId> ids;
    };

    Prompt prompt_for(const std::vector<Said>& history, const Rule& rule);
    phirt_finish generate(const Prompt& prompt, const phirt_generation& generation,
                          const std::function<bool(const std::string&)>& on_piece, phirt_result& result);

    std::shared_ptr<Model> model_;
    Decoder decoder_;
    std::vector<Said> history_;
    std::vector<std::shared_ptr<Attachment>> waiting_;
    std::atomic<bool> busy_{false}, cancelled_{false};
};

}  // namespace phirt
