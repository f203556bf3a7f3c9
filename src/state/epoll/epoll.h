// Interest lists: epoll(7).
//
// A watch belongs to a pair of descriptor number and file, so only a task that has that file under that
// number can make it again; settle() lets it do so.
#pragma once

#include <memory>
#include <vector>

#include "state/file_kind.h"

namespace ferry::state {

struct EpollWatch {
  int fd = -1;  // its number when it was added
  std::uint32_t events = 0;
  std::uint64_t data = 0;
  std::uint64_t pos = 0, inode = 0;
  std::uint32_t dev = 0;  // kernel style
};
// The tfd lines of fdinfo, in order.
Result<std::vector<EpollWatch>> parse_epoll(const sys::FdInfo& info);

std::unique_ptr<FileKind> make_epoll_kind();

}  // namespace ferry::state
