#include "programs/criu/option_value.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>

#include "sys/file.h"

namespace ferry::criu {
namespace {

// Calls `each` with every part of a comma-separated list until it fails.
template <class Each>
Result<void> for_each_part(std::string_view list, Each each) {
  while (!list.empty()) {
    const std::size_t comma = list.find(',');
    FERRY_CHECK(each(list.substr(0, comma)));
    list = comma == std::string_view::npos ? std::string_view{} : list.substr(comma + 1);
  }
  return {};
}

constexpr std::uint32_t bit(engine::CpuCapability capability) { return static_cast<std::uint32_t>(capability); }

}  // namespace

Result<std::uint64_t> parse_size(std::string_view option, std::string_view text) {
  unsigned shift = 0;
  if (!text.empty()) {
    switch (text.back()) {
      case 'K':
      case 'k':
        shift = 10;
        break;
      case 'M':
      case 'm':
        shift = 20;
        break;
      case 'G':
      case 'g':
        shift = 30;
        break;
      default:
        break;
    }
  }
  FERRY_TRY(const std::uint64_t number,
            parse_number<std::uint64_t>(option, text.substr(0, text.size() - (shift != 0 ? 1 : 0))));
  if (number > std::numeric_limits<std::uint64_t>::max() >> shift) {
    return fail(Kind::invalid, "option --{}: {} does not fit into 64 bits", option, text);
  }
  return number << shift;
}

Result<std::uint32_t> parse_cpu_capability(std::string_view text) {
  using engine::CpuCapability;
  struct Word {
    std::string_view word;
    std::uint32_t bits;
  };
  constexpr std::array kWords{Word{"fpu", bit(CpuCapability::fpu)}, Word{"cpu", bit(CpuCapability::cpu)},
                              Word{"ins", bit(CpuCapability::instructions)}, Word{"all", bit(CpuCapability::all)}};
  if (text.empty()) {
    return bit(CpuCapability::all);
  }
  if (text == "none") {
    return bit(CpuCapability::none);
  }
  // A list that begins by taking something away takes it from everything.
  std::uint32_t bits = text.front() == '^' ? bit(CpuCapability::all) : 0;
  FERRY_CHECK(for_each_part(text, [&](std::string_view part) -> Result<void> {
    const bool negated = part.starts_with('^');
    const std::string_view name = part.substr(negated ? 1 : 0);
    const auto* const word = std::find_if(kWords.begin(), kWords.end(), [&](const Word& w) { return w.word == name; });
    if (word == kWords.end()) {
      return fail(Kind::invalid,
                  "option --cpu-cap takes a list of fpu, cpu, ins, all or none, and \"{}\" is none of them", part);
    }
    bits = negated ? bits & ~word->bits : bits | word->bits;
    return {};
  }));
  return bits | bit(CpuCapability::image);
}

Result<engine::CgroupMode> parse_cgroup_mode(std::string_view text) {
  using engine::CgroupMode;
  if (text.empty() || text == "soft") {
    return CgroupMode::soft;
  }
  if (text == "ignore") {
    return CgroupMode::ignore;
  }
  if (text == "none") {
    return CgroupMode::none;
  }
  if (text == "props") {
    return CgroupMode::props;
  }
  if (text == "full") {
    return CgroupMode::full;
  }
  if (text == "strict") {
    return CgroupMode::strict;
  }
  return fail(Kind::invalid, "option --manage-cgroups takes ignore, none, props, soft, full or strict, not \"{}\"",
              text);
}

Result<engine::FileValidation> parse_file_validation(std::string_view text) {
  using engine::FileValidation;
  if (text == "filesize") {
    return FileValidation::size;
  }
  if (text == "buildid") {
    return FileValidation::build_id;
  }
  return fail(Kind::invalid, "option --file-validation takes filesize or buildid, not \"{}\"", text);
}

Result<void> check_plugin_directory(std::string_view path) {
  const auto files = sys::list_directory(AT_FDCWD, std::string(path));
  if (!files.has_value()) {
    return files.error().kind == Kind::gone ? Result<void>()
                                            : Result<void>(tl::unexpect, files.error()).during("option --libdir");
  }
  for (const std::string& file : *files) {
    if (file.ends_with(".so")) {
      return fail(Kind::unsupported, "option --libdir: {}/{} is a plugin of CRIU, which ferry cannot load", path, file);
    }
  }
  return {};
}

Result<void> check_privileges() {
  if (::geteuid() != 0) {
    return fail(Kind::unsupported, "option --unprivileged: ferry has to run as root, and this is user {}", ::geteuid());
  }
  return {};
}

Result<engine::NetworkLock> parse_network_lock(std::string_view text) {
  using engine::NetworkLock;
  if (text == "iptables") {
    return NetworkLock::iptables;
  }
  if (text == "nftables") {
    return NetworkLock::nftables;
  }
  if (text == "skip" || text == "none") {
    return NetworkLock::skip;
  }
  return fail(Kind::invalid, "option --network-lock takes iptables, nftables, skip or none, not \"{}\"", text);
}

Result<engine::CgroupRoot> parse_cgroup_root(std::string_view text) {
  if (text.starts_with('/')) {
    return engine::CgroupRoot{"", std::string(text)};
  }
  const std::size_t colon = text.find(":/");
  if (colon == std::string_view::npos || colon == 0) {
    return fail(Kind::invalid, "option --cgroup-root takes [CONTROLLER:]/PATH, not \"{}\"", text);
  }
  return engine::CgroupRoot{std::string(text.substr(0, colon)), std::string(text.substr(colon + 1))};
}

Result<engine::JoinNamespace> parse_join_namespace(std::string_view text) {
  constexpr std::array<std::string_view, 7> kKinds{"pid", "net", "ipc", "uts", "mnt", "user", "time"};
  const std::size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  if (colon == std::string_view::npos || colon + 1 == text.size() ||
      std::find(kKinds.begin(), kKinds.end(), kind) == kKinds.end()) {
    return fail(Kind::invalid,
                "option --join-ns takes NAMESPACE:FILE or NAMESPACE:PID with pid, net, ipc, uts, mnt, user or time, "
                "not \"{}\"",
                text);
  }
  std::string_view file = text.substr(colon + 1);
  std::string_view extra;
  if (const std::size_t comma = file.find(','); comma != std::string_view::npos) {
    extra = file.substr(comma + 1);
    file = file.substr(0, comma);
  }
  if (!extra.empty() && kind != "user") {
    return fail(Kind::invalid, "option --join-ns: only user takes further values, and \"{}\" has some", text);
  }
  return engine::JoinNamespace{std::string(kind), std::string(file), std::string(extra)};
}

Result<engine::InheritFd> parse_inherit_fd(std::string_view text) {
  const std::size_t end = text.find("]:");
  if (!text.starts_with("fd[") || end == std::string_view::npos || end + 2 == text.size()) {
    return fail(Kind::invalid, "option --inherit-fd takes fd[NUMBER]:RESOURCE, not \"{}\"", text);
  }
  FERRY_TRY(const int fd, parse_number<int>("inherit-fd", text.substr(3, end - 3)));
  if (fd < 0) {
    return fail(Kind::invalid, "option --inherit-fd: {} is no descriptor", fd);
  }
  return engine::InheritFd{std::string(text.substr(end + 2)), fd};
}

Result<void> add_external(engine::CommonOptions& options, std::string_view text) {
  const std::size_t open = text.find('[');
  const std::size_t close = text.find(']');
  if (open == std::string_view::npos || open == 0 || close == std::string_view::npos || close < open) {
    return fail(Kind::invalid, "option --external takes KIND[ID] or KIND[ID]:KEY, not \"{}\"", text);
  }
  const std::string_view kind = text.substr(0, open);
  // A mount point may hold a bracket of its own; "]:" ends the id then.
  const std::size_t end = kind == "mnt" && text.find("]:") != std::string_view::npos ? text.find("]:") : close;
  if (kind != "mnt" || end == open + 1) {
    options.external.emplace_back(text);
    return {};
  }
  if (end + 2 >= text.size()) {
    return fail(Kind::invalid, "option --external: \"{}\" names no key after mnt[…]", text);
  }
  options.external_mounts.push_back(
      {std::string(text.substr(open + 1, end - open - 1)), std::string(text.substr(end + 2))});
  return {};
}

Result<void> add_external_mount(engine::CommonOptions& options, std::string_view text) {
  if (text == "auto") {
    options.external.emplace_back("mnt[]");
    return {};
  }
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == text.size()) {
    return fail(Kind::invalid, "option --ext-mount-map takes KEY:VALUE or auto, not \"{}\"", text);
  }
  options.external_mounts.push_back({std::string(text.substr(0, colon)), std::string(text.substr(colon + 1))});
  return {};
}

