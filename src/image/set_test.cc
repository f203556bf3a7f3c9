#include "image/set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "image/fixture.h"
#include "image/proto/core.pb.h"
#include "image/proto/files.pb.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/ipc.pb.h"
#include "image/proto/mm.pb.h"
#include "image/proto/pstree.pb.h"
#include "image/proto/remap.pb.h"
#include "image/proto/stats.pb.h"
#include "image/stats.h"

namespace ferry::image {
namespace {

using testing::fixture;
using ::testing::HasSubstr;
using testing::kFixtures;
using testing::load_fixture;
using testing::open_directory;
using testing::slurp;
using testing::spill;
using testing::TemporaryDirectory;

constexpr Name kInventory{Type::inventory, 0};

Set minimal(std::uint32_t version = 2) {
  Set set;
  pb::InventoryEntry inventory;
  inventory.set_img_version(version);
  set.add(kInventory, std::move(inventory));
  return set;
}

std::vector<std::string> image_files(const std::filesystem::path& directory) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const auto file = entry.path().filename().string();
    if (file.ends_with(".img") && !file.starts_with("pages-")) {
      out.push_back(file);
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

TEST(FileNames, AreReadBackAsTheyAreWritten) {
  for (const auto& [name, file] : std::vector<std::pair<Name, std::string>>{
           {{Type::inventory, 0}, "inventory.img"},
           {{Type::core, 42}, "core-42.img"},
           {{Type::pagemap, 7}, "pagemap-7.img"},
           {{Type::pagemap_shmem, 7}, "pagemap-shmem-7.img"},
           {{Type::ghost_file, 0x1f}, "ghost-file-1f.img"},
           {{Type::tcp_stream, 0xd6e}, "tcp-stream-d6e.img"},
           {{Type::tmpfs_dev, 43}, "tmpfs-dev-43.tar.gz.img"},
           {{Type::netns, 10}, "netns-10.img"},
           {{Type::netns_ct, 10}, "netns-ct-10.img"},
           {{Type::pidns, 18446744073709551615U}, "pidns-18446744073709551615.img"}}) {
    EXPECT_EQ(file_name(name), file);
    const auto parsed = parse_file_name(file);
    ASSERT_TRUE(parsed) << file;
    EXPECT_EQ(*parsed, name) << file;
  }
}

TEST(FileNames, OfOtherThingsAreRefused) {
  for (const char* file : {"", ".img", "core-.img", "core-1", "core-01.img", "core--1.img", "core-+1.img",
                           "core-1 .img", "core-0x1.img", "core-18446744073709551616.img", "ghost-file-1F.img",
                           "pages-1.img", "inventory-1.img", "tmpfs-dev-43.img", "vmas-1.img", "dump.log"}) {
    const auto parsed = parse_file_name(file);
    ASSERT_FALSE(parsed) << file;
    EXPECT_EQ(parsed.error().kind, Kind::gone);
  }
}

class Fixture : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(CriuWrote, Fixture, ::testing::ValuesIn(kFixtures), [](const auto& parameter) {
  std::string name = parameter.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(Fixture, HoldsEveryImageOfTheDirectory) {
  const auto set = load_fixture(GetParam());
  std::vector<std::string> files;
  for (const Name name : set.names()) {
    files.push_back(file_name(name));
  }
  std::sort(files.begin(), files.end());
  EXPECT_EQ(files, image_files(fixture(GetParam())));
}

TEST_P(Fixture, IsSavedByteForByte) {
  const auto set = load_fixture(GetParam());
  const TemporaryDirectory copy;
  const auto saved = save(set, copy.open().get());
  ASSERT_TRUE(saved) << saved.error().message();
  const auto files = image_files(fixture(GetParam()));
  EXPECT_EQ(image_files(copy.path()), files);
  for (const auto& file : files) {
    EXPECT_EQ(slurp(copy.path() / file), slurp(fixture(GetParam()) / file)) << file;
  }
}

TEST_P(Fixture, CrossesAStreamUnchanged) {
  const auto set = load_fixture(GetParam());
  const auto bytes = encode(set);
  ASSERT_TRUE(bytes) << bytes.error().message();
  const auto back = decode(*bytes);
  ASSERT_TRUE(back) << back.error().message();
  ASSERT_EQ(back->names(), set.names());
  for (const Name name : set.names()) {
    EXPECT_EQ(*encode_file(*back, name), *encode_file(set, name)) << file_name(name);
  }
}

// No prefix of a file may crash the reader, and one that ends inside an entry is an error that names it.
TEST_P(Fixture, CutAtAnyByteIsAnErrorUnlessItEndsBetweenEntries) {
  const auto set = load_fixture(GetParam());
  for (const Name name : set.names()) {
    const auto bytes = *encode_file(set, name);
    if (set.raw(name) != nullptr || bytes.size() > 3000) {
      continue;
    }
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      Set cut;
      const auto read = decode_file(cut, name, bytes.substr(0, size), 2);
      if (!read) {
        EXPECT_EQ(read.error().kind, Kind::corrupt);
        EXPECT_THAT(read.error().message(), HasSubstr(file_name(name)));
        EXPECT_THAT(read.error().message(), HasSubstr("offset"));
        continue;
      }
      // What was read has to be exactly what was there, except for a ghost file, whose content has no end.
      if (name.type != Type::ghost_file) {
        EXPECT_LT(cut.entries(name).size(), set.entries(name).size()) << file_name(name) << " cut at " << size;
      }
      EXPECT_EQ(*encode_file(cut, name), bytes.substr(0, size)) << file_name(name) << " cut at " << size;
    }
  }
}

TEST_P(Fixture, WithAnyBitTurnedIsReadOrRefusedAndNeverCrashes) {
  const auto set = load_fixture(GetParam());
  for (const Name name : set.names()) {
    auto bytes = *encode_file(set, name);
    if (set.raw(name) != nullptr || bytes.size() > 1500) {
      continue;
    }
    for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      const auto flip = [&] { bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ 1 << bit % 8); };
      flip();
      Set read;
      const auto result = decode_file(read, name, bytes, 2);
      if (result) {
        EXPECT_TRUE(encode_file(read, name)) << file_name(name) << " bit " << bit;
      } else {
        EXPECT_EQ(result.error().kind, Kind::corrupt);
      }
      const std::size_t magics = name == kInventory ? 4 : 8;
      EXPECT_TRUE(!result || bit / 8 >= magics) << file_name(name) << " with a wrong magic was read";
      flip();
    }
  }
}

TEST(Load, RefusesADirectoryWithoutInventory) {
  const TemporaryDirectory empty;
  const auto set = load(empty.open().get());
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().kind, Kind::corrupt);
  EXPECT_THAT(set.error().message(), HasSubstr("inventory.img"));
}

TEST(Load, RefusesVersionsByNumber) {
  for (const std::uint32_t version : {0U, 3U, 4000000000U}) {
    const TemporaryDirectory directory;
    spill(directory.path() / "inventory.img", *encode_file(minimal(version), kInventory));
    const auto set = load(directory.open().get());
    ASSERT_FALSE(set) << version;
    EXPECT_EQ(set.error().kind, Kind::unsupported);
    EXPECT_EQ(load(directory.open().get(), Accept::pre_dump).has_value(), version == 0) << version;
  }
}

TEST(Load, ReadsVersionOneWithoutCommonMagicAndSavesItAlike) {
  Set old = minimal(1);
  pb::PstreeEntry task;
  task.set_pid(1);
  task.set_ppid(0);
  task.set_pgid(1);
  task.set_sid(1);
  old.add({Type::pstree, 0}, std::move(task));
  const TemporaryDirectory directory;
  ASSERT_TRUE(save(old, directory.open().get()));
  EXPECT_EQ(slurp(directory.path() / "pstree.img").substr(0, 4), "\x30\x30\x27\x50");
  const auto back = load(directory.open().get());
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ((*back->one<pb::PstreeEntry>({Type::pstree, 0}))->pid(), 1U);
}

TEST(Load, RefusesWhatItDoesNotKnowByName) {
  for (const char* file : {"vmas-1.img", "amdgpu-kfd-1.img"}) {
    const TemporaryDirectory directory;
    ASSERT_TRUE(save(minimal(), directory.open().get()));
    spill(directory.path() / file, "x");
    spill(directory.path() / "dump.log", "not an image");
    const auto set = load(directory.open().get());
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().kind, Kind::unsupported);
    EXPECT_THAT(set.error().message(), HasSubstr(file));
  }
}

