// Bodies of netlink(7) messages: a fixed head, then attributes.
#pragma once

#include <linux/netlink.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::state::net {

using Bytes = std::span<const std::byte>;

struct Attribute {
  std::uint16_t type = 0;  // without NLA_F_*
  std::uint16_t flags = 0;
  Bytes value;
};
// In their order; text that does not hold together is cut at the first bad length.
std::vector<Attribute> attributes_of(Bytes bytes);
std::optional<Attribute> find(const std::vector<Attribute>& attributes, std::uint16_t type);

template <class T>
std::optional<T> value_as(const std::optional<Attribute>& attribute) {
  if (!attribute.has_value() || attribute->value.size() < sizeof(T)) {
    return std::nullopt;
  }
  T out;
  std::memcpy(&out, attribute->value.data(), sizeof out);
  return out;
}
std::string text_of(const std::optional<Attribute>& attribute);

// The head of a message, if it is long enough.
template <class Head>
std::optional<Head> head_of(Bytes body) {
  if (body.size() < sizeof(Head)) {
    return std::nullopt;
  }
  Head out;
  std::memcpy(&out, body.data(), sizeof out);
  return out;
}
template <class Head>
std::vector<Attribute> after_head(Bytes body) {
  const std::size_t size = NLMSG_ALIGN(sizeof(Head));
  return body.size() < size ? std::vector<Attribute>() : attributes_of(body.subspan(size));
}

class Message {
 public:
  template <class Head>
  explicit Message(const Head& head) {
    append(&head, sizeof head);
  }
  void put(std::uint16_t type, Bytes value);
  void put(const Attribute& attribute) {
    put(static_cast<std::uint16_t>(attribute.type | attribute.flags), attribute.value);
  }
  template <class T>
  void put_number(std::uint16_t type, T value) {
    put(type, std::as_bytes(std::span(&value, 1)));
  }
  void put_text(std::uint16_t type, const std::string& text) {
    put(type, std::as_bytes(std::span(text.c_str(), text.size() + 1)));
  }
  // What `fill` adds becomes the value of one attribute.
  void nest(std::uint16_t type, const std::function<void()>& fill);
  // A structure in front of the attributes of a nested value.
  template <class T>
  void put_head(const T& head) {
    append(&head, sizeof head);
  }
  [[nodiscard]] Bytes bytes() const { return bytes_; }

 private:
  void append(const void* data, std::size_t size);
  std::vector<std::byte> bytes_;
};

// Whole messages one after the other, as `ip … save` writes them.
void append_message(std::string& out, std::uint16_t type, Bytes body);
// Each message's type and body.  Errors: corrupt.
Result<void> each_message(std::string_view text, std::string_view subject,
                          const std::function<Result<void>(std::uint16_t, Bytes)>& take);

}  // namespace ferry::state::net
