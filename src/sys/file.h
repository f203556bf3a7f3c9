// Opening, reading and writing whole small files (procfs, cgroupfs, records), EINTR handled.
#pragma once

#include <sys/stat.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

// openat(2); O_CLOEXEC is always added.
Result<UniqueFd> open_at(int directory, const std::string& path, int flags, mode_t mode = 0);
inline Result<UniqueFd> open(const std::string& path, int flags, mode_t mode = 0) {
  return open_at(-100 /* AT_FDCWD */, path, flags, mode);
}
// openat2(2) with RESOLVE_IN_ROOT: absolute links and ".." stay below `root`.
Result<UniqueFd> open_in_root(int root, const std::string& path, int flags, mode_t mode = 0);

// From the current position to the end of file, whatever fstat says (procfs files have size 0).
Result<std::string> read_all(int fd, std::string_view subject);
Result<std::string> read_file_at(int directory, const std::string& path);
inline Result<std::string> read_file(const std::string& path) { return read_file_at(-100, path); }

Result<void> write_all(int fd, const void* bytes, std::size_t size, std::string_view subject);
// Exactly `size` bytes or an error; end of file is Kind::corrupt.
Result<void> read_exactly(int fd, void* bytes, std::size_t size, std::string_view subject);
Result<void> pread_exactly(int fd, void* bytes, std::size_t size, std::uint64_t offset, std::string_view subject);
// One write(2) to an existing file, as procfs and cgroupfs want it.
Result<void> write_file_at(int directory, const std::string& path, std::string_view text);
inline Result<void> write_file(const std::string& path, std::string_view text) {
  return write_file_at(-100, path, text);
}

Result<std::string> read_link_at(int directory, const std::string& path);
inline Result<std::string> read_link(const std::string& path) { return read_link_at(-100, path); }
Result<struct stat> stat_fd(int fd, std::string_view subject);
// Which mount a file was opened through, as mountinfo numbers them.
Result<int> mount_of(int fd);
Result<UniqueFd> duplicate(int fd);  // F_DUPFD_CLOEXEC
// Names in a directory without "." and "..", in the kernel's order.
Result<std::vector<std::string>> list_directory(int directory, const std::string& path);

}  // namespace ferry::sys
