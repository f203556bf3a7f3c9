#include "state/net/message.h"

#include <algorithm>

namespace ferry::state::net {

std::vector<Attribute> attributes_of(Bytes bytes) {
  std::vector<Attribute> out;
  while (bytes.size() >= sizeof(nlattr)) {
    nlattr head{};
    std::memcpy(&head, bytes.data(), sizeof head);
    if (head.nla_len < sizeof head || head.nla_len > bytes.size()) {
      break;
    }
    out.push_back({static_cast<std::uint16_t>(head.nla_type & NLA_TYPE_MASK),
                   static_cast<std::uint16_t>(head.nla_type & ~NLA_TYPE_MASK),
                   bytes.subspan(sizeof head, head.nla_len - sizeof head)});
    bytes = bytes.subspan(std::min<std::size_t>(bytes.size(), NLA_ALIGN(head.nla_len)));
  }
  return out;
}

std::optional<Attribute> find(const std::vector<Attribute>& attributes, std::uint16_t type) {
  const auto found =
      std::find_if(attributes.begin(), attributes.end(), [&](const Attribute& a) { return a.type == type; });
  return found == attributes.end() ? std::nullopt : std::optional(*found);
}

std::string text_of(const std::optional<Attribute>& attribute) {
  if (!attribute.has_value()) {
    return {};
  }
  const std::string_view all(reinterpret_cast<const char*>(attribute->value.data()), attribute->value.size());
  return std::string(all.substr(0, all.find('\0')));
}

void Message::append(const void* data, std::size_t size) {
  const auto* first = static_cast<const std::byte*>(data);
  bytes_.insert(bytes_.end(), first, first + size);
  bytes_.resize(NLA_ALIGN(bytes_.size()));
}

void Message::put(std::uint16_t type, Bytes value) {
  nlattr head{};
  head.nla_len = static_cast<std::uint16_t>(sizeof head + value.size());
  head.nla_type = type;
  append(&head, sizeof head);
  append(value.data(), value.size());
}

void Message::nest(std::uint16_t type, const std::function<void()>& fill) {
  const std::size_t at = bytes_.size();
  put(static_cast<std::uint16_t>(type | NLA_F_NESTED), {});
  fill();
  const auto length = static_cast<std::uint16_t>(bytes_.size() - at);
  std::memcpy(bytes_.data() + at + offsetof(nlattr, nla_len), &length, sizeof length);
}

void append_message(std::string& out, std::uint16_t type, Bytes body) {
  nlmsghdr head{};
  head.nlmsg_len = static_cast<std::uint32_t>(NLMSG_HDRLEN + body.size());
  head.nlmsg_type = type;
  head.nlmsg_flags = NLM_F_MULTI;
  out.append(reinterpret_cast<const char*>(&head), sizeof head);
  out.append(reinterpret_cast<const char*>(body.data()), body.size());
  out.resize(out.size() + (NLMSG_ALIGN(head.nlmsg_len) - head.nlmsg_len));
}

Result<void> each_message(std::string_view text, std::string_view subject,
                          const std::function<Result<void>(std::uint16_t, Bytes)>& take) {
  while (!text.empty()) {
    nlmsghdr head{};
    if (text.size() >= sizeof head) {
      std::memcpy(&head, text.data(), sizeof head);
    }
    if (head.nlmsg_len < NLMSG_HDRLEN || head.nlmsg_len > text.size()) {
      return fail(Kind::corrupt, "{}: a message has a bad length", subject);
    }
    FERRY_CHECK(
        take(head.nlmsg_type, std::as_bytes(std::span(text.data() + NLMSG_HDRLEN, head.nlmsg_len - NLMSG_HDRLEN))));
    text.remove_prefix(std::min<std::size_t>(text.size(), NLMSG_ALIGN(head.nlmsg_len)));
  }
  return {};
}

}  // namespace ferry::state::net
