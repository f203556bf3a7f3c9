#include "state/files/mapped_modes.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "image/proto/files.pb.h"
#include "image/proto/mm.pb.h"

namespace ferry::state {
namespace {

using image::Type;

std::uint32_t add_regular(image::Set& set, std::uint32_t id, int flags) {
  pb::FileEntry file;
  file.set_type(pb::FD_REG);
  file.set_id(id);
  file.mutable_reg()->set_id(id);
  file.mutable_reg()->set_flags(static_cast<std::uint32_t>(flags));
  file.mutable_reg()->set_name("/a");
  set.add({Type::files, 0}, std::move(file));
  return id;
}

std::uint32_t flags_of(const image::Set& set, std::size_t index) {
  return static_cast<const pb::FileEntry&>(*set.entries({Type::files, 0}).at(index).message).reg().flags();
}

void map(pb::MmEntry& mm, std::uint32_t id, int mode) {
  pb::VmaEntry& vma = *mm.add_vmas();
  vma.set_shmid(id);
  vma.set_fdflags(static_cast<std::uint32_t>(mode));
}

TEST(MappedFiles, GetTheWidestModeOfTheirMappings) {
  image::Set set;
  pb::MmEntry mm;
  map(mm, add_regular(set, 1, O_RDONLY), O_RDONLY);
  map(mm, add_regular(set, 2, O_RDONLY), O_RDONLY);
  map(mm, 2, O_RDWR);
  map(mm, add_regular(set, 3, O_RDONLY), O_RDWR);
  set.add({Type::mm, 7}, std::move(mm));
  pb::FdinfoEntry fd;
  fd.set_id(3);
  fd.set_fd(0);
  fd.set_type(pb::FD_REG);
  set.add({Type::fdinfo, 2}, std::move(fd));
  widen_mapped_files(set);
  EXPECT_EQ(flags_of(set, 0), static_cast<std::uint32_t>(O_RDONLY));
  EXPECT_EQ(flags_of(set, 1), static_cast<std::uint32_t>(O_RDWR));
  EXPECT_EQ(flags_of(set, 2), static_cast<std::uint32_t>(O_RDONLY)) << "a descriptor's own mode is never changed";
}

}  // namespace
}  // namespace ferry::state
