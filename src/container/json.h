// Reading JSON that others wrote, without exceptions.  For .cc files only: the library is heavy.
//
// Docker writes null where a list or an object is empty, and leaves fields out between versions, so
// every accessor here answers with a neutral value for what is missing or of another type.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::container {

using Json = nlohmann::json;

// Errors: corrupt, naming `subject`.
inline Result<Json> parse_json(std::string_view text, std::string_view subject) {
  Json parsed = Json::parse(text, nullptr, false);
  if (parsed.is_discarded()) {
    return fail(Kind::corrupt, "{} is not valid JSON", subject);
  }
  return parsed;
}

inline const Json& json_at(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) {
    return null;
  }
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

inline std::string json_text(const Json& object, const char* key) {
  const Json& value = json_at(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

inline bool json_bool(const Json& object, const char* key) {
  const Json& value = json_at(object, key);
  return value.is_boolean() && value.get<bool>();
}

inline std::int64_t json_int(const Json& object, const char* key) {
  const Json& value = json_at(object, key);
  return value.is_number_integer() ? value.get<std::int64_t>() : 0;
}

inline std::vector<std::string> json_texts(const Json& list) {
  std::vector<std::string> out;
  if (list.is_array()) {
    for (const Json& item : list) {
      if (item.is_string()) {
        out.push_back(item.get<std::string>());
      }
    }
  }
  return out;
}

// Invalid UTF-8 (a path may hold any byte) is replaced instead of thrown about.
inline std::string json_dump(const Json& value, int indent = -1) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace ferry::container
