#include "state/files/build_id.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "base/unique_fd.h"

namespace ferry::state::files {
namespace {

template <class T>
void put(std::string& file, std::size_t at, const T& value) {
  file.resize(std::max(file.size(), at + sizeof value));
  std::memcpy(file.data() + at, &value, sizeof value);
}

// An ELF file with one note at `offset`.
std::string elf(std::size_t offset, std::uint32_t type, const std::string& id) {
  std::string file;
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_phoff = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 1;
  put(file, 0, header);
  Elf64_Phdr segment{};
  segment.p_type = PT_NOTE;
  segment.p_offset = offset;
  segment.p_align = 4;
  segment.p_filesz = sizeof(Elf64_Nhdr) + 4 + id.size();
  put(file, sizeof header, segment);
  put(file, offset, Elf64_Nhdr{4, static_cast<Elf64_Word>(id.size()), type});
  file += std::string("GNU\0", 4) + id;
  return file;
}

std::vector<std::uint32_t> of(const std::string& content) {
  const UniqueFd fd(::memfd_create("elf", MFD_CLOEXEC));
  EXPECT_EQ(::write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  return read_build_id(fd.get()).value();
}

TEST(BuildId, IsPackedInTheOrderOfMemory) {
  EXPECT_EQ(of(elf(512, NT_GNU_BUILD_ID, std::string("\1\2\3\4\5", 5))), (std::vector<std::uint32_t>{0x04030201, 5}));
  EXPECT_EQ(of(elf(100'000, NT_GNU_BUILD_ID, "abcd")), (std::vector<std::uint32_t>{0x64636261}));
}

TEST(BuildId, IsNotMadeUp) {
  EXPECT_TRUE(of("").empty());
  EXPECT_TRUE(of("#!/bin/sh\n").empty());
  EXPECT_TRUE(of(elf(512, NT_GNU_ABI_TAG, "abcd")).empty());
  std::string cut = elf(512, NT_GNU_BUILD_ID, "abcdefgh");
  cut.resize(cut.size() - 1);
  EXPECT_TRUE(of(cut).empty());
  std::string odd = elf(512, NT_GNU_BUILD_ID, "abcd");
  put(odd, offsetof(Elf64_Ehdr, e_phoff), std::uint64_t{UINT64_MAX - 3});
  EXPECT_TRUE(of(odd).empty());
}

}  // namespace
}  // namespace ferry::state::files
