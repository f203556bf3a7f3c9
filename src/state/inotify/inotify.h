// Watches of files and directories: inotify(7).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "state/file_kind.h"

namespace ferry::state {

struct InotifyWatch {
  std::uint32_t wd = 0;
  std::uint64_t inode = 0;
  std::uint32_t dev = 0;  // kernel style
  std::uint32_t mask = 0;
  std::uint32_t handle_type = 0;
  std::vector<unsigned char> handle;  // name_to_handle_at(2)
};
// The "inotify" lines of fdinfo.
Result<std::vector<InotifyWatch>> parse_inotify(const sys::FdInfo& info);

std::unique_ptr<FileKind> make_inotify_kind();

// The value of one such line: "1 ino:3c51a sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 …".
std::optional<InotifyWatch> parse_watch(std::string_view text);
void put_handle(const InotifyWatch& watch, const std::string& path, pb::FhEntry& out);

}  // namespace ferry::state