TEST(Load, DoesNotWaitForAFifoOrFollowALink) {
  for (const bool fifo : {true, false}) {
    const TemporaryDirectory directory;
    ASSERT_TRUE(save(minimal(), directory.open().get()));
    const auto path = directory.path() / "pstree.img";
    ASSERT_EQ(fifo ? ::mkfifo(path.c_str(), 0600) : ::symlink("inventory.img", path.c_str()), 0);
    const auto set = load(directory.open().get());
    ASSERT_FALSE(set);
    EXPECT_THAT(set.error().message(), HasSubstr("pstree.img"));
  }
}

TEST(Save, ReplacesWhatIsThereAndWritesNoLinkThrough) {
  const TemporaryDirectory directory;
  spill(directory.path() / "outside", "untouched");
  ASSERT_EQ(::symlink("outside", (directory.path() / "inventory.img").c_str()), 0);
  ASSERT_TRUE(save(minimal(), directory.open().get()));
  EXPECT_EQ(slurp(directory.path() / "outside"), "untouched");
  EXPECT_TRUE(load(directory.open().get()));
}

TEST(Save, RefusesAMessageThatLacksAField) {
  Set set = minimal();
  set.add({Type::fs, 1}, pb::FsEntry());
  const TemporaryDirectory directory;
  const auto saved = save(set, directory.open().get());
  ASSERT_FALSE(saved);
  EXPECT_THAT(saved.error().message(), HasSubstr("fs-1.img"));
  EXPECT_THAT(saved.error().message(), HasSubstr("cwd_id"));
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "inventory.img"));
}

