// The chat template as fixed pieces, from host.json: what stands before the first turn, between turns, at the
// end.
//
// The exporter has found the pieces by looking at what the template itself makes, and checked them against
// it; where a template cannot be said like this there is no package. Knows pieces of text and control tokens,
// turns and media.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "decoder.h"
#include "json.h"
#include "tokenizer.h"

namespace phirt {

enum class Role { system, user, assistant };

struct Media {
    Modality modality;
    TokenId placeholder;
    size_t num_tokens;
    std::shared_ptr<const std::vector<float>> features;  // under the projector of the rule that holds
};

struct Turn {
    Role role;
    std::string text;
    std::vector<Media> media;  // before the text
    std::vector<TokenId> ids;  // those that an answer was generated with
};

class Rendering {
  public:
    Rendering(const Field& rendering, const Tokenizer& tokenizer);

    // Ids of the conversation up to where the assistant answers, and where each of the media stands. Turns
    // are a system message or none, then questions and answers in turn, a question at the end. Throws Error
    // for a system message where the model takes none.
    Prompt encode(const std::vector<Turn>& turns, const Tokenizer& tokenizer) const;

  private:
    struct Piece {
        std::string text;
        TokenId control = -1;  // or a control token
    };
    using Pieces = std::vector<Piece>;
    struct Variant {
        int media;        // 1 or 0 where it matters whether the conversation has any, else -1
        bool has_system;  // whether the model takes a system message
        Pieces first, before_system, behind_system, reply, next, empty, answer;
    };

    static Pieces read_pieces(const Field& list, const Tokenizer& tokenizer);

    std::vector<Variant> variants_;
    bool trims_[3];  // by role: white space around what was said is left out
};

}  // namespace phirt
