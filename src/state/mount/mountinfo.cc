#include "state/mount/mountinfo.h"

#include <sys/mount.h>

#include <algorithm>
#include <map>
#include <optional>
#include <span>

#include "sys/proc.h"

#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256  // mount(2), Linux 5.10
#endif

namespace ferry::state::mount {
namespace {

std::string_view take_word(std::string_view& rest) {
  const std::size_t end = std::min(rest.find(' '), rest.size());
  const std::string_view word = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return word;
}

// Blank, tab, newline and backslash are written as \ooo.
std::string unescape(std::string_view text) {
  std::string out;
  const auto octal = [](char c) { return c >= '0' && c <= '7'; };
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && octal(text[i + 1]) && octal(text[i + 2]) && octal(text[i + 3])) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

template <class Visit>
void each_option(std::string_view list, Visit visit) {
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(','), list.size());
    visit(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

struct Flag {
  std::string_view name;
  std::uint32_t bit;
};
constexpr Flag kMountFlags[] = {
    {"ro", MS_RDONLY},       {"nosuid", MS_NOSUID},         {"nodev", MS_NODEV},       {"noexec", MS_NOEXEC},
    {"noatime", MS_NOATIME}, {"nodiratime", MS_NODIRATIME}, {"relatime", MS_RELATIME}, {"nosymfollow", MS_NOSYMFOLLOW},
};
constexpr Flag kSuperblockFlags[] = {
    {"ro", MS_RDONLY},     {"sync", MS_SYNCHRONOUS},  {"dirsync", MS_DIRSYNC},
    {"mand", MS_MANDLOCK}, {"lazytime", MS_LAZYTIME},
};

std::optional<std::uint32_t> flag_of(std::span<const Flag> flags, std::string_view name) {
  for (const Flag& flag : flags) {
    if (flag.name == name) {
      return flag.bit;
    }
  }
  return std::nullopt;
}

std::optional<Line> parse_line(std::string_view text) {
  Line out;
  const auto number = [](std::string_view word) { return sys::parse_number(word); };
  const auto id = number(take_word(text));
  const auto parent = number(take_word(text));
  const std::string_view dev = take_word(text);
  const std::size_t colon = dev.find(':');
  if (!id || !parent || colon == std::string_view::npos) {
    return std::nullopt;
  }
  const auto major = number(dev.substr(0, colon));
  const auto minor = number(dev.substr(colon + 1));
  if (!major || !minor) {
    return std::nullopt;
  }
  out.id = static_cast<int>(*id);
  out.parent = static_cast<int>(*parent);
  out.dev = static_cast<std::uint32_t>(*major << 20 | *minor);
  out.root = unescape(take_word(text));
  out.mountpoint = unescape(take_word(text));
  each_option(take_word(text), [&](std::string_view option) { out.flags |= flag_of(kMountFlags, option).value_or(0); });
  if ((out.flags & (MS_NOATIME | MS_RELATIME)) == 0) {
    out.flags |= MS_STRICTATIME;  // the kernel has no word for it
  }
  for (;;) {
    const std::string_view field = take_word(text);
    if (field == "-") {
      break;
    }
    if (field.empty()) {
      return std::nullopt;
    }
    if (field.starts_with("shared:")) {
      out.flags |= MS_SHARED;
      out.shared = static_cast<std::uint32_t>(number(field.substr(7)).value_or(0));
    } else if (field.starts_with("master:")) {
      out.flags |= MS_SLAVE;
      out.master = static_cast<std::uint32_t>(number(field.substr(7)).value_or(0));
    } else if (field == "unbindable") {
      out.flags |= MS_UNBINDABLE;
    }
  }
  out.type = unescape(take_word(text));
  out.source = unescape(take_word(text));
  // The superblock's options are the rest: filesystems may print blanks there unescaped.
  each_option(text, [&](std::string_view option) {
    if (const auto bit = flag_of(kSuperblockFlags, option)) {
      out.superblock_flags |= *bit;
    } else if (option != "rw") {
      out.options += out.options.empty() ? "" : ",";
      out.options += option;
    }
  });
  if (out.type.empty() || out.mountpoint.empty() || out.mountpoint.front() != '/') {
    return std::nullopt;
  }
  return out;
}

}  // namespace

Result<std::vector<Line>> parse_mountinfo(std::string_view text) {
  std::vector<Line> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    auto parsed = parse_line(line);
    if (!parsed.has_value()) {
      return fail(Kind::corrupt, "mountinfo has a line that cannot be read: {}", line);
    }
    out.push_back(std::move(*parsed));
  }
  return out;
}

bool is_below(std::string_view path, std::string_view directory) {
  if (directory == "/") {
    return path.starts_with('/');
  }
  return path.starts_with(directory) && (path.size() == directory.size() || path[directory.size()] == '/');
}

std::string relative_to(std::string_view path, std::string_view directory) {
  path.remove_prefix(directory == "/" ? 0 : directory.size());
  while (path.starts_with('/')) {
    path.remove_prefix(1);
  }
  return std::string(path);
}

Result<std::vector<std::size_t>> mount_order(const std::vector<Place>& places) {
  std::map<int, std::vector<std::size_t>> children;
  std::vector<std::size_t> stack;
  for (std::size_t i = 0; i < places.size(); ++i) {
    const bool has_parent = std::any_of(
        places.begin(), places.end(), [&](const Place& p) { return p.id == places[i].parent && p.id != places[i].id; });
    if (has_parent) {
      children[places[i].parent].push_back(i);
    } else {
      stack.push_back(i);
    }
  }
  if (stack.size() != 1) {
    return fail(Kind::corrupt, "a mount tree has {} roots", stack.size());
  }
  for (auto& [parent, list] : children) {
    // The stack hands out the last one first, so the deepest path has to stand last.
    std::stable_sort(list.begin(), list.end(), [&](std::size_t a, std::size_t b) {
      return places[a].mountpoint.size() < places[b].mountpoint.size();
    });
  }
  std::vector<std::size_t> out;
  while (!stack.empty()) {
    const std::size_t i = stack.back();
    stack.pop_back();
    out.push_back(i);
    const auto found = children.find(places[i].id);
    if (found != children.end()) {
      stack.insert(stack.end(), found->second.begin(), found->second.end());
    }
  }
  if (out.size() != places.size()) {
    return fail(Kind::corrupt, "a mount tree has mounts whose parents go in a circle");
  }
  return out;
}

}  // namespace ferry::state::mount
