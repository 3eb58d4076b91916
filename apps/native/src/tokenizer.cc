#include "tokenizer.h"

#include <algorithm>
#include <queue>

#include "error.h"
#include "unicode.h"

namespace phirt {
namespace {

constexpr int64_t kMaxIds = int64_t{1} << 22;
// What GPT-2 cuts text by; a ByteLevel step with `use_regex` brings it.
const char* const kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
// Tokens of this name are part of an answer: an app reads tool calls between them.
const char* const kVisible[] = {"<|tool_call|>", "<|/tool_call|>", "<tool_call>",
                                "</tool_call>",  "[TOOL_CALLS]",   "<|python_tag|>"};

using Span = std::pair<size_t, size_t>;

std::string bytes_by_level(std::string_view name) {
    static const std::unordered_map<uint32_t, uint8_t> bytes = [] {
        std::unordered_map<uint32_t, uint8_t> found;
        for (size_t i = 0; i < 256; ++i) found[byte_alphabet()[i]] = static_cast<uint8_t>(i);
        return found;
    }();
    std::string text;
    for (const uint32_t point : decode_utf8(name).points) {
        const auto at = bytes.find(point);
        if (at != bytes.end()) text.push_back(static_cast<char>(at->second));
    }
    return text;
}

uint64_t pair_key(TokenId left, TokenId right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// `span` of the text cut at matches: what matches and what lies between are pieces of their own, or what
// matches is left out.
void cut_by_pattern(const Regex& pattern, bool removed, bool invert, const std::vector<uint32_t>& text,
                    Span span, std::vector<Span>& out) {
    // Looking around ends where the piece ends, as the library hands each piece to the expression alone.
    const std::vector<uint32_t> part(text.begin() + static_cast<long>(span.first),
                                     text.begin() + static_cast<long>(span.second));
    const auto put = [&](size_t begin, size_t end, bool matches) {
        if (begin < end && !(removed && matches != invert))
            out.emplace_back(span.first + begin, span.first + end);
    };
    size_t done = 0, from = 0;
    while (from <= part.size()) {
        const auto found = pattern.find(part, from);
        if (!found) break;
        put(done, found->first, false);
        put(found->first, found->second, true);
        done = found->second;
        from = found->second > found->first ? found->second : found->second + 1;
    }
    put(done, part.size(), false);
}

void cut_by_digits(bool individual, const std::vector<uint32_t>& text, Span span, std::vector<Span>& out) {
    const auto is_digit = [&](size_t i) { return (category_mask("N") >> category_of(text[i]) & 1) != 0; };
    for (size_t begin = span.first; begin < span.second;) {
        size_t end = begin + 1;
        const bool digit = is_digit(begin);
        while (end < span.second && is_digit(end) == digit && !(digit && individual)) ++end;
        out.emplace_back(begin, end);
        begin = end;
    }
}

}  // namespace

const std::vector<uint32_t>& byte_alphabet() {
    static const std::vector<uint32_t> alphabet = [] {
        std::vector<uint32_t> points(256);
        uint32_t other = 256;
        for (uint32_t byte = 0; byte < 256; ++byte) {
            const bool printable =
                (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
            points[byte] = printable ? byte : other++;
        }
        return points;
    }();
    return alphabet;
}

Tokenizer::Tokenizer(const Field& document, int64_t vocab_size) {
    if (document["normalizer"].exists()) document["normalizer"].refuse("none: text as it is");
    for (const char* key : {"truncation", "padding"}) {
        if (document[key].exists()) document[key].refuse("none");
    }
    if (document["added_tokens"].exists()) {
        for (const Field& token : document["added_tokens"].items()) {
            const auto id = static_cast<TokenId>(token["id"].integer(0, vocab_size - 1));
            const std::string name = token["content"].string(4096);
            if (name.empty()) token["content"].refuse("a name");
            controls_[id] = {name, token["special"].boolean_or(false), token["lstrip"].boolean_or(false),
                             token["rstrip"].boolean_or(false)};
        }
    }
    read_pre_tokenizer(document["pre_tokenizer"]);
    if (!byte_level_) document["pre_tokenizer"].refuse("one with a ByteLevel step");
    read_decoder(document["decoder"]);
    const Field model = document["model"];
    if (model["type"].exists() && model["type"].string() != "BPE") model["type"].refuse("BPE");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        if (model[key].exists() && !model[key].string().empty()) model[key].refuse("none");
    }
    if (model["dropout"].exists() && model["dropout"].real(0, 1) > 0) model["dropout"].refuse("none");
    if (model["byte_fallback"].boolean_or(false)) model["byte_fallback"].refuse("false");
    ignore_merges_ = model["ignore_merges"].boolean_or(false);
    read_vocabulary(model, vocab_size);
    read_merges(model);
}

void Tokenizer::read_pre_tokenizer(const Field& step) {
    const std::string type = step["type"].string();
    if (type == "Sequence") {
        if (step["pretokenizers"].items().size() > 32) step["pretokenizers"].refuse("at most 32 steps");
        for (const Field& one : step["pretokenizers"].items()) {
            if (one["type"].string() == "Sequence") one.refuse("a step that is no sequence itself");
            read_pre_tokenizer(one);
        }
        return;
    }
    if (byte_level_) step.refuse("nothing behind a ByteLevel step");
    if (type == "ByteLevel") {
        byte_level_ = true;
        if (step["add_prefix_space"].boolean_or(true)) step["add_prefix_space"].refuse("false");
        if (step["use_regex"].boolean_or(true)) cuts_.push_back({Cut::split, Regex(kGpt2)});
    } else if (type == "Digits") {
        cuts_.push_back({Cut::digits, std::nullopt});
        cuts_.back().individual = step["individual_digits"].boolean_or(false);
    } else if (type == "Split") {
        const Field pattern = step["pattern"]["Regex"];
        const std::string behavior = step["behavior"].string();
        if (behavior != "Isolated" && behavior != "Removed") step["behavior"].refuse("Isolated or Removed");
        cuts_.push_back({Cut::split, Regex(pattern.string(1 << 14)), behavior == "Removed"});
        cuts_.back().invert = step["invert"].boolean_or(false);
    } else {
        step["type"].refuse("Sequence, Split, Digits or ByteLevel");
    }
}

void Tokenizer::read_decoder(const Field& decoder) const {
    if (decoder["type"].string() != "ByteLevel") decoder["type"].refuse("ByteLevel");
}

void Tokenizer::read_vocabulary(const Field& model, int64_t vocab_size) {
    const Field vocabulary = model["vocab"];
    if (vocabulary.kind() != Json::object) vocabulary.refuse("an object");
    const auto& members = vocabulary.raw().members;
    if (static_cast<int64_t>(members.size()) > kMaxIds) vocabulary.refuse("at most 4194304 tokens");
    std::unordered_map<std::string_view, bool> hidden;
    for (const auto& [id, token] : controls_) hidden[token.name] = true;
    int64_t highest = -1;
    std::vector<std::pair<std::string_view, TokenId>> listed;
    listed.reserve(members.size());
    for (const auto& [name, value] : members) {
        const int64_t id = Field(&value, vocabulary.where()).integer(0, vocab_size - 1);
        highest = std::max(highest, id);
        if (!hidden.count(name)) listed.emplace_back(name, static_cast<TokenId>(id));
    }
    names_.resize(static_cast<size_t>(highest + 1));
    for (const auto& [name, id] : listed) names_[static_cast<size_t>(id)] = std::string(name);
    ids_.reserve(listed.size());
    for (const auto& [name, id] : listed) {
        if (names_[static_cast<size_t>(id)] != name) vocabulary.refuse("an id for one token alone");
        ids_[names_[static_cast<size_t>(id)]] = id;
    }
    for (size_t byte = 0; byte < 256; ++byte) {
        std::string name;
        append_utf8(name, byte_alphabet()[byte]);
        const auto at = ids_.find(name);
        of_byte_[byte] = at == ids_.end() ? -1 : at->second;
    }
}

void Tokenizer::read_merges(const Field& model) {
    const Field merges = model["merges"];
    if (merges.kind() != Json::array) merges.refuse("a list");
    merges_.reserve(merges.raw().items.size());
    uint32_t rank = 0;
    std::string whole;
    for (const Json& entry : merges.raw().items) {
        std::string_view left, right;
        if (entry.kind == Json::string) {
            const size_t space = entry.text.find(' ');
            if (entry.text.substr(0, 8) == "#version") continue;
            if (space == std::string_view::npos) merges.refuse("pairs of tokens");
            left = entry.text.substr(0, space), right = entry.text.substr(space + 1);
        } else if (entry.kind == Json::array && entry.items.size() == 2) {
            left = entry.items[0].text, right = entry.items[1].text;
        }
        whole.assign(left).append(right);
        const auto a = ids_.find(left), b = ids_.find(right), both = ids_.find(whole);
        if (left.empty() || right.empty() || a == ids_.end() || b == ids_.end() || both == ids_.end()) {
            merges.refuse("pairs of tokens of the vocabulary that make one");
        }
        merges_[pair_key(a->second, b->second)] = {rank++, both->second};
    }
}

std::vector<TokenId> Tokenizer::encode(std::string_view raw) const {
    const std::string text = clean_utf8(raw);
    const CodePoints points = decode_utf8(text);
    std::vector<Span> spans, next;
    if (!points.points.empty()) spans.emplace_back(0, points.points.size());
    for (const Cut& cut : cuts_) {
        next.clear();
        for (const Span& span : spans) {
            if (cut.kind == Cut::digits) {
                cut_by_digits(cut.individual, points.points, span, next);
            } else {
                cut_by_pattern(*cut.pattern, cut.removed, cut.invert, points.points, span, next);
            }
        }
        spans.swap(next);
    }
    std::vector<TokenId> ids;
    const std::string_view view = text;
    for (const auto& [begin, end] : spans) {
        const size_t first = points.starts[begin];
        encode_word(view.substr(first, points.starts[end] - first), ids);
    }
    return ids;
}

void Tokenizer::encode_word(std::string_view word, std::vector<TokenId>& ids) const {
    if (ignore_merges_) {
        std::string name;
        for (const char byte : word) append_utf8(name, byte_alphabet()[static_cast<uint8_t>(byte)]);
        const auto at = ids_.find(name);
        if (at != ids_.end()) {
            ids.push_back(at->second);
            return;
        }
    }
    std::vector<TokenId> symbols;
    symbols.reserve(word.size());
    for (const char byte : word) {
        const TokenId id = of_byte_[static_cast<uint8_t>(byte)];
        if (id >= 0) symbols.push_back(id);  // a byte that is no token is left out
    }
    merge(symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
}

// Joins pairs of neighbours, the earliest learned first and of equals the leftmost, until no pair was
// learned.
void Tokenizer::merge(std::vector<TokenId>& symbols) const {
    struct Candidate {
        uint32_t rank;
        size_t left;
        TokenId first, second;  // what stood there when it was found
        bool operator<(const Candidate& other) const {
            return rank != other.rank ? rank > other.rank : left > other.left;
        }
    };
    const size_t count = symbols.size(), none = SIZE_MAX;
    if (count < 2) return;
    std::vector<size_t> before(count), behind(count);
    for (size_t i = 0; i < count; ++i) before[i] = i - 1, behind[i] = i + 1 < count ? i + 1 : none;
    before[0] = none;
    std::priority_queue<Candidate> queue;
    const auto consider = [&](size_t left) {
        if (left == none || behind[left] == none) return;
        const TokenId first = symbols[left], second = symbols[behind[left]];
        const auto at = merges_.find(pair_key(first, second));
        if (at != merges_.end()) queue.push({at->second.rank, left, first, second});
    };
    for (size_t i = 0; i + 1 < count; ++i) consider(i);
    while (!queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        const size_t left = best.left, right = behind[left];
        if (symbols[left] != best.first || right == none || symbols[right] != best.second) continue;
        symbols[left] = merges_.at(pair_key(best.first, best.second)).id;
        symbols[right] = -1;
        behind[left] = behind[right];
        if (behind[right] != none) before[behind[right]] = left;
        consider(before[left]);
        consider(left);
    }
    symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

std::string Tokenizer::bytes_of(TokenId id) const {
    if (const Control* token = control(id)) {
        bool visible = !token->special;
        for (const char* name : kVisible) visible = visible || token->name == name;
        return visible ? token->name : std::string();
    }
    const bool known = id >= 0 && static_cast<size_t>(id) < names_.size();
    return known ? bytes_by_level(names_[static_cast<size_t>(id)]) : std::string();
}

const Tokenizer::Control* Tokenizer::control(TokenId id) const {
    const auto at = controls_.find(id);
    return at == controls_.end() ? nullptr : &at->second;
}

}  // namespace phirt
