// Text to ids and back, by a byte-level BPE's tokenizer.json.
//
// Knows that file. Control tokens are recognised in what a template writes (`control`) and never in what
// comes from outside: `encode` has no path to one, whatever somebody types.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.h"
#include "regex.h"

namespace phirt {

using TokenId = int32_t;

class Tokenizer {
  public:
    // Throws Error for a tokenizer that is damaged, of another kind, or has ids from `vocab_size` on.
    Tokenizer(const Field& document, int64_t vocab_size);

    // Ids of text from outside; bytes that are no UTF-8 count as U+FFFD.
    std::vector<TokenId> encode(std::string_view text) const;

    // The bytes that an id stands for in an answer; none for a control token that stays invisible.
    std::string bytes_of(TokenId id) const;

    struct Control {
        std::string name;
        bool special, trims_before, trims_after;
    };
    // The control token of this id; null where it is none.
    const Control* control(TokenId id) const;

  private:
    struct Cut {  // one step of the pre-tokenizer
        enum Kind { split, digits } kind;
        std::optional<Regex> pattern;
        bool removed = false, invert = false, individual = false;
    };
    struct Merge {
        uint32_t rank;
        TokenId id;
    };

    void read_pre_tokenizer(const Field& step);
    void read_decoder(const Field& decoder) const;
    void read_vocabulary(const Field& model, int64_t vocab_size);
    void read_merges(const Field& model);
    void encode_word(std::string_view word, std::vector<TokenId>& ids) const;
    void merge(std::vector<TokenId>& symbols) const;

    std::unordered_map<TokenId, Control> controls_;
    std::vector<Cut> cuts_;
    bool byte_level_ = false, ignore_merges_ = false;
    std::vector<std::string> names_;                     // by id, in the alphabet of bytes
    std::unordered_map<std::string_view, TokenId> ids_;  // of names_
    std::unordered_map<uint64_t, Merge> merges_;         // by both ids
    TokenId of_byte_[256];
};

// The characters by which byte-level vocabularies write bytes, as code points.
const std::vector<uint32_t>& byte_alphabet();

}  // namespace phirt
