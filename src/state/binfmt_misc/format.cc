#include <charconv>
#include <vector>

#include "state/binfmt_misc/binfmt_misc.h"

namespace ferry::state::binfmt_misc {
namespace {

// The rest of a line that begins with `key`.
bool take(std::string_view line, std::string_view key, std::string& out) {
  if (!line.starts_with(key)) {
    return false;
  }
  out = line.substr(key.size());
  return true;
}

bool is_hexadecimal(std::string_view text) {
  return text.size() % 2 == 0 && text.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
}

// The kernel takes bytes that it could not take as they are in this form.
std::string escaped(std::string_view hexadecimal) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hexadecimal.size(); i += 2) {
    out += fmt::format("\\x{}", hexadecimal.substr(i, 2));
  }
  return out;
}

// The first character of a registration is what its fields are set apart by.
char border_for(const std::vector<std::string>& fields) {
  for (const char c : std::string_view(":|;,@%+=~")) {
    bool free = true;
    for (const std::string& field : fields) {
      free = free && field.find(c) == std::string::npos;
    }
    if (free) {
      return c;
    }
  }
  return '\0';
}

}  // namespace

Result<pb::BinfmtMiscEntry> parse(std::string_view name, std::string_view text) {
  pb::BinfmtMiscEntry out;
  out.set_name(std::string(name));
  bool known = false;
  bool described = false;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    std::string rest;
    if (line == "enabled" || line == "disabled") {
      out.set_enabled(line == "enabled");
      known = true;
    } else if (take(line, "interpreter ", rest)) {
      out.set_interpreter(rest);
    } else if (take(line, "flags: ", rest)) {
      out.set_flags(rest);
    } else if (take(line, "extension .", rest)) {
      out.set_extension(rest);
      described = true;
    } else if (take(line, "offset ", rest)) {
      int offset = 0;
      const auto [stop, error] = std::from_chars(rest.data(), rest.data() + rest.size(), offset);
      if (error != std::errc() || stop != rest.data() + rest.size()) {
        return fail(Kind::corrupt, "handler {} of binfmt_misc has the offset \"{}\"", name, rest);
      }
      out.set_offset(offset);
    } else if (take(line, "magic ", rest)) {
      out.set_magic(rest);
      described = true;
    } else if (take(line, "mask ", rest)) {
      out.set_mask(rest);
    } else if (!line.empty()) {
      return fail(Kind::corrupt, "handler {} of binfmt_misc has a line that ferry does not know: \"{}\"", name, line);
    }
  }
  if (!known || !described || out.interpreter().empty()) {
    return fail(Kind::corrupt, "handler {} of binfmt_misc is not described as a whole", name);
  }
  return out;
}

Result<std::string> registration(const pb::BinfmtMiscEntry& entry) {
  const std::string& name = entry.name();
  if (name.empty() || name.find('/') != std::string::npos || name == "." || name == ".." || name == "register" ||
      name == "status") {
    return fail(Kind::corrupt, "no handler of binfmt_misc can be called \"{}\"", name);
  }
  const bool by_name = entry.has_extension();
  if (!is_hexadecimal(entry.magic()) || !is_hexadecimal(entry.mask()) || entry.offset() < 0 ||
      (by_name ? entry.extension() : entry.magic()).empty()) {
    return fail(Kind::corrupt, "handler {} of binfmt_misc has no pattern that the kernel would take", name);
  }
  const std::vector<std::string> fields{name,
                                        by_name ? "E" : "M",
                                        by_name ? "" : std::to_string(entry.offset()),
                                        by_name ? entry.extension() : escaped(entry.magic()),
                                        by_name ? "" : escaped(entry.mask()),
                                        entry.interpreter(),
                                        entry.flags()};
  const char border = border_for(fields);
  if (border == '\0') {
    return fail(Kind::corrupt, "the fields of handler {} of binfmt_misc cannot be set apart", name);
  }
  std::string out;
  for (const std::string& field : fields) {
    out += border + field;
  }
  return out;
}

}  // namespace ferry::state::binfmt_misc
