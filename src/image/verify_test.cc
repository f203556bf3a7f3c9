#include "image/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "image/fixture.h"
#include "image/proto/core.pb.h"
#include "image/proto/files.pb.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/mm.pb.h"
#include "image/proto/pstree.pb.h"

namespace ferry::image {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Verify, FindsNothingInWhatCriuWrote) {
  for (const char* name : testing::kFixtures) {
    const auto set = testing::load_fixture(name);
    EXPECT_THAT(verify(set, testing::open_directory(testing::fixture(name)).get()), IsEmpty()) << name;
  }
}

// The zoo without one image.
Set without(Name gone) {
  const auto whole = testing::load_fixture("zoo");
  Set set;
  for (const Name name : whole.names()) {
    if (name != gone) {
      EXPECT_TRUE(decode_file(set, name, *encode_file(whole, name), 2));
    }
  }
  return set;
}

TEST(Verify, NamesEveryImageThatOthersReferTo) {
  for (const Name gone : std::vector<Name>{{Type::pstree, 0},
                                           {Type::core, 25262},
                                           {Type::core, 25265},
                                           {Type::ids, 25262},
                                           {Type::mm, 25262},
                                           {Type::fs, 25262},
                                           {Type::pagemap, 25262},
                                           {Type::pagemap_shmem, 10900},
                                           {Type::ghost_file, 1}}) {
    EXPECT_THAT(verify(without(gone), -1), Contains(HasSubstr(file_name(gone)))) << file_name(gone);
  }
  EXPECT_THAT(verify(without({Type::files, 0}), -1), Contains(HasSubstr("files.img")));
  EXPECT_THAT(verify(without({Type::memfd, 0}), -1), Contains(HasSubstr("memfd.img")));
  EXPECT_THAT(verify(without({Type::tty_info, 0}), -1), Contains(HasSubstr("tty-info.img")));
  EXPECT_THAT(verify(without({Type::fdinfo, 2}), -1), Contains(HasSubstr("filelocks.img")));
  EXPECT_THAT(verify(without({Type::remap_fpath, 0}), -1), Contains(HasSubstr("ghost-file-1.img")));
}

// The zoo with one message changed.
template <class M>
std::vector<std::string> changed(Name name, const std::function<void(M&)>& change) {
  auto set = testing::load_fixture("zoo");
  for (const Entry& entry : set.entries(name)) {
    if (entry.message->GetDescriptor() == M::descriptor()) {
      change(static_cast<M&>(*entry.message));
    }
  }
  return verify(set, testing::open_directory(testing::fixture("zoo")).get());
}

TEST(Verify, NamesReferencesThatLeadNowhere) {
  EXPECT_THAT(changed<pb::FsEntry>({Type::fs, 25262}, [](auto& fs) { fs.set_cwd_id(9999); }),
              Contains(HasSubstr("cwd_id 9999")));
  EXPECT_THAT(changed<pb::MmEntry>({Type::mm, 25262}, [](auto& mm) { mm.set_exe_file_id(9999); }),
              Contains(HasSubstr("exe_file_id 9999")));
  EXPECT_THAT(changed<pb::MmEntry>({Type::mm, 25262}, [](auto& mm) { mm.mutable_vmas(0)->set_shmid(9999); }),
              Contains(HasSubstr("shmid 9999")));
  EXPECT_THAT(changed<pb::MmEntry>({Type::mm, 25262}, [](auto& mm) { mm.mutable_vmas()->DeleteSubrange(0, 2); }),
              Contains(HasSubstr("is in no mapping")));
  EXPECT_THAT(changed<pb::FdinfoEntry>({Type::fdinfo, 2}, [](auto& fd) { fd.set_fd(7); }),
              Contains(HasSubstr("descriptor 7")));
  EXPECT_THAT(changed<pb::PstreeEntry>({Type::pstree, 0}, [](auto& task) { task.set_ppid(5); }),
              Contains(HasSubstr("pid 25262")));
  EXPECT_THAT(changed<pb::PstreeEntry>({Type::pstree, 0}, [](auto& task) { task.set_threads(2, 25264); }),
              Contains(HasSubstr("thread 25264 is there twice")));
  EXPECT_THAT(
      changed<pb::CoreEntry>({Type::core, 25264}, [](auto& core) { core.mutable_thread_core()->set_cg_set(77); }),
      Contains(HasSubstr("cgroup set 77")));
  EXPECT_THAT(changed<pb::CoreEntry>({Type::core, 25262},
                                     [](auto& core) { core.mutable_thread_core()->set_seccomp_filter(3); }),
              Contains(HasSubstr("seccomp filter 3")));
  EXPECT_THAT(changed<pb::PipeDataEntry>({Type::pipes_data, 0}, [](auto& data) { data.set_pipe_id(5); }),
              Contains(HasSubstr("pipe 5")));
  EXPECT_THAT(changed<pb::SkPacketEntry>({Type::sk_queues, 0}, [](auto& data) { data.set_id_for(500); }),
              Contains(HasSubstr("no file 500")));
  EXPECT_THAT(changed<pb::FileEntry>({Type::files, 0},
                                     [](auto& file) {
                                       if (file.has_usk()) {
                                         file.mutable_usk()->set_peer(12345);
                                       }
                                     }),
              Contains(HasSubstr("inode 12345")));
  EXPECT_THAT(changed<pb::FileEntry>({Type::files, 0},
                                     [](auto& file) {
                                       if (file.has_reg() && file.reg().name().ends_with("/gone")) {
                                         file.mutable_reg()->set_size(17);
                                       }
                                     }),
              Contains(HasSubstr("ghost-file-1.img makes a file of 16 bytes")));
  EXPECT_THAT(changed<pb::PagemapHead>({Type::pagemap, 25262}, [](auto& head) { head.set_pages_id(1); }),
              Contains(HasSubstr("pages-1.img")));
  EXPECT_THAT(changed<pb::InventoryEntry>({Type::inventory, 0}, [](auto& inventory) { inventory.clear_root_ids(); }),
              Contains(HasSubstr("root_ids")));
}

}  // namespace
}  // namespace ferry::image