TEST(Save, RefusesDataOfAnotherSizeThanAnnounced) {
  Set set = minimal();
  pb::PipeDataEntry data;
  data.set_pipe_id(1);
  data.set_bytes(3);
  set.add({Type::pipes_data, 0}, std::move(data), "four");
  EXPECT_FALSE(encode_file(set, {Type::pipes_data, 0}));
}

std::string framed(std::uint32_t magic, std::string_view entries) {
  std::string out;
  for (const std::uint32_t word : {0x54564319U, magic}) {
    out.append(reinterpret_cast<const char*>(&word), sizeof word);
  }
  return out.append(entries);
}
using namespace std::string_view_literals;

TEST(Entries, WithHugeLengthsAreRefused) {
  for (const auto length : {"\xff\xff\xff\xff"sv, "\xff\xff\xff\x7f"sv, "\x01\x00\x00\x00"sv, "\x00\x00\x00\x10"sv}) {
    Set set;
    const auto read = decode_file(set, {Type::pstree, 0}, framed(0x50273030, length), 2);
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().kind, Kind::corrupt);
    EXPECT_THAT(read.error().message(), HasSubstr("pstree.img, offset"));
  }
}

TEST(Entries, WithoutRequiredFieldsAreRefused) {
  Set set;
  const auto read = decode_file(set, {Type::pstree, 0}, framed(0x50273030, "\x02\x00\x00\x00\x08\x01"sv), 2);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message(), HasSubstr("ppid"));
}

TEST(Entries, WithUnknownEnumeratorsAreRefused) {
  // FdinfoEntry: id 1, flags 0, type 77, fd 0.
  Set set;
  const auto read =
      decode_file(set, {Type::fdinfo, 2}, framed(0x56213732, "\x08\x00\x00\x00\x08\x01\x10\x00\x18\x4d\x20\x00"sv), 2);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message(), HasSubstr("FdType"));
  // An optional enumeration: InventoryEntry with img_version 2 and lsmtype 9.
  const auto optional =
      decode_file(set, kInventory, std::string("\x16\x31\x31\x58\x04\x00\x00\x00\x08\x02\x30\x09", 12), 2);
  ASSERT_FALSE(optional);
  EXPECT_THAT(optional.error().message(), HasSubstr("LsmType"));
}

TEST(Entries, BeyondTheOnlyOneAreRefused) {
  Set set = minimal();
  auto bytes = *encode_file(set, kInventory);
  bytes += bytes.substr(4);
  Set twice;
  const auto read = decode_file(twice, kInventory, bytes, 2);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message(), HasSubstr("more than one entry"));
}

TEST(Entries, KeepFieldsThatTheSchemaDoesNotKnow) {
  Set set;
  // InventoryEntry: img_version 2, and field 500 with the value 7.
  const std::string bytes("\x16\x31\x31\x58\x05\x00\x00\x00\x08\x02\xa0\x1f\x07", 13);
  ASSERT_TRUE(decode_file(set, kInventory, bytes, 2));
  EXPECT_EQ(*encode_file(set, kInventory), bytes);
}

