#include "regex.h"

#include <tuple>

#include "error.h"
#include "pattern.h"
#include "unicode.h"

namespace phirt {
namespace {

constexpr size_t kMaxProgram = 20000;

using Set = Regex::Set;
using Step = Regex::Step;
using Op = Regex::Op;

class Compiler {
  public:
    Compiler(std::vector<Set>& sets, std::vector<Step>& program) : sets_(sets), program_(program) {}

    void emit(const PatternNode& node) {
        switch (node.kind) {
            case PatternNode::set:
                sets_.push_back(node.chars);
                add({Op::set, static_cast<uint32_t>(sets_.size() - 1)});
                break;
            case PatternNode::any:
                add({Op::any});
                break;
            case PatternNode::sequence:
                for (const auto& part : node.parts) emit(*part);
                break;
            case PatternNode::choice:
                emit_choice(node);
                break;
            case PatternNode::repeat:
                if (node.possessive) {
                    part(Op::atomic, [&] { emit_repeat(node); });
                } else {
                    emit_repeat(node);
                }
                break;
            case PatternNode::ahead:
                part(Op::ahead, [&] { emit(*node.parts[0]); });
                break;
            case PatternNode::not_ahead:
                part(Op::not_ahead, [&] { emit(*node.parts[0]); });
                break;
            case PatternNode::atomic:
                part(Op::atomic, [&] { emit(*node.parts[0]); });
                break;
        }
    }

    void add(Step step) {
        if (program_.size() >= kMaxProgram)
            refuse_bundle("tokenizer.json: a pattern is too long; export again");
        program_.push_back(step);
    }

  private:
    uint32_t here() const { return static_cast<uint32_t>(program_.size()); }

    template <typename Body>
    void part(Op op, Body body) {
        const uint32_t head = here();
        add({op});
        body();
        add({Op::match});
        program_[head].first = here();
    }

    void emit_choice(const PatternNode& node) {
        std::vector<uint32_t> exits;
        for (size_t i = 0; i < node.parts.size(); ++i) {
            const bool last = i + 1 == node.parts.size();
            const uint32_t head = here();
            if (!last) add({Op::split, head + 1});
            emit(*node.parts[i]);
            if (last) break;
            exits.push_back(here());
            add({Op::jump});
            program_[head].second = here();
        }
        for (const uint32_t exit : exits) program_[exit].first = here();
    }

    void emit_repeat(const PatternNode& node) {
        const PatternNode& inner = *node.parts[0];
        for (uint32_t i = 0; i < node.least; ++i) emit(inner);
        if (node.most == kUnbounded) {
            const uint32_t head = here();
            add({Op::split});
            emit(inner);
            add({Op::jump, head});
            choose(head, head + 1, here(), node.lazy);
            return;
        }
        std::vector<uint32_t> heads;
        for (uint32_t i = node.least; i < node.most; ++i) {
            heads.push_back(here());
            add({Op::split});
            emit(inner);
        }
        for (const uint32_t head : heads) choose(head, head + 1, here(), node.lazy);
    }

    void choose(uint32_t head, uint32_t into, uint32_t behind, bool lazy) {
        program_[head].first = lazy ? behind : into;
        program_[head].second = lazy ? into : behind;
    }

    std::vector<Set>& sets_;
    std::vector<Step>& program_;
};

}  // namespace

bool Regex::Set::has_slowly(uint32_t c) const {
    bool found = all_of.empty() ? false : true;
    for (const Set& set : all_of) found = found && set.has(c);
    for (const auto& [low, high] : ranges) found = found || (c >= low && c <= high);
    found = found || (categories && (categories >> category_of(c) & 1)) || (spaces && is_space(c));
    for (const Set& set : any_of) found = found || set.has(c);
    return found != negated;
}

void Regex::Set::finish() {
    for (uint32_t c = 0; c < 128; ++c) ascii[c] = has_slowly(c);
}

Regex::Regex(const std::string& pattern) {
    const PatternTree tree = parse_pattern(pattern);
    Compiler compiler(sets_, program_);
    compiler.emit(*tree);
    compiler.add({Op::match});
}

std::optional<std::pair<size_t, size_t>> Regex::find(const std::vector<uint32_t>& text, size_t from) const {
    // A pattern of a tokenizer looks at each character a few times; one that looks at all of them for each is
    // nothing that a model was trained with.
    uint64_t budget = 100000 + 1000 * static_cast<uint64_t>(text.size());
    for (size_t at = from; at <= text.size(); ++at) {
        if (const auto end = run(text, at, 0, budget)) return std::make_pair(at, *end);
    }
    return std::nullopt;
}

std::optional<size_t> Regex::run(const std::vector<uint32_t>& text, size_t at, uint32_t step,
                                 uint64_t& budget) const {
    std::vector<std::pair<uint32_t, size_t>> open;  // where else to go on, the latest last
    for (;;) {
        if (budget-- == 0) {
            refuse_bundle(
                "tokenizer.json: its pattern takes too long for this text; export the package again");
        }
        const Step& now = program_[step];
        bool fits = true;
        switch (now.op) {
            case Op::set:
                fits = at < text.size() && sets_[now.first].has(text[at]);
                ++at, ++step;
                break;
            case Op::any:
                fits = at < text.size() && text[at] != '\n';
                ++at, ++step;
                break;
            case Op::split:
                open.emplace_back(now.second, at);
                step = now.first;
                break;
            case Op::jump:
                step = now.first;
                break;
            case Op::ahead:
            case Op::not_ahead:
                fits = run(text, at, step + 1, budget).has_value() == (now.op == Op::ahead);
                step = now.first;
                break;
            case Op::atomic: {
                const auto end = run(text, at, step + 1, budget);
                fits = end.has_value();
                at = end.value_or(at);
                step = now.first;
                break;
            }
            case Op::match:
                return at;
        }
        if (!fits) {
            if (open.empty()) return std::nullopt;
            std::tie(step, at) = open.back();
            open.pop_back();
        }
    }
}

}  // namespace phirt
