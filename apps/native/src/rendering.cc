#include "rendering.h"

#include "error.h"
#include "unicode.h"

namespace phirt {
namespace {

const char* const kRoles[] = {"system", "user", "assistant"};

// Text as a jinja template's `trim` leaves it; white space behind media stands in the middle.
std::string trimmed(const std::string& text, bool is_first) {
    const CodePoints points = decode_utf8(text);
    const auto space = [&](size_t i) {
        const uint32_t c = points.points[i];
        return is_space(c) || (c >= 0x1C && c <= 0x1F);
    };
    size_t begin = 0, end = points.points.size();
    while (is_first && begin < end && space(begin)) ++begin;
    while (end > begin && space(end - 1)) --end;
    return text.substr(points.starts[begin], points.starts[end] - points.starts[begin]);
}

// Ids of a prompt as they come: text waits until it is known what stands behind it, so that neighbours are
// encoded in one piece.
class Writer {
  public:
    Writer(const Tokenizer& tokenizer, Prompt& prompt) : tokenizer_(tokenizer), prompt_(prompt) {}

    void text(const std::string& more) {
        std::string part = more;
        if (text_.empty() && strip_next_) strip(part, true, false);
        if (!part.empty()) strip_next_ = false;
        text_ += part;
    }

    void ids(const std::vector<TokenId>& ids) {
        if (ids.empty()) return;
        const Tokenizer::Control* first = tokenizer_.control(ids.front());
        const Tokenizer::Control* last = tokenizer_.control(ids.back());
        if (first && first->trims_before) strip(text_, false, true);
        flush();
        prompt_.ids.insert(prompt_.ids.end(), ids.begin(), ids.end());
        strip_next_ = last && last->trims_after;
    }

    void media(const Media& item) {
        flush();
        prompt_.spans.push_back({prompt_.ids.size(), item.features});
        prompt_.ids.insert(prompt_.ids.end(), item.num_tokens, item.placeholder);
        strip_next_ = false;
    }

    void flush() {
        const std::vector<TokenId> ids = tokenizer_.encode(text_);
        prompt_.ids.insert(prompt_.ids.end(), ids.begin(), ids.end());
        text_.clear();
    }

  private:
    static void strip(std::string& text, bool front, bool back) {
        const CodePoints points = decode_utf8(text);
        size_t begin = 0, end = points.points.size();
        while (front && begin < end && is_space(points.points[begin])) ++begin;
        while (back && end > begin && is_space(points.points[end - 1])) --end;
        text = text.substr(points.starts[begin], points.starts[end] - points.starts[begin]);
    }

    const Tokenizer& tokenizer_;
    Prompt& prompt_;
    std::string text_;
    bool strip_next_ = false;
};

}  // namespace

Rendering::Rendering(const Field& rendering, const Tokenizer& tokenizer) {
    for (const Field& one : rendering["variants"].items()) {
        const Field system = one["system"];
        Variant variant{one["media"].exists() ? static_cast<int>(one["media"].boolean()) : -1,
                        system.exists(),
                        read_pieces(one["first"], tokenizer),
                        {},
                        {},
                        read_pieces(one["reply"], tokenizer),
                        read_pieces(one["next"], tokenizer),
                        read_pieces(one["empty"], tokenizer),
                        read_pieces(one["answer"], tokenizer)};
        if (system.exists()) {
            variant.before_system = read_pieces(system["before"], tokenizer);
            variant.behind_system = read_pieces(system["behind"], tokenizer);
        }
        variants_.push_back(std::move(variant));
    }
    const bool fits_all = variants_.size() == 1
                              ? variants_[0].media < 0
                              : variants_.size() == 2 && variants_[0].media == 1 - variants_[1].media &&
                                    variants_[0].media >= 0;
    if (!fits_all)
        rendering["variants"].refuse("one for all conversations, or one with media and one without");
    for (size_t i = 0; i < 3; ++i) trims_[i] = rendering["trims"][kRoles[i]].boolean_or(false);
}

Rendering::Pieces Rendering::read_pieces(const Field& list, const Tokenizer& tokenizer) {
    Pieces pieces;
    if (list.items().size() > 1024) list.refuse("at most 1024 pieces");
    for (const Field& piece : list.items()) {
        if (piece.kind() == Json::string) {
            pieces.push_back({piece.string(1 << 16)});
            continue;
        }
        const auto id = static_cast<TokenId>(piece.integer(0, 1 << 22));
        if (!tokenizer.control(id)) piece.refuse("text, or the id of a control token");
        pieces.push_back({"", id});
    }
    return pieces;
}

Prompt Rendering::encode(const std::vector<Turn>& turns, const Tokenizer& tokenizer) const {
    Prompt prompt;
    Writer writer(tokenizer, prompt);
    const auto write = [&](const Pieces& pieces) {
        for (const Piece& piece : pieces)
            piece.control >= 0 ? writer.ids({piece.control}) : writer.text(piece.text);
    };
    int media = 0;
    for (const Turn& turn : turns) media |= !turn.media.empty();
    const Variant& variant =
        variants_[0].media < 0 || variants_[0].media == media ? variants_[0] : variants_[1];
    const bool system = turns[0].role == Role::system;
    if (system && !variant.has_system)
        refuse_argument("this model takes no system message; create the chat without one");
    write(system ? variant.before_system : variant.first);
    const auto said = [&](const Turn& turn) {
        return trims_[static_cast<size_t>(turn.role)] ? trimmed(turn.text, turn.media.empty()) : turn.text;
    };
    const auto is_empty = [&](const Turn& turn) {
        return turn.role == Role::assistant && said(turn).empty();
    };
    for (size_t i = 0; i < turns.size(); ++i) {
        const Turn& turn = turns[i];
        if (is_empty(turn)) {  // the question before it has left out what stands between both
            write(variant.empty);
            continue;
        }
        const std::string text = said(turn);
        for (const Media& item : turn.media) writer.media(item);
        if (turn.role == Role::assistant && text == turn.text) {
            writer.ids(turn.ids);  // as they were generated, so that what is cached of them stays valid
        } else {
            writer.text(text);
        }
        if (i + 1 == turns.size()) {
            write(variant.answer);
        } else if (turn.role != Role::user) {
            write(turn.role == Role::system ? variant.behind_system : variant.next);
        } else if (!is_empty(turns[i + 1])) {
            write(variant.reply);
        }
    }
    writer.flush();
    if (prompt.ids.empty())
        refuse_bundle("host.json: its rendering makes an empty prompt; export the package again");
    return prompt;
}

}  // namespace phirt