Result<void> add_cgroup_properties(engine::CommonOptions& options, std::string_view text) {
  const std::string_view all = text;
  std::size_t lists = 0;
  constexpr std::string_view kWord = "\"properties\"";
  for (std::size_t at = text.find(kWord); at != std::string_view::npos; at = text.find(kWord)) {
    text.remove_prefix(at + kWord.size());
    const std::size_t open = text.find('[');
    const std::size_t close = text.find(']');
    if (open == std::string_view::npos || close == std::string_view::npos || close < open) {
      break;
    }
    std::string_view list = text.substr(open + 1, close - open - 1);
    for (std::size_t quote = list.find('"'); quote != std::string_view::npos; quote = list.find('"')) {
      const std::size_t end = list.find('"', quote + 1);
      if (end == std::string_view::npos) {
        return fail(Kind::invalid, "option --cgroup-props: a quotation mark is missing in \"{}\"", all);
      }
      const std::string_view name = list.substr(quote + 1, end - quote - 1);
      if (name.empty() || name.find('/') != std::string_view::npos) {
        return fail(Kind::invalid, "option --cgroup-props: \"{}\" is no property of a group", name);
      }
      options.cgroup_properties.emplace_back(name);
      list.remove_prefix(end + 1);
    }
    ++lists;
    text.remove_prefix(close);
  }
  if (lists == 0) {
    return fail(Kind::invalid, "option --cgroup-props takes a description with a list of \"properties\", not \"{}\"",
                all);
  }
  return {};
}

Result<void> add_cgroup_property_file(engine::CommonOptions& options, std::string_view path) {
  FERRY_TRY(const std::string text, sys::read_file(std::string(path)).during("option --cgroup-props-file"));
  return add_cgroup_properties(options, text);
}

Result<void> add_words(std::vector<std::string>& list, std::string_view text) {
  return for_each_part(text, [&](std::string_view part) -> Result<void> {
    list.emplace_back(part);
    return {};
  });
}

Result<void> allow_external_unix_sockets(engine::CommonOptions& options, std::string_view inodes) {
  options.external_unix_sockets = true;
  return for_each_part(inodes, [&](std::string_view part) -> Result<void> {
    FERRY_TRY(const std::uint32_t inode, parse_number<std::uint32_t>("ext-unix-sk", part));
    options.external.push_back(fmt::format("unix[{}]", inode));
    return {};
  });
}

}  // namespace ferry::criu
