// Code points: UTF-8 both ways, and general categories as the `tokenizers` library has them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace phirt {

constexpr uint32_t kReplacement = 0xFFFD;

// A bit for each general category, in the order of tools/make_unicode_table.py.
enum Category : uint8_t {
    Lu,
    Ll,
    Lt,
    Lm,
    Lo,
    Mn,
    Mc,
    Me,
    Nd,
    Nl,
    No,
    Pc,
    Pd,
    Ps,
    Pe,
    Pi,
    Pf,
    Po,
    Sm,
    Sc,
    Sk,
    So,
    Zs,
    Zl,
    Zp,
    Cc,
    Cf,
    Co,
    Cn,
    Cs,
    kCategories
};

Category category_of(uint32_t code_point);

// The bits of categories that a name such as "L" or "Lu" stands for; 0 for one that is none.
uint32_t category_mask(std::string_view name);

// White_Space of Unicode, which is what \s means to the `tokenizers` library.
bool is_space(uint32_t code_point);

void append_utf8(std::string& text, uint32_t code_point);

// A text as code points, each with the byte at which it begins; `starts` has one entry more, the end.
struct CodePoints {
    std::vector<uint32_t> points;
    std::vector<size_t> starts;
};

// Bytes that are no UTF-8 become U+FFFD, as many as Python's decoder with errors="replace" makes of them.
CodePoints decode_utf8(std::string_view bytes);

// The text with everything that is no UTF-8 replaced.
std::string clean_utf8(std::string_view bytes);

// Bytes to text piece by piece: an unfinished character waits for its rest.
class Utf8Stream {
  public:
    std::string feed(std::string_view bytes);

  private:
    std::string waiting_;
};

}  // namespace phirt
