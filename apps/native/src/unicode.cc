#include "unicode.h"

#include <algorithm>

namespace phirt {
namespace {

const uint32_t kRuns[] = {
#include "unicode_table.inc"
};

const char* const kNames[kCategories] = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
                                         "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc",
                                         "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn", "Cs"};

// How a character or a broken piece of one begins at `at`: its length, and whether it is whole. An unfinished
// one at the end of the text has `open` set. Lengths of broken pieces are the maximal subparts of Unicode's
// chapter 3.9, which is how Python replaces them.
struct Piece {
    size_t length;
    bool whole;
    bool open;
    uint32_t point;
};

Piece piece_at(std::string_view bytes, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
    const uint8_t first = byte(at);
    if (first < 0x80) return {1, true, false, first};
    size_t wanted = 0;
    uint8_t low = 0x80, high = 0xBF;
    uint32_t point = 0;
    if (first >= 0xC2 && first <= 0xDF) {
        wanted = 1, point = first & 0x1F;
    } else if (first >= 0xE0 && first <= 0xEF) {
        wanted = 2, point = first & 0x0F;
        if (first == 0xE0) low = 0xA0;
        if (first == 0xED) high = 0x9F;
    } else if (first >= 0xF0 && first <= 0xF4) {
        wanted = 3, point = first & 0x07;
        if (first == 0xF0) low = 0x90;
        if (first == 0xF4) high = 0x8F;
    } else {
        return {1, false, false, kReplacement};
    }
    for (size_t i = 1; i <= wanted; ++i) {
        if (at + i >= bytes.size()) return {i, false, true, kReplacement};
        if (byte(at + i) < low || byte(at + i) > high) return {i, false, false, kReplacement};
        point = point << 6 | (byte(at + i) & 0x3F);
        low = 0x80, high = 0xBF;
    }
    return {wanted + 1, true, false, point};
}

}  // namespace

Category category_of(uint32_t code_point) {
    const uint32_t key = code_point << 5 | 31;
    const uint32_t* end = kRuns + sizeof kRuns / sizeof *kRuns;
    const uint32_t* run = std::upper_bound(kRuns, end, key) - 1;
    return static_cast<Category>(*run & 31);
}

uint32_t category_mask(std::string_view name) {
    uint32_t mask = 0;
    for (int i = 0; i < kCategories; ++i) {
        const std::string_view known = kNames[i];
        if (name == known || (name.size() == 1 && name[0] == known[0])) mask |= 1u << i;
    }
    return mask;
}

bool is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

void append_utf8(std::string& text, uint32_t c) {
    const auto put = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)),
            put(0x80 | (c & 0x3F));
    }
}

CodePoints decode_utf8(std::string_view bytes) {
    CodePoints text;
    text.points.reserve(bytes.size());
    text.starts.reserve(bytes.size() + 1);
    for (size_t at = 0; at < bytes.size();) {
        const Piece piece = piece_at(bytes, at);
        text.points.push_back(piece.point);
        text.starts.push_back(at);
        at += piece.length;
    }
    text.starts.push_back(bytes.size());
    return text;
}

std::string clean_utf8(std::string_view bytes) {
    std::string text;
    text.reserve(bytes.size());
    for (size_t at = 0; at < bytes.size();) {
        const Piece piece = piece_at(bytes, at);
        append_utf8(text, piece.point);
        at += piece.length;
    }
    return text;
}

std::string Utf8Stream::feed(std::string_view bytes) {
    waiting_.append(bytes);
    std::string text;
    size_t at = 0;
    while (at < waiting_.size()) {
        const Piece piece = piece_at(waiting_, at);
        // Half of a surrogate waits for its third byte as well, though nothing can save it: so does Python's.
        const bool surrogate =
            waiting_[at] == '\xED' && waiting_.size() - at == 2 && (waiting_[at + 1] & 0xE0) == 0xA0;
        if (piece.open || surrogate) break;
        append_utf8(text, piece.point);
        at += piece.length;
    }
    waiting_.erase(0, at);
    return text;
}

}  // namespace phirt
