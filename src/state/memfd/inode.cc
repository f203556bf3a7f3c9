#include "state/memfd/inode.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/zeros.h"
#include "state/memfd/memfd.h"
#include "state/memfd/settled.h"
#include "sys/file.h"

namespace ferry::state::memfd {
namespace {

constexpr std::string_view kPrefix = "/memfd:", kDeleted = " (deleted)", kAnonymous = "/dev/zero",
                           kAnonymousHuge = "/anon_hugepage";
constexpr std::size_t kChunk = 1U << 20;
constexpr std::uint32_t kFutureWrite = 0x10;  // F_SEAL_FUTURE_WRITE
constexpr long kHugetlbfs = 0x958458f6;       // HUGETLBFS_MAGIC, statfs(2)

std::string name_of(std::string_view link) {
  if (link.ends_with(kDeleted)) {
    link.remove_suffix(kDeleted.size());
  }
  return std::string(link.starts_with(kPrefix) ? link.substr(kPrefix.size()) : link);
}

bool is_anonymous(const pb::MemfdInodeEntry& inode) {
  return (inode.name() == kAnonymous || inode.name() == kAnonymousHuge) && inode.size() != 0;
}

// MAP_SHARED | MAP_ANONYMOUS makes an object that no call can open, but its mapping can be (proc(5),
// map_files).  A memfd would do as well, only that /proc/PID/maps would show another name.
Result<UniqueFd> create_anonymous(std::uint64_t size, std::uint32_t huge) {
  const int flags = MAP_SHARED | MAP_ANONYMOUS | static_cast<int>(huge == 0 ? 0 : MAP_HUGETLB | huge);
  void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (at == MAP_FAILED) {
    return sys_fail(fmt::format("mmap({} bytes, MAP_SHARED | MAP_ANONYMOUS)", size));
  }
  const auto start = reinterpret_cast<std::uint64_t>(at);
  const std::uint64_t end = start + (size + image::kPageSize - 1) / image::kPageSize * image::kPageSize;
  auto fd = sys::open(fmt::format("/proc/self/map_files/{:x}-{:x}", start, end), O_RDWR);
  ::munmap(at, size);
  return fd;
}

Result<void> set_attributes(const pb::MemfdInodeEntry& inode, int fd) {
  if (::ftruncate(fd, static_cast<off_t>(inode.size())) != 0) {
    return sys_fail(fmt::format("ftruncate(memfd {}, {})", inode.name(), inode.size()));
  }
  if (::fchown(fd, inode.uid(), inode.gid()) != 0) {
    return sys_fail(fmt::format("fchown(memfd {}, {}, {})", inode.name(), inode.uid(), inode.gid()));
  }
  if (inode.has_mode() && ::fchmod(fd, inode.mode() & 07777) != 0) {
    return sys_fail(fmt::format("fchmod(memfd {}, {:o})", inode.name(), inode.mode() & 07777));
  }
  return {};
}

Result<UniqueFd> create_named(const pb::MemfdInodeEntry& inode) {
  // Without MFD_ALLOW_SEALING the new file has exactly F_SEAL_SEAL.
  const bool sealable = inode.seals() != F_SEAL_SEAL;
  const std::uint32_t huge = inode.hugetlb_flag() == 0 ? 0 : MFD_HUGETLB | inode.hugetlb_flag();
  UniqueFd fd(::memfd_create(inode.name().c_str(), MFD_CLOEXEC | (sealable ? MFD_ALLOW_SEALING : 0U) | huge));
  if (!fd) {
    return sys_fail(fmt::format("memfd_create({})", inode.name()));
  }
  FERRY_CHECK(set_attributes(inode, fd.get()));
  return fd;
}

// Without content and seals.
Result<UniqueFd> create_file(const pb::MemfdInodeEntry& inode) {
  return is_anonymous(inode) ? create_anonymous(inode.size(), inode.hugetlb_flag()) : create_named(inode);
}

// A shared mapping that is made later must not count as one that could become writable, so F_SEAL_FUTURE_WRITE
// comes after the mappings; F_SEAL_SEAL would forbid the last one.
Result<void> seal_before_mappings(const pb::MemfdInodeEntry& inode, int fd) {
  return is_anonymous(inode) || (inode.seals() & kFutureWrite) != 0 ? Result<void>() : seal(inode, fd);
}

// hugetlbfs has no write(2).
Result<void> copy_by_mapping(int fd, const std::byte* from, std::size_t size, std::uint64_t at,
                             const pb::MemfdInodeEntry& inode) {
  const std::uint64_t page = std::uint64_t{1} << (inode.hugetlb_flag() >> MFD_HUGE_SHIFT);
  const std::uint64_t start = at / page * page;
  const std::uint64_t length = (at + size - start + page - 1) / page * page;
  void* mapped = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(start));
  if (mapped == MAP_FAILED) {
    return sys_fail(fmt::format("mmap(memory file {} of huge pages)", inode.name()));
  }
  std::memcpy(static_cast<std::byte*>(mapped) + (at - start), from, size);
  ::munmap(mapped, length);
  return {};
}

Result<void> fill(const pb::MemfdInodeEntry& inode, int fd, image::PageStore& pages) {
  const image::Name name{image::Type::pagemap_shmem, inode.shmid()};
  FERRY_TRY(const auto extents, pages.extents(name));
  const std::uint64_t capacity = (inode.size() + image::kPageSize - 1) / image::kPageSize * image::kPageSize;
  std::vector<std::byte> buffer(kChunk);
  for (const image::Extent& extent : extents) {
    const std::uint64_t size = extent.page_count * image::kPageSize;
    if (extent.fd < 0) {
      return fail(Kind::unsupported, "the content of memory file {} is on a page server", inode.name());
    }
    if (extent.vaddr > capacity || size > capacity - extent.vaddr) {
      return fail(Kind::corrupt, "{} has pages behind the end of its memory file", image::file_name(name));
    }
    for (std::uint64_t done = 0; done < size;) {
      const std::size_t take = static_cast<std::size_t>(std::min<std::uint64_t>(kChunk, size - done));
      FERRY_CHECK(sys::pread_exactly(extent.fd, buffer.data(), take, extent.offset + done, image::file_name(name)));
      // The last page of a file whose size is not a whole number of them would make it longer.
      const std::size_t fits = static_cast<std::size_t>(
          std::min<std::uint64_t>(take, inode.size() - std::min(inode.size(), extent.vaddr + done)));
      if (inode.hugetlb_flag() != 0) {
        FERRY_CHECK(copy_by_mapping(fd, buffer.data(), fits, extent.vaddr + done, inode));
        done += take;
        continue;
      }
      for (std::size_t at = 0; at < fits;) {
        const ssize_t n = ::pwrite(fd, buffer.data() + at, fits - at, static_cast<off_t>(extent.vaddr + done + at));
        if (n < 0 && errno == EINTR) {
          continue;
        }
        if (n < 0) {
          return sys_fail(fmt::format("pwrite(memory file {})", inode.name()));
        }
        at += static_cast<std::size_t>(n);
      }
      done += take;
    }
  }
  return {};
}

}  // namespace

