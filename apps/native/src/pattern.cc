#include "pattern.h"

#include "error.h"
#include "unicode.h"

namespace phirt {
namespace {

constexpr int kMaxDepth = 32;
constexpr uint32_t kLast = 0x10FFFF;

using Set = Regex::Set;

class Parser {
  public:
    explicit Parser(const std::string& pattern)
        : clean_(clean_utf8(pattern)), text_(decode_utf8(clean_).points) {}

    PatternTree parse() {
        PatternTree all = choice(false, 0);
        if (at_ < text_.size()) refuse("a ')' too many");
        return all;
    }

  private:
    [[noreturn]] void refuse(const std::string& what) const {
        refuse_bundle(
            "tokenizer.json: the pattern '" + clean_.substr(0, 200) + "' has " + what +
            ", which this library does not know; export the package again with this version's phirt");
    }

    bool more() const { return at_ < text_.size(); }
    uint32_t peek() const { return more() ? text_[at_] : 0; }
    uint32_t next() {
        if (!more()) refuse("an end in the midst of something");
        return text_[at_++];
    }
    bool take(const char* ascii) {
        size_t n = 0;
        for (; ascii[n]; ++n)
            if (at_ + n >= text_.size() || text_[at_ + n] != static_cast<unsigned char>(ascii[n]))
                return false;
        at_ += n;
        return true;
    }

    PatternTree choice(bool fold, int depth) {
        if (depth > kMaxDepth) refuse("too many groups inside each other");
        auto node = std::make_unique<PatternNode>();
        node->kind = PatternNode::choice;
        do {
            node->parts.push_back(sequence(fold, depth));
        } while (take("|"));
        return node->parts.size() == 1 ? std::move(node->parts[0]) : std::move(node);
    }

    PatternTree sequence(bool fold, int depth) {
        auto node = std::make_unique<PatternNode>();
        while (more() && peek() != '|' && peek() != ')') {
            if (take("(?i)")) {  // holds to the end of the group
                fold = true;
                continue;
            }
            node->parts.push_back(quantified(atom(fold, depth)));
        }
        return node;
    }

    PatternTree atom(bool fold, int depth) {
        auto node = std::make_unique<PatternNode>();
        const uint32_t c = next();
        if (c == '(') return group(fold, depth);
        if (c == '.') {
            node->kind = PatternNode::any;
            return node;
        }
        if (c == '^' || c == '$' || c == '*' || c == '+' || c == '?')
            refuse("'" + std::string(1, char(c)) + "' there");
        node->kind = PatternNode::set;
        if (c == '[') {
            node->chars = char_class(fold, depth);
        } else if (c == '\\') {
            node->chars = escape(fold);
        } else {
            add_range(node->chars, c, c, fold);
        }
        node->chars.finish();
        return node;
    }

    PatternTree group(bool fold, int depth) {
        PatternNode::Kind kind = PatternNode::sequence;
        if (take("?:")) {
        } else if (take("?i:")) {
            fold = true;
        } else if (take("?-i:")) {
            fold = false;
        } else if (take("?=")) {
            kind = PatternNode::ahead;
        } else if (take("?!")) {
            kind = PatternNode::not_ahead;
        } else if (take("?>")) {
            kind = PatternNode::atomic;
        } else if (peek() == '?') {
            refuse("a group of a kind");
        }
        auto node = std::make_unique<PatternNode>();
        node->kind = kind;
        node->parts.push_back(choice(fold, depth + 1));
        if (!take(")")) refuse("a group without an end");
        return node;
    }

    PatternTree quantified(PatternTree inner) {
        uint32_t least, most;
        bool braces = false;
        if (take("?")) {
            least = 0, most = 1;
        } else if (take("*")) {
            least = 0, most = kUnbounded;
        } else if (take("+")) {
            least = 1, most = kUnbounded;
        } else if (peek() == '{' && more()) {
            ++at_;
            least = peek() == ',' ? 0 : number();
            most = take(",") ? (peek() == '}' ? kUnbounded : number()) : least;
            if (!take("}") || least > most || least > 1000 || (most != kUnbounded && most > 1000))
                refuse("a '{'");
            braces = true;
        } else {
            return inner;
        }
        auto node = std::make_unique<PatternNode>();
        node->kind = PatternNode::repeat;
        node->least = least, node->most = most;
        node->lazy = take("?");
        node->possessive = !node->lazy && !braces && take("+");
        if (inner->may_be_empty()) refuse("a repetition of what may be empty");
        node->parts.push_back(std::move(inner));
        // In Ruby's syntax, which the library reads, a '+' behind braces repeats what they repeat.
        if (braces && !node->lazy && least > 0 && peek() == '+') return quantified(std::move(node));
        if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{')
            refuse("a repetition of a repetition");
        return node;
    }

    uint32_t number() {
        uint32_t value = 0, digits = 0;
        for (; more() && peek() >= '0' && peek() <= '9'; ++digits) value = value * 10 + (next() - '0');
        if (digits == 0 || digits > 4) refuse("a '{' without a number");
        return value;
    }

    Set char_class(bool fold, int depth) {
        if (depth > kMaxDepth) refuse("too many classes inside each other");
        Set set;
        set.negated = take("^");
        std::vector<Set> joined;  // the sides of `&&` so far
        bool begins = true;
        for (;; begins = false) {
            if (!more()) refuse("a class without an end");
            if (peek() == ']' && !begins) break;
            if (take("&&")) {
                const bool negated = set.negated;
                set.negated = false;
                set.finish();
                joined.push_back(std::move(set));
                set = Set();
                set.negated = negated;
                continue;
            }
            const uint32_t c = next();
            if (c == '[') {
                if (peek() == ':') refuse("a POSIX class");
                set.any_of.push_back(char_class(fold, depth + 1));
                set.any_of.back().finish();
                continue;
            }
            uint32_t low = c;
            if (c == '\\') {
                Set escaped = escape(false);
                if (!single(escaped)) {
                    escaped.finish();
                    set.any_of.push_back(std::move(escaped));
                    continue;
                }
                low = escaped.ranges[0].first;
            }
            uint32_t high = low;
            if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
                ++at_;
                high = next();
                if (high == '[') refuse("a class as the end of a range");
                if (high == '\\') {
                    const Set escaped = escape(false);
                    if (!single(escaped)) refuse("a range up to a class");
                    high = escaped.ranges[0].first;
                }
                if (high < low) refuse("a range that ends before it begins");
            }
            add_range(set, low, high, fold);
        }
        ++at_;
        if (joined.empty()) return set;
        const bool negated = set.negated;
        set.negated = false;
        set.finish();
        joined.push_back(std::move(set));
        Set all;
        all.negated = negated;
        all.all_of = std::move(joined);
        return all;
    }

