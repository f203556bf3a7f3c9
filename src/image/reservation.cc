// Room for pages, made ahead.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "image/page_store.h"
#include "sys/file.h"

namespace ferry::image {

Result<Reservation> Reservation::make(int directory, std::uint32_t pages_id, std::uint64_t bytes) {
  const auto file = pages_file_name(pages_id);
  FERRY_TRY(auto fd, create_pages_file(directory, file));
  Reservation out;
  out.fd_ = std::move(fd);
  if (bytes == 0) {
    return out;
  }
  if (::fallocate(out.fd_.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL) {
      return out;  // fallocate(2): not every file system can
    }
    const int saved = errno;
    (void)::unlinkat(directory, file.c_str(), 0);
    return sys_fail(saved, fmt::format("the images directory has no room for {} MiB of memory", (bytes >> 20) + 1));
  }
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, out.fd_.get(), 0);
  if (base != MAP_FAILED) {
    out.base_ = static_cast<std::byte*>(base);
    out.size_ = bytes;
    // Who is forked to outlive us (engine/tracker_keeper.h) must not hold the file.
    (void)::madvise(base, bytes, MADV_DONTFORK);
  }
  return out;
}

Reservation::Reservation(Reservation&& other) noexcept
    : fd_(std::move(other.fd_)), base_(std::exchange(other.base_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(base_, other.base_);
  std::swap(size_, other.size_);
  return *this;
}

Reservation::~Reservation() {
  if (base_ != nullptr) {
    ::munmap(base_, size_);
  }
}

}  // namespace ferry::image
