#include "json.h"

#include <cmath>
#include <cstdlib>
#include <locale>
#include <sstream>

#include "error.h"
#include "unicode.h"

namespace phirt {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxMembers = 4096;  // of what is read by name; vocabularies are read as they stand
const char* const kRemedy = "; export the package again or fetch a fresh copy";

}  // namespace

class JsonParser {
  public:
    explicit JsonParser(JsonDocument& document) : document_(document), text_(document.text_) {}

    Json parse() {
        if (text_.substr(0, 3) == "\xEF\xBB\xBF") at_ = 3;
        Json value = parse_value(0);
        skip();
        if (at_ < text_.size()) refuse("something behind its end");
        return value;
    }

  private:
    [[noreturn]] void refuse(const char* what) const {
        refuse_bundle(document_.name_ + " is not valid JSON: " + what + " at byte " + std::to_string(at_) +
                      kRemedy);
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void skip() {
        while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
    }
    bool take(char c) {
        skip();
        if (peek() != c || at_ >= text_.size()) return false;
        ++at_;
        return true;
    }
    bool word(std::string_view wanted) {
        if (text_.substr(at_, wanted.size()) != wanted) return false;
        at_ += wanted.size();
        return true;
    }

    Json parse_value(int depth) {
        if (depth > kMaxDepth) refuse("too deep");
        skip();
        Json value;
        const char c = peek();
        if (c == '{') {
            ++at_, value.kind = Json::object;
            if (take('}')) return value;
            do {
                skip();
                if (peek() != '"') refuse("no name of a member");
                const std::string_view key = parse_string();
                if (!take(':')) refuse("no ':'");
                value.members.emplace_back(key, parse_value(depth + 1));
            } while (take(','));
            if (!take('}')) refuse("no '}'");
        } else if (c == '[') {
            ++at_, value.kind = Json::array;
            if (take(']')) return value;
            do {
                value.items.push_back(parse_value(depth + 1));
            } while (take(','));
            if (!take(']')) refuse("no ']'");
        } else if (c == '"') {
            value.kind = Json::string, value.text = parse_string();
        } else if (c == '-' || (c >= '0' && c <= '9')) {
            value.kind = Json::number, value.text = parse_number();
        } else if (word("true")) {
            value.kind = Json::boolean, value.truth = true;
        } else if (word("false")) {
            value.kind = Json::boolean;
        } else if (!word("null")) {
            refuse("no value");
        }
        return value;
    }

    std::string_view parse_number() {
        const size_t begin = at_;
        const auto digits = [&] {
            const size_t first = at_;
            while (peek() >= '0' && peek() <= '9') ++at_;
            if (at_ == first) refuse("a broken number");
            return at_ - first;
        };
        if (peek() == '-') ++at_;
        const bool zero = peek() == '0';
        if (digits() > 1 && zero) refuse("a number that begins with 0");
        if (peek() == '.') ++at_, digits();
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        return text_.substr(begin, at_ - begin);
    }

    std::string_view parse_string() {
        const size_t begin = ++at_;
        while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\') plain();
        if (peek() == '"') return text_.substr(begin, at_++ - begin);
        std::string own(text_.substr(begin, at_ - begin));
        while (true) {
            if (at_ >= text_.size()) refuse("a string without an end");
            const char c = text_[at_];
            if (c == '"') break;
            if (c == '\\') {
                ++at_;
                escape(own);
            } else {
                own.push_back(c);
                plain();
            }
        }
        ++at_;
        document_.unescaped_.push_back(std::move(own));
        return document_.unescaped_.back();
    }

    void plain() {
        if (static_cast<unsigned char>(text_[at_]) < 0x20) refuse("a control character in a string");
        ++at_;
    }

    void escape(std::string& out) {
        const char c = peek();
        ++at_;
        switch (c) {
            case '"':
            case '\\':
            case '/':
                out.push_back(c);
                return;
            case 'b':
                out.push_back('\b');
                return;
            case 'f':
                out.push_back('\f');
                return;
            case 'n':
                out.push_back('\n');
                return;
            case 'r':
                out.push_back('\r');
                return;
            case 't':
                out.push_back('\t');
                return;
            case 'u':
                break;
            default:
                refuse("an unknown escape");
        }
        uint32_t point = unit();
        if (point >= 0xD800 && point < 0xDC00 && word("\\u")) {
            const uint32_t low = unit();
            if (low < 0xDC00 || low > 0xDFFF) refuse("half a character");
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        }
        if (point >= 0xD800 && point <= 0xDFFF) refuse("half a character");
        append_utf8(out, point);
    }

    uint32_t unit() {
        uint32_t value = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            const bool digit = c >= '0' && c <= '9', letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'f';
            if (!digit && !letter) refuse("a broken escape");
            value = value << 4 | static_cast<uint32_t>(digit ? c - '0' : (c | 0x20) - 'a' + 10);
        }
        return value;
    }

