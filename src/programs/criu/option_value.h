// Texts that options take as values, as functions from text to value.
// Errors: invalid, naming the option and what it takes.
#pragma once

#include <charconv>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "engine/options.h"

namespace ferry::criu {

template <class Number>
Result<Number> parse_number(std::string_view option, std::string_view text) {
  Number number{};
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc{} || end != text.data() + text.size()) {
    return fail(Kind::invalid, "option --{} takes a number, and \"{}\" is none that fits", option, text);
  }
  return number;
}

// "10", "64K", "1M", "2G", in bytes.
Result<std::uint64_t> parse_size(std::string_view option, std::string_view text);
// criu(8) --cpu-cap: "all", "none", "fpu,ins", "^cpu"; empty is all.
Result<std::uint32_t> parse_cpu_capability(std::string_view text);
// criu(8) --manage-cgroups; empty is soft.
Result<engine::CgroupMode> parse_cgroup_mode(std::string_view text);
// criu(8) --network-lock: "iptables", "nftables", and "skip" or "none".
Result<engine::FileValidation> parse_file_validation(std::string_view text);
// Errors: unsupported, if there is a plugin in it; CRIU passes over a directory that is not there as well.
Result<void> check_plugin_directory(std::string_view path);
// Errors: unsupported, for anybody but root.
Result<void> check_privileges();
Result<engine::NetworkLock> parse_network_lock(std::string_view text);
// "[CTRL:]/PATH"
Result<engine::CgroupRoot> parse_cgroup_root(std::string_view text);
// "net:/run/netns/x", "user:42,0,0"
Result<engine::JoinNamespace> parse_join_namespace(std::string_view text);
// "fd[3]:pipe:[123]"
Result<engine::InheritFd> parse_inherit_fd(std::string_view text);

// Adds one --external resource.  "mnt[A]:B" goes to the external mounts, which --ext-mount-map also
// fills, so that the engine knows one form of them; all others, "mnt[]" included, stay as they are.
Result<void> add_external(engine::CommonOptions& options, std::string_view text);
// "KEY:VALUE", or "auto", which is "mnt[]".
// Properties of groups to save as well: CRIU's description, `"CONTROLLER": - "strategy": "merge" - "properties":
// ["NAME", …]`, of which the names count.
Result<void> add_cgroup_properties(engine::CommonOptions& options, std::string_view text);
Result<void> add_cgroup_property_file(engine::CommonOptions& options, std::string_view path);
// A list separated by commas.
Result<void> add_words(std::vector<std::string>& list, std::string_view text);
Result<void> add_external_mount(engine::CommonOptions& options, std::string_view text);
// --ext-unix-sk and its optional list of inodes.
Result<void> allow_external_unix_sockets(engine::CommonOptions& options, std::string_view inodes);

}  // namespace ferry::criu