bool is_memfd(std::string_view link) {
  if (!link.ends_with(kDeleted)) {
    return false;
  }
  const std::string_view name = link.substr(0, link.size() - kDeleted.size());
  return name.starts_with(kPrefix) || name == kAnonymous || name == kAnonymousHuge;
}

Result<std::uint32_t> huge_page_flag(int fd) {
  struct statfs fs {};
  if (::fstatfs(fd, &fs) != 0) {
    return sys_fail("fstatfs(memory file)");
  }
  if (fs.f_type != kHugetlbfs) {
    return 0U;
  }
  return static_cast<std::uint32_t>(std::countr_zero(static_cast<std::uint64_t>(fs.f_bsize))) << MFD_HUGE_SHIFT;
}

Result<const pb::MemfdInodeEntry*> describe(image::Set& set, int fd, const std::string& link,
                                            const std::string& subject) {
  FERRY_TRY(const struct stat st, sys::stat_fd(fd, subject));
  const auto known = set.list<pb::MemfdInodeEntry>({image::Type::memfd});
  for (const pb::MemfdInodeEntry* inode : known) {
    // All live on one internal mount of tmpfs (huge pages apart), so the inode number names them.
    if (inode->shmid() == static_cast<std::uint32_t>(st.st_ino)) {
      return inode;
    }
  }
  FERRY_TRY(const std::uint32_t huge, huge_page_flag(fd).during("{}", subject));
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) {
    return sys_fail(fmt::format("fcntl({}, F_GET_SEALS)", subject));
  }
  pb::MemfdInodeEntry inode;
  inode.set_name(name_of(link));
  inode.set_uid(st.st_uid);
  inode.set_gid(st.st_gid);
  inode.set_size(static_cast<std::uint64_t>(st.st_size));
  inode.set_shmid(static_cast<std::uint32_t>(st.st_ino));
  inode.set_seals(static_cast<std::uint32_t>(seals));
  inode.set_inode_id(known.size() + 1);
  inode.set_mode(st.st_mode);
  if (huge != 0) {
    inode.set_hugetlb_flag(huge);
  }
  return &set.add({image::Type::memfd}, std::move(inode));
}

