// Watches of files and directories: inotify(7).
#pragma once

#include <memory>
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

}  // namespace ferry::state
