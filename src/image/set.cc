#include "image/set.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "image/kinds.h"

namespace ferry::image {
namespace {

using google::protobuf::Message;

constexpr std::string_view kSuffix = ".img";
constexpr std::string_view kTarSuffix = ".tar.gz.img";

std::string_view suffix_of(Type type) { return type == Type::tmpfs_dev ? kTarSuffix : kSuffix; }

// Exactly one spelling of each number is a name: no sign, no leading zero, lower case.
bool parse_number(std::string_view text, int base, std::uint64_t& number) {
  if (text.empty() || (text.front() == '0' && text.size() > 1)) {
    return false;
  }
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || (base == 16 && c >= 'a' && c <= 'f'))) {
      return false;
    }
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  return error == std::errc{} && end == text.data() + text.size();
}

// Whether an entry of this message may stand behind `before` entries of an image.
bool fits(const KindInfo& kind, std::size_t before, const Message& message) {
  const std::type_info& type = typeid(message);
  const auto is = [&type](const std::type_info* wanted) { return *wanted == type; };
  switch (kind.layout) {
    case Layout::raw:
      return false;
    case Layout::one:
      return before == 0 && is(kind.first_type);
    case Layout::many:
      return is(kind.first_type);
    case Layout::headed:
    case Layout::ghost:
      return is(before == 0 ? kind.first_type : kind.rest_type);
    case Layout::messages:
      return is(kind.first_type) || (before != 0 && is(kind.rest_type));
  }
  return false;
}

}  // namespace

std::string file_name(Name name) {
  const KindInfo& kind = kind_info(name.type);
  switch (kind.numbering) {
    case Numbering::none:
      return fmt::format("{}{}", kind.prefix, kSuffix);
    case Numbering::decimal:
      return fmt::format("{}{}{}", kind.prefix, name.id, suffix_of(name.type));
    case Numbering::hexadecimal:
      return fmt::format("{}{:x}{}", kind.prefix, name.id, kSuffix);
  }
  return {};
}

Result<Name> parse_file_name(std::string_view file) {
  for (const KindInfo& kind : all_kinds()) {
    const auto suffix = suffix_of(kind.type);
    if (file.size() < kind.prefix.size() + suffix.size() || !file.starts_with(kind.prefix) || !file.ends_with(suffix)) {
      continue;
    }
    const auto middle = file.substr(kind.prefix.size(), file.size() - kind.prefix.size() - suffix.size());
    if (kind.numbering == Numbering::none) {
      if (middle.empty()) {
        return Name{kind.type, 0};
      }
      continue;
    }
    std::uint64_t id = 0;
    if (parse_number(middle, kind.numbering == Numbering::hexadecimal ? 16 : 10, id)) {
      return Name{kind.type, id};
    }
  }
  return fail(Kind::gone, "{} is not the name of an image", file);
}

void Set::add(Name name, std::shared_ptr<Message> message, std::string extra) {
  auto& list = files_[name].entries;
  if (!fits(kind_info(name.type), list.size(), *message)) {
    std::fprintf(stderr, "ferry: a bug: %s cannot hold entry %zu of type %s\n", file_name(name).c_str(), list.size(),
                 message->GetTypeName().c_str());
    std::abort();
  }
  list.push_back(Entry{std::move(message), std::move(extra)});
}

void Set::touch(Name name) { files_[name]; }

void Set::set_raw(Name name, std::string bytes) { files_[name].raw = std::move(bytes); }

bool Set::has(Name name) const { return files_.contains(name); }

const std::vector<Entry>& Set::entries(Name name) const {
  static const std::vector<Entry> kNone;
  const auto found = files_.find(name);
  return found == files_.end() ? kNone : found->second.entries;
}

const std::string* Set::raw(Name name) const {
  const auto found = files_.find(name);
  const bool raw = found != files_.end() && kind_info(name.type).layout == Layout::raw;
  return raw ? &found->second.raw : nullptr;
}

std::vector<Name> Set::names(Type type) const {
  std::vector<Name> out;
  for (auto it = files_.lower_bound(Name{type, 0}); it != files_.end() && it->first.type == type; ++it) {
    out.push_back(it->first);
  }
  return out;
}

std::vector<Name> Set::names() const {
  std::vector<Name> out;
  out.reserve(files_.size());
  for (const auto& [name, file] : files_) {
    out.push_back(name);
  }
  return out;
}

}  // namespace ferry::image