TEST(GhostFile, KeepsChunksWithTheirData) {
  Set set = minimal();
  const Name name{Type::ghost_file, 10};
  pb::GhostFileEntry head;
  head.set_uid(0);
  head.set_gid(0);
  head.set_mode(0100644);
  head.set_chunks(true);
  head.set_size(1 << 20);
  set.add(name, std::move(head));
  for (const std::uint64_t offset : {0U, 65536U}) {
    pb::GhostChunkEntry chunk;
    chunk.set_off(offset);
    chunk.set_len(5);
    set.add(name, std::move(chunk), "bytes");
  }
  const auto bytes = encode_file(set, name);
  ASSERT_TRUE(bytes);
  Set back;
  ASSERT_TRUE(decode_file(back, name, *bytes, 2));
  ASSERT_EQ(back.entries(name).size(), 3U);
  EXPECT_EQ(back.list<pb::GhostChunkEntry>(name).back()->off(), 65536U);
  EXPECT_EQ(back.entries(name).back().extra, "bytes");
}

TEST(SystemVImages, PadDataToEightBytes) {
  Set set = minimal();
  const auto describe = [](pb::IpcDescEntry& desc) {
    desc.set_key(1);
    desc.set_uid(0);
    desc.set_gid(0);
    desc.set_cuid(0);
    desc.set_cgid(0);
    desc.set_mode(0600);
    desc.set_id(0);
  };
  pb::IpcSemEntry semaphores;
  describe(*semaphores.mutable_desc());
  semaphores.set_nsems(3);
  set.add({Type::ipcns_sem, 9}, std::move(semaphores), "aabbcc");
  pb::IpcMsgEntry queue;
  describe(*queue.mutable_desc());
  queue.set_qbytes(100);
  queue.set_qnum(2);
  const Name messages{Type::ipcns_msg, 9};
  set.add(messages, queue);
  for (const std::string text : {"one", "eight by"}) {
    pb::IpcMsg message;
    message.set_mtype(1);
    message.set_msize(static_cast<std::uint32_t>(text.size()));
    set.add(messages, std::move(message), text);
  }
  queue.set_qnum(0);
  set.add(messages, queue);

  const auto sem_bytes = encode_file(set, {Type::ipcns_sem, 9});
  ASSERT_TRUE(sem_bytes);
  EXPECT_TRUE(sem_bytes->ends_with("aabbcc\0\0"sv));
  const auto msg_bytes = encode_file(set, messages);
  ASSERT_TRUE(msg_bytes);
  EXPECT_THAT(*msg_bytes, HasSubstr(std::string("one\0\0\0\0\0", 8)));

  Set back;
  ASSERT_TRUE(decode_file(back, messages, *msg_bytes, 2));
  ASSERT_EQ(back.entries(messages).size(), 4U);
  EXPECT_EQ(back.entries(messages)[1].extra, "one");
  EXPECT_EQ(back.entries(messages)[2].extra, "eight by");
  EXPECT_EQ(back.list<pb::IpcMsgEntry>(messages).size(), 2U);

  Set short_of_one = minimal();
  queue.set_qnum(1);
  short_of_one.add(messages, queue);
  EXPECT_FALSE(encode_file(short_of_one, messages));
}

TEST(Stream, CutOrChangedAnywhereIsRefused) {
  Set set = minimal();
  set.touch({Type::seccomp, 0});
  const auto bytes = *encode(set);
  ASSERT_TRUE(decode(bytes));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(decode(bytes.substr(0, size))) << size;
  }
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    auto changed = bytes;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ 1 << bit % 8);
    EXPECT_FALSE(decode(changed)) << bit;
  }
  EXPECT_FALSE(decode(bytes + "x"));
}

TEST(Stats, AreReadAsCriuWroteThemAndWrittenAlike) {
  const auto stats = load_stats(open_directory(fixture("zoo")).get(), "stats-dump");
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_EQ(stats->dump().pages_written(), 1227U);
  const TemporaryDirectory directory;
  ASSERT_TRUE(save_stats(*stats, directory.open().get(), "stats-dump"));
  EXPECT_EQ(slurp(directory.path() / "stats-dump"), slurp(fixture("zoo") / "stats-dump"));
}

}  // namespace
}  // namespace ferry::image
