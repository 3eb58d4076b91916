// JSON from outside: strict, bounded in depth, read once into a tree that points into the text.
//
// Knows RFC 8259. Every accessor names the place of what it does not find, so that a damaged file ends in one
// line.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace phirt {

class Json {
  public:
    enum Kind : uint8_t { null, boolean, number, string, array, object };

    Kind kind = null;
    bool truth = false;
    std::string_view text;  // of a string, unescaped; of a number, as it stands
    std::vector<Json> items;
    std::vector<std::pair<std::string_view, Json>> members;

    // The member; null where there is none or this is no object.
    const Json* find(std::string_view key) const;
};

// A value with its place in a file, for messages.
class Field {
  public:
    Field(const Json* value, std::string where) : value_(value), where_(std::move(where)) {}

    bool exists() const { return value_ && value_->kind != Json::null; }
    Json::Kind kind() const { return value_ ? value_->kind : Json::null; }
    const Json& raw() const { return *value_; }
    const std::string& where() const { return where_; }

    Field operator[](std::string_view key) const;  // a member of an object; may be missing
    std::vector<Field> items() const;              // of an array
    std::vector<std::pair<std::string, Field>> members() const;

    int64_t integer(int64_t low, int64_t high) const;
    double real(double low, double high) const;
    bool boolean() const;
    std::string string(size_t max_bytes = 1 << 20) const;

    int64_t integer_or(int64_t missing, int64_t low, int64_t high) const {
        return exists() ? integer(low, high) : missing;
    }
    double real_or(double missing, double low, double high) const {
        return exists() ? real(low, high) : missing;
    }
    bool boolean_or(bool missing) const { return exists() ? boolean() : missing; }

    [[noreturn]] void refuse(const std::string& accepted) const;

  private:
    const Json* value_;
    std::string where_;
};

// A file's text and the tree over it.
class JsonDocument {
  public:
    // Throws Error for what is no JSON. `name` is what messages call it.
    JsonDocument(std::string text, std::string name);
    Field root() const { return Field(&root_, name_); }

  private:
    std::string text_;
    std::string name_;
    std::deque<std::string> unescaped_;
    Json root_;
    friend class JsonParser;
};

}  // namespace phirt
