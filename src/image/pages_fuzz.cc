// Hostile pagemaps: whatever ranges they claim, every extent that comes out lies inside its file, is
// sorted and overlaps no other.
//
// The input is the file pagemap-1.img of a set whose pages-1.img has sixteen pages.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "image/page_store.h"
#include "image/set.h"

namespace {

using namespace ferry;
using namespace ferry::image;

constexpr std::uint64_t kPagesInFile = 16;

void must(bool holds) {
  if (!holds) {
    std::abort();
  }
}

int pages_directory() {
  static const int directory = [] {
    std::string path = std::filesystem::temp_directory_path() / "ferry-fuzz-XXXXXX";
    must(::mkdtemp(path.data()) != nullptr);
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int pages = ::openat(fd, "pages-1.img", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0 && pages >= 0 && ::ftruncate(pages, kPagesInFile * kPageSize) == 0);
    ::close(pages);
    return fd;  // libFuzzer leaves without a word to us: who started it takes the directory away (tests/fuzz.py)
  }();
  return directory;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Set set;
  const Name pagemap{Type::pagemap, 1};
  if (!decode_file(set, pagemap, std::string(reinterpret_cast<const char*>(data), size), 2)) {
    return 0;
  }
  auto store = PageStore::open(set, pages_directory());
  if (!store) {
    return 0;
  }
  const auto extents = store->extents(pagemap);
  if (!extents) {
    return 0;
  }
  std::uint64_t end = 0;
  for (const Extent& extent : *extents) {
    must(extent.vaddr % kPageSize == 0 && extent.page_count > 0 && extent.vaddr >= end);
    end = extent.vaddr + extent.page_count * kPageSize;
    must(end > extent.vaddr);
    if (extent.fd >= 0) {
      must(extent.offset % kPageSize == 0 && extent.offset + extent.page_count * kPageSize <= kPagesInFile * kPageSize);
    }
  }
  return 0;
}
