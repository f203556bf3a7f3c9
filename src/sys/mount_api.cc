#include "sys/mount_api.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#ifndef MOVE_MOUNT_SET_GROUP
#define MOVE_MOUNT_SET_GROUP 0x00000100  // move_mount(2), Linux 5.15
#endif

namespace ferry::sys {
namespace {

// fsopen(2): reading the descriptor yields messages of the form "e text", one for each read.
std::string explanation(int fs) {
  std::string out;
  std::array<char, 512> line;
  for (;;) {
    const ssize_t n = ::read(fs, line.data(), line.size());
    if (n <= 2) {
      return out;
    }
    out += fmt::format("; {}", std::string_view(line.data() + 2, static_cast<std::size_t>(n - 2)));
    while (out.ends_with('\n')) {
      out.pop_back();
    }
  }
}

Result<void> config(int fs, unsigned command, const char* key, const char* value, const std::string& call) {
  if (::syscall(SYS_fsconfig, fs, command, key, value, 0) != 0) {
    const int saved = errno;
    sys_fail error(saved, call);
    error.error.what += explanation(fs);
    return error;
  }
  return {};
}

}  // namespace

Result<UniqueFd> fs_open(const std::string& type) {
  const long fd = ::syscall(SYS_fsopen, type.c_str(), FSOPEN_CLOEXEC);
  if (fd < 0) {
    return sys_fail(fmt::format("fsopen({})", type));
  }
  return UniqueFd(static_cast<int>(fd));
}

Result<void> fs_set_string(int fs, const std::string& key, const std::string& value) {
  return config(fs, FSCONFIG_SET_STRING, key.c_str(), value.c_str(), fmt::format("fsconfig({}={})", key, value));
}

Result<void> fs_set_flag(int fs, const std::string& key) {
  return config(fs, FSCONFIG_SET_FLAG, key.c_str(), nullptr, fmt::format("fsconfig({})", key));
}

Result<void> fs_create(int fs) { return config(fs, FSCONFIG_CMD_CREATE, nullptr, nullptr, "fsconfig(create)"); }

Result<UniqueFd> fs_mount(int fs, const std::string& type) {
  const long fd = ::syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
  if (fd < 0) {
    return sys_fail(fmt::format("fsmount({})", type));
  }
  return UniqueFd(static_cast<int>(fd));
}

Result<void> make_superblock_read_only(int mount) {
  const long fd = ::syscall(SYS_fspick, mount, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH);
  if (fd < 0) {
    return sys_fail("fspick");
  }
  const UniqueFd fs(static_cast<int>(fd));
  FERRY_CHECK(fs_set_flag(fs.get(), "ro"));
  return config(fs.get(), FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr, "fsconfig(reconfigure ro)");
}

Result<UniqueFd> clone_mount(int directory, const std::string& path) {
  const unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (path.empty() ? AT_EMPTY_PATH : 0U);
  const long fd = ::syscall(SYS_open_tree, directory, path.c_str(), flags);
  if (fd < 0) {
    return sys_fail(fmt::format("open_tree({}, clone)", path));
  }
  return UniqueFd(static_cast<int>(fd));
}

Result<void> attach_mount(int mount, int target, const std::string& subject) {
  if (::syscall(SYS_move_mount, mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0) {
    return sys_fail(fmt::format("move_mount(to {})", subject));
  }
  return {};
}

Result<void> set_mount_attributes(int mount, std::uint64_t set, std::uint64_t clear, std::uint64_t propagation) {
  mount_attr attributes{};
  attributes.attr_set = set;
  attributes.attr_clr = clear;
  attributes.propagation = propagation;
  if (::syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH, &attributes, sizeof attributes) != 0) {
    return sys_fail(fmt::format("mount_setattr(set {:#x}, clear {:#x}, propagation {:#x})", set, clear, propagation));
  }
  return {};
}

Result<void> copy_mount_group(int from, int mount) {
  if (::syscall(SYS_move_mount, from, "", mount, "",
                MOVE_MOUNT_SET_GROUP | MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0) {
    return sys_fail("move_mount(set group)");
  }
  return {};
}

}  // namespace ferry::sys
