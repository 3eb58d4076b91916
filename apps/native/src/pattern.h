// Patterns as trees: what `Regex` compiles. See regex.h for what is known.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "regex.h"

namespace phirt {

constexpr uint32_t kUnbounded = UINT32_MAX;

// What it means is said by the compiler in regex.cc.
struct PatternNode {
    enum Kind { set, any, sequence, choice, repeat, ahead, not_ahead, atomic } kind = sequence;
    Regex::Set chars;
    std::vector<std::unique_ptr<PatternNode>> parts;
    uint32_t least = 0, most = 0;
    bool lazy = false, possessive = false;

    bool may_be_empty() const {
        switch (kind) {
            case set:
            case any:
                return false;
            case sequence:
            case atomic:
                for (const auto& part : parts)
                    if (!part->may_be_empty()) return false;
                return true;
            case choice:
                for (const auto& part : parts)
                    if (part->may_be_empty()) return true;
                return false;
            case repeat:
                return least == 0 || parts[0]->may_be_empty();
            case ahead:
            case not_ahead:
                return true;
        }
        return true;
    }
};

using PatternTree = std::unique_ptr<PatternNode>;

// Throws Error for a pattern that is broken, or that this engine does not know.
PatternTree parse_pattern(const std::string& pattern);

}  // namespace phirt