    static bool single(const Set& set) {
        return set.ranges.size() == 1 && set.ranges[0].first == set.ranges[0].second && !set.categories &&
               !set.spaces && !set.negated;
    }

    Set escape(bool fold) {
        Set set;
        const uint32_t c = next();
        switch (c) {
            case 's':
                set.spaces = true;
                return set;
            case 'S':
                set.spaces = set.negated = true;
                return set;
            case 'd':
                set.categories = category_mask("Nd");
                return set;
            case 'D':
                set.categories = category_mask("Nd");
                set.negated = true;
                return set;
            case 'p':
            case 'P':
                return property(c == 'P');
            case 'n':
                add_range(set, '\n', '\n', false);
                return set;
            case 'r':
                add_range(set, '\r', '\r', false);
                return set;
            case 't':
                add_range(set, '\t', '\t', false);
                return set;
            case 'f':
                add_range(set, '\f', '\f', false);
                return set;
            case 'v':
                add_range(set, '\v', '\v', false);
                return set;
            case 'x':
            case 'u': {
                const uint32_t point = hex(c == 'u');
                add_range(set, point, point, fold);
                return set;
            }
            default:
                break;
        }
        const bool letter_or_digit = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
        if (letter_or_digit || (c >= '0' && c <= '9') || c >= 0x80) refuse("an escape");
        add_range(set, c, c, fold);
        return set;
    }

    uint32_t hex(bool four) {
        const bool braces = !four && take("{");
        uint32_t value = 0, digits = 0;
        for (; digits < (four ? 4u : braces ? 8u : 2u); ++digits) {
            const uint32_t c = peek();
            const bool digit = c >= '0' && c <= '9', letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'f';
            if (!digit && !letter) break;
            value = value << 4 | (digit ? c - '0' : (c | 0x20) - 'a' + 10);
            ++at_;
        }
        const bool ended = braces ? take("}") : digits == (four ? 4u : 2u);
        if (!ended || digits == 0 || value > kLast || (!four && !braces && value > 0x7F))
            refuse("an escape by number");
        return value;
    }

    Set property(bool negated) {
        Set set;
        std::string name;
        if (take("{")) {
            if (take("^")) negated = !negated;
            while (peek() != '}') {
                const uint32_t c = next();
                if (c >= 0x80 || name.size() > 40) refuse("a property");
                name.push_back(static_cast<char>(c));
            }
            ++at_;
        }
        set.categories = category_mask(name);
        set.negated = negated;
        if (!set.categories) refuse("the property '" + name + "'");
        return set;
    }

    // Case is folded for ASCII letters, with the two other characters that fold to one of them.
    void add_range(Set& set, uint32_t low, uint32_t high, bool fold) {
        set.ranges.emplace_back(low, high);
        if (!fold) return;
        if (high >= 0x80) refuse("'(?i' around other letters than ASCII's");
        for (uint32_t c = low; c <= high; ++c) {
            const bool upper = c >= 'A' && c <= 'Z', lower = c >= 'a' && c <= 'z';
            if (upper || lower) set.ranges.emplace_back(c ^ 0x20, c ^ 0x20);
            if ((c | 0x20) == 's' && (upper || lower)) set.ranges.emplace_back(0x17F, 0x17F);
            if ((c | 0x20) == 'k' && (upper || lower)) set.ranges.emplace_back(0x212A, 0x212A);
        }
    }

    std::string clean_;
    std::vector<uint32_t> text_;
    size_t at_ = 0;
};

}  // namespace

PatternTree parse_pattern(const std::string& pattern) { return Parser(pattern).parse(); }

}  // namespace phirt