Result<void> save_content(DumpContext& context, const pb::MemfdInodeEntry& inode, int fd) {
  const image::Name name{image::Type::pagemap_shmem, inode.shmid()};
  FERRY_TRY(const auto writer, context.open_pages(name));
  if (context.options.skip_memory) {
    return writer->finish();
  }
  std::vector<std::byte> buffer(kChunk);
  off_t at = 0;
  const auto size = static_cast<off_t>(inode.size());
  while (at < size) {
    // lseek(2), SEEK_DATA: a page of shared memory that was never touched is a hole.
    off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
      break;
    }
    const off_t hole = data < 0 ? -1 : ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) {
      return sys_fail(fmt::format("lseek(memory file {})", inode.name()));
    }
    data &= ~static_cast<off_t>(image::kPageSize - 1);
    while (data < hole) {
      const auto take = static_cast<std::size_t>(std::min<off_t>(hole - data, static_cast<off_t>(kChunk)));
      const std::size_t pages = (take + image::kPageSize - 1) / image::kPageSize;
      std::fill(buffer.begin(), buffer.end(), std::byte{0});
      FERRY_CHECK(sys::pread_exactly(fd, buffer.data(), take, static_cast<std::uint64_t>(data), inode.name()));
      for (std::size_t i = 0; i < pages; ++i) {
        const auto page = std::span<const std::byte>(buffer).subspan(i * image::kPageSize, image::kPageSize);
        if (!all_zeros(page)) {
          writer->describe(static_cast<std::uint64_t>(data) + i * image::kPageSize, 1, image::kPresent);
          FERRY_CHECK(writer->append(page));
        }
      }
      data += static_cast<off_t>(take);
    }
    at = hole;
  }
  return writer->finish();
}

Result<UniqueFd> create(const pb::MemfdInodeEntry& inode, image::PageStore& pages) {
  FERRY_TRY(UniqueFd fd, create_file(inode));
  FERRY_CHECK(fill(inode, fd.get(), pages).during("filling memory file {}", inode.name()));
  FERRY_CHECK(seal_before_mappings(inode, fd.get()));
  return fd;
}

bool can_settle(const pb::MemfdInodeEntry& inode) { return inode.hugetlb_flag() == 0 && inode.size() != 0; }

Result<UniqueFd> create_empty(const pb::MemfdInodeEntry& inode) { return create_file(inode); }

std::string settled_key(std::uint32_t shmid) { return fmt::format("memory-file[{}]", shmid); }

Result<void> settle(const pb::MemfdInodeEntry& inode, int fd) {
  FERRY_TRY(const std::string link, sys::read_link_at(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd)));
  if (!is_memfd(link) || name_of(link) != inode.name() || inode.hugetlb_flag() != 0) {
    return fail(Kind::corrupt, "memory file {} was another one, {}, when its content was sent", inode.name(),
                name_of(link));
  }
  if (is_anonymous(inode)) {
    return {};
  }
  FERRY_CHECK(set_attributes(inode, fd));
  return seal_before_mappings(inode, fd);
}

Result<void> seal(const pb::MemfdInodeEntry& inode, int fd) {
  const std::uint32_t seals = inode.seals();
  if (seals != 0 && ::fcntl(fd, F_GET_SEALS) != static_cast<int>(seals) && ::fcntl(fd, F_ADD_SEALS, seals) != 0) {
    return sys_fail(fmt::format("fcntl(memory file {}, F_ADD_SEALS, {:#x})", inode.name(), seals));
  }
  return {};
}

}  // namespace ferry::state::memfd
