#include "state/files/build_id.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <span>

#include "sys/file.h"

namespace ferry::state::files {
namespace {

using Bytes = std::span<const std::byte>;
constexpr std::size_t kFirst = 4096;  // headers, and with the usual linkers the notes as well
constexpr std::uint64_t kMostNotes = 1U << 20;
constexpr std::size_t kMostBytes = 64;  // of a build-id; SHA-1 has 20

template <class T>
bool take(Bytes from, std::uint64_t at, T& out) {
  if (at > from.size() || from.size() - at < sizeof out) {
    return false;
  }
  std::memcpy(&out, from.data() + at, sizeof out);
  return true;
}

constexpr std::uint64_t aligned(std::uint64_t size, std::uint64_t to) { return (size + to - 1) / to * to; }

std::vector<std::uint32_t> find_in(Bytes notes, std::uint64_t alignment) {
  Elf64_Nhdr note{};
  for (std::uint64_t at = 0; take(notes, at, note);) {
    const std::uint64_t name = at + sizeof note;
    const std::uint64_t content = name + aligned(note.n_namesz, alignment);
    std::array<char, 4> owner{};
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == owner.size() && take(notes, name, owner) &&
        std::memcmp(owner.data(), ELF_NOTE_GNU, owner.size()) == 0 && note.n_descsz > 0 &&
        note.n_descsz <= kMostBytes && content <= notes.size() && notes.size() - content >= note.n_descsz) {
      std::vector<std::uint32_t> out(aligned(note.n_descsz, 4) / 4);
      std::memcpy(out.data(), notes.data() + content, note.n_descsz);
      return out;
    }
    at = content + aligned(note.n_descsz, alignment);
  }
  return {};
}

// As much as there is; nothing if it cannot be read.
Bytes read_at(int fd, std::uint64_t offset, std::span<std::byte> room) {
  const ssize_t n = ::pread(fd, room.data(), room.size(), static_cast<off_t>(offset));
  return Bytes(room).first(n < 0 ? 0 : static_cast<std::size_t>(n));
}

}  // namespace

Result<std::vector<std::uint32_t>> read_build_id(int fd) {
  constexpr long kFuse = 0x65735546;  // FUSE_SUPER_MAGIC, statfs(2)
  struct statfs fs {};
  if (::fstatfs(fd, &fs) != 0 || fs.f_type == kFuse) {
    return std::vector<std::uint32_t>();  // who would have to answer the read may be in the tree that is stopped
  }
  const UniqueFd file(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  std::array<std::byte, kFirst> room;
  Elf64_Ehdr header{};
  if (!file) {
    return std::vector<std::uint32_t>();  // its size and mode have to do
  }
  const Bytes first = read_at(file.get(), 0, room);
  if (!take(first, 0, header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
      header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_phentsize != sizeof(Elf64_Phdr)) {
    return std::vector<std::uint32_t>();
  }
  Elf64_Phdr segment{};
  for (std::uint64_t i = 0;
       i < header.e_phnum && header.e_phoff < kFirst && take(first, header.e_phoff + i * sizeof segment, segment);
       ++i) {
    if (segment.p_type != PT_NOTE || segment.p_filesz > kMostNotes) {
      continue;
    }
    const std::uint64_t alignment = segment.p_align == 8 ? 8 : 4;
    std::vector<std::uint32_t> found;
    if (segment.p_offset <= first.size() && first.size() - segment.p_offset >= segment.p_filesz) {
      found = find_in(first.subspan(segment.p_offset, segment.p_filesz), alignment);
    } else {
      std::vector<std::byte> notes(segment.p_filesz);
      found = find_in(read_at(file.get(), segment.p_offset, notes), alignment);
    }
    if (!found.empty()) {
      return found;
    }
  }
  return std::vector<std::uint32_t>();
}

}  // namespace ferry::state::files