    JsonDocument& document_;
    std::string_view text_;
    size_t at_ = 0;
};

JsonDocument::JsonDocument(std::string text, std::string name)
    : text_(std::move(text)), name_(std::move(name)) {
    if (clean_utf8(text_) != text_) refuse_bundle(name_ + " is not valid JSON: no UTF-8" + kRemedy);
    root_ = JsonParser(*this).parse();
}

const Json* Json::find(std::string_view key) const {
    for (auto at = members.rbegin(); at != members.rend(); ++at) {  // of two of a name the last one counts
        if (at->first == key) return &at->second;
    }
    return nullptr;
}

void Field::refuse(const std::string& accepted) const {
    std::string found = "missing";
    if (value_) {
        const char* const kinds[] = {"null", "a boolean", "", "a string", "a list", "an object"};
        found = value_->kind == Json::number   ? std::string(value_->text.substr(0, 40))
                : value_->kind == Json::string ? "'" + std::string(value_->text.substr(0, 80)) + "'"
                                               : kinds[value_->kind];
    }
    refuse_bundle(where_ + " is " + clean_utf8(found) + ", accepted: " + accepted + kRemedy);
}

Field Field::operator[](std::string_view key) const {
    if (value_ && value_->kind != Json::object) refuse("an object");
    const std::string where =
        where_ + (where_.find(':') == std::string::npos ? ": " : ".") + std::string(key);
    return Field(value_ ? value_->find(key) : nullptr, where);
}

std::vector<Field> Field::items() const {
    if (kind() != Json::array) refuse("a list");
    std::vector<Field> found;
    found.reserve(value_->items.size());
    for (size_t i = 0; i < value_->items.size(); ++i) {
        found.emplace_back(&value_->items[i], where_ + "[" + std::to_string(i) + "]");
    }
    return found;
}

std::vector<std::pair<std::string, Field>> Field::members() const {
    if (kind() != Json::object) refuse("an object");
    if (value_->members.size() > kMaxMembers) refuse("at most " + std::to_string(kMaxMembers) + " members");
    std::vector<std::pair<std::string, Field>> found;
    for (const auto& [key, value] : value_->members) {
        for (const auto& [other, unused] : found) {
            if (other == key) refuse("each name once");
        }
        found.emplace_back(std::string(key),
                           Field(&value, where_ + "['" + std::string(key.substr(0, 80)) + "']"));
    }
    return found;
}

int64_t Field::integer(int64_t low, int64_t high) const {
    const std::string accepted = "a whole number from " + std::to_string(low) + " to " + std::to_string(high);
    if (kind() != Json::number) refuse(accepted);
    const std::string digits(value_->text);
    if (digits.find_first_not_of("-0123456789") != std::string::npos || digits.size() > 19) refuse(accepted);
    const int64_t found = std::strtoll(digits.c_str(), nullptr, 10);
    if (found < low || found > high) refuse(accepted);
    return found;
}

double Field::real(double low, double high) const {
    std::ostringstream accepted;
    accepted << "a number from " << low << " to " << high;
    if (kind() != Json::number) refuse(accepted.str());
    std::istringstream stream{std::string(value_->text)};
    stream.imbue(std::locale::classic());  // whatever the app's own is
    double found = NAN;
    stream >> found;
    if (!stream || !(found >= low && found <= high)) refuse(accepted.str());
    return found;
}

bool Field::boolean() const {
    if (kind() != Json::boolean) refuse("true or false");
    return value_->truth;
}

std::string Field::string(size_t max_bytes) const {
    if (kind() != Json::string) refuse("a string");
    if (value_->text.size() > max_bytes)
        refuse("a string of at most " + std::to_string(max_bytes) + " bytes");
    return std::string(value_->text);
}

}  // namespace phirt
