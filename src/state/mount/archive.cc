#include "state/mount/archive.h"

#include <archive.h>
#include <archive_entry.h>

#include <algorithm>
#include <array>
#include <memory>

#include "base/log.h"

namespace ferry::state::mount {
namespace {

struct Free {
  void operator()(archive* a) const { ::archive_free(a); }
  void operator()(archive_entry* e) const { ::archive_entry_free(e); }
  void operator()(archive_entry_linkresolver* r) const { ::archive_entry_linkresolver_free(r); }
};
using Archive = std::unique_ptr<archive, Free>;
using ArchiveEntry = std::unique_ptr<archive_entry, Free>;
using LinkResolver = std::unique_ptr<archive_entry_linkresolver, Free>;

// libarchive hands out an errno or a code of its own (negative).
fail<std::string, const char*> archive_fail(archive* a, const std::string& what) {
  const char* text = ::archive_error_string(a);
  return {Kind::os, "{}: {}", std::string(what), text == nullptr ? "no reason given" : text};
}

la_ssize_t append(archive*, void* client, const void* bytes, std::size_t size) {
  static_cast<std::string*>(client)->append(static_cast<const char*>(bytes), size);
  return static_cast<la_ssize_t>(size);
}

// The writer knows the holes from the entry and drops what is written there.
Result<void> write_zeros(archive* out, la_int64_t count, const std::string& path) {
  static constexpr std::array<char, 65536> zeros{};
  while (count > 0) {
    const auto step = static_cast<std::size_t>(std::min<la_int64_t>(count, zeros.size()));
    const la_ssize_t written = ::archive_write_data(out, zeros.data(), step);
    if (written < 0) {
      return archive_fail(out, fmt::format("archiving {}", path));
    }
    count -= static_cast<la_int64_t>(step);
  }
  return {};
}

Result<void> copy_content(archive* disk, archive* out, archive_entry* entry, const std::string& path) {
  la_int64_t position = 0;
  for (;;) {
    const void* block = nullptr;
    std::size_t size = 0;
    la_int64_t offset = 0;
    const int result = ::archive_read_data_block(disk, &block, &size, &offset);
    if (result == ARCHIVE_EOF) {
      return write_zeros(out, ::archive_entry_size(entry) - position, path);
    }
    if (result != ARCHIVE_OK) {
      return archive_fail(disk, fmt::format("reading {}", path));
    }
    FERRY_CHECK(write_zeros(out, offset - position, path));
    if (::archive_write_data(out, block, size) < 0) {
      return archive_fail(out, fmt::format("archiving {}", path));
    }
    position = offset + static_cast<la_int64_t>(size);
  }
}

Result<void> add_entry(archive* disk, archive* out, archive_entry* entry) {
  const std::string path = ::archive_entry_pathname(entry);
  if (::archive_write_header(out, entry) != ARCHIVE_OK) {
    return archive_fail(out, fmt::format("archiving {}", path));
  }
  if (::archive_entry_filetype(entry) == AE_IFREG && ::archive_entry_hardlink(entry) == nullptr &&
      ::archive_entry_size(entry) > 0) {
    return copy_content(disk, out, entry, path);
  }
  return {};
}

}  // namespace

Result<std::string> archive_here() {
  std::string bytes;
  const Archive out(::archive_write_new());
  // The tree is frozen meanwhile: the fastest level.
  if (::archive_write_add_filter_gzip(out.get()) != ARCHIVE_OK ||
      ::archive_write_set_filter_option(out.get(), "gzip", "compression-level", "1") != ARCHIVE_OK ||
      ::archive_write_set_filter_option(out.get(), "gzip", "timestamp", nullptr) != ARCHIVE_OK ||
      ::archive_write_set_format_pax(out.get()) != ARCHIVE_OK ||
      ::archive_write_set_bytes_in_last_block(out.get(), 1) != ARCHIVE_OK ||
      ::archive_write_open(out.get(), &bytes, nullptr, append, nullptr) != ARCHIVE_OK) {
    return archive_fail(out.get(), "making an archive");
  }
  const Archive disk(::archive_read_disk_new());
  if (::archive_read_disk_set_symlink_physical(disk.get()) != ARCHIVE_OK ||
      ::archive_read_disk_set_behavior(disk.get(), ARCHIVE_READDISK_NO_TRAVERSE_MOUNTS |
                                                       ARCHIVE_READDISK_NO_FFLAGS) != ARCHIVE_OK ||
      ::archive_read_disk_open(disk.get(), ".") != ARCHIVE_OK) {
    return archive_fail(disk.get(), "opening a tmpfs");
  }
  const LinkResolver links(::archive_entry_linkresolver_new());
  ::archive_entry_linkresolver_set_strategy(links.get(), ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE);
  const ArchiveEntry entry(::archive_entry_new());
  for (;;) {
    ::archive_entry_clear(entry.get());
    const int result = ::archive_read_next_header2(disk.get(), entry.get());
    if (result == ARCHIVE_EOF) {
      break;
    }
    if (result != ARCHIVE_OK) {
      return archive_fail(disk.get(), "reading a tmpfs");
    }
    if (::archive_entry_filetype(entry.get()) == AE_IFDIR && ::archive_read_disk_descend(disk.get()) < ARCHIVE_WARN) {
      return archive_fail(disk.get(), "reading a directory of a tmpfs");
    }
    if (::archive_entry_filetype(entry.get()) == AE_IFSOCK) {
      log::info("socket {} stays out of the archive of its tmpfs", ::archive_entry_pathname(entry.get()));
      continue;
    }
    archive_entry* current = entry.get();
    archive_entry* spare = nullptr;
    ::archive_entry_linkify(links.get(), &current, &spare);
    if (current != nullptr) {
      FERRY_CHECK(add_entry(disk.get(), out.get(), current));
    }
  }
  if (::archive_write_close(out.get()) != ARCHIVE_OK) {
    return archive_fail(out.get(), "closing an archive");
  }
  return bytes;
}

Result<void> extract_here(std::string_view bytes) {
  const Archive in(::archive_read_new());
  if (::archive_read_support_filter_gzip(in.get()) != ARCHIVE_OK ||
      ::archive_read_support_format_tar(in.get()) != ARCHIVE_OK ||
      ::archive_read_open_memory(in.get(), bytes.data(), bytes.size()) != ARCHIVE_OK) {
    return archive_fail(in.get(), "opening the archive of a tmpfs");
  }
  const Archive disk(::archive_write_disk_new());
  // An image is input: no path of it may lead out of the filesystem.
  constexpr int kFlags = ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_ACL |
                         ARCHIVE_EXTRACT_XATTR | ARCHIVE_EXTRACT_SECURE_SYMLINKS | ARCHIVE_EXTRACT_SECURE_NODOTDOT |
                         ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS;
  if (::archive_write_disk_set_options(disk.get(), kFlags) != ARCHIVE_OK) {
    return archive_fail(disk.get(), "preparing to extract");
  }
  for (;;) {
    archive_entry* entry = nullptr;
    const int result = ::archive_read_next_header(in.get(), &entry);
    if (result == ARCHIVE_EOF) {
      break;
    }
    if (result != ARCHIVE_OK) {
      return fail(Kind::corrupt, "the archive of a tmpfs cannot be read: {}", ::archive_error_string(in.get()));
    }
    const std::string path = ::archive_entry_pathname(entry);
    if (::archive_write_header(disk.get(), entry) != ARCHIVE_OK) {
      return archive_fail(disk.get(), fmt::format("extracting {}", path));
    }
    for (;;) {
      const void* block = nullptr;
      std::size_t size = 0;
      la_int64_t offset = 0;
      const int read = ::archive_read_data_block(in.get(), &block, &size, &offset);
      if (read == ARCHIVE_EOF) {
        break;
      }
      if (read != ARCHIVE_OK) {
        return fail(Kind::corrupt, "the archive of a tmpfs cannot be read at {}: {}", path,
                    ::archive_error_string(in.get()));
      }
      if (::archive_write_data_block(disk.get(), block, size, offset) != ARCHIVE_OK) {
        return archive_fail(disk.get(), fmt::format("extracting {}", path));
      }
    }
    if (::archive_write_finish_entry(disk.get()) != ARCHIVE_OK) {
      return archive_fail(disk.get(), fmt::format("extracting {}", path));
    }
  }
  // Modes and times of directories are set here, when nothing changes below them any more.
  if (::archive_write_close(disk.get()) != ARCHIVE_OK) {
    return archive_fail(disk.get(), "finishing the extraction");
  }
  return {};
}

}  // namespace ferry::state::mount
