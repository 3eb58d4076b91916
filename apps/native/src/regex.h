// The part of Oniguruma's regular expressions that byte-level tokenizers are written in.
//
// Knows alternatives, groups (plain, `(?:`, `(?i:`), classes (nested, negated, `&&`), \p{category}, \s \d \S
// \D, escapes, greedy, lazy and possessive quantifiers, looking ahead. What is not known is refused when a
// pattern is read, so that no text is ever cut in another way than the library cuts it. Matching backtracks
// on a stack of its own and gives up after a number of steps that follows from the length of the text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace phirt {

class Regex {
  public:
    // Throws Error for a pattern that is broken or that this engine does not know.
    explicit Regex(const std::string& pattern);

    // The first match at or behind `from`: where it begins and ends. None where there is none.
    std::optional<std::pair<size_t, size_t>> find(const std::vector<uint32_t>& text, size_t from) const;

    // A set of characters, asked again and again: ASCII is a table.
    struct Set {
        std::vector<std::pair<uint32_t, uint32_t>> ranges;
        uint32_t categories = 0;
        bool spaces = false;
        bool negated = false;
        std::vector<Set> any_of;  // other sets that are in it as a whole
        std::vector<Set> all_of;  // what `&&` joins to it
        bool ascii[128] = {};
        bool has(uint32_t c) const { return c < 128 ? ascii[c] : has_slowly(c); }
        bool has_slowly(uint32_t c) const;
        void finish();
    };

    enum class Op : uint8_t { set, any, split, jump, ahead, not_ahead, atomic, match };
    struct Step {
        Op op;
        uint32_t first = 0;  // set: its number; split: tried first; jump: where to; others: behind their part
        uint32_t second = 0;  // split: tried then
    };

  private:
    // Where a match of the part of the program that begins at `step` ends, for text from `at` on.
    std::optional<size_t> run(const std::vector<uint32_t>& text, size_t at, uint32_t step,
                              uint64_t& budget) const;

    std::vector<Set> sets_;
    std::vector<Step> program_;
};

}  // namespace phirt
