#include "programs/criu/swrk.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "image/proto/stats.pb.h"
#include "image/stats.h"
#include "lazy/endpoint.h"
#include "lazy/wire.h"
#include "programs/criu/rpc_channel.h"
#include "rpc.pb.h"

namespace ferry::criu {
namespace {

using testing::HasSubstr;

// A worker in a thread of its own, with an engine that the test chooses, and the caller's end of its
// socket.
class Swrk : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/ferry-swrk-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    images_ = UniqueFd(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    home_ = std::filesystem::current_path();
  }
  void TearDown() override {
    caller_.reset();
    finish();
    std::filesystem::current_path(home_);
    std::filesystem::remove_all(directory_);
  }

  void start() {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    caller_ = UniqueFd(ends[0]);
    thread_ = std::thread([this, fd = ends[1]] {
      const UniqueFd own(fd);
      end_ = serve(own.get(), base_, engine_);
    });
  }
  // Waits for the worker; its exit status.
  int finish() {
    if (thread_.joinable()) {
      thread_.join();
    }
    return end_.status;
  }

  void send(const rpc::criu_req& request) { send_bytes(request.SerializePartialAsString()); }
  void send_bytes(const std::string& bytes) { ASSERT_TRUE(RpcChannel(caller_.get()).send(bytes).has_value()); }
  // The next message; EMPTY and false at the end of the connection.
  rpc::criu_resp receive() {
    rpc::criu_resp response;
    const auto packet = RpcChannel(caller_.get()).receive();
    closed_ = !packet.has_value() || !packet->has_value();
    if (closed_ || !response.ParseFromString(**packet)) {
      response.set_type(rpc::EMPTY);
      response.set_success(false);
    }
    return response;
  }
  rpc::criu_resp ask(const rpc::criu_req& request) {
    send(request);
    return receive();
  }

  rpc::criu_req request(rpc::criu_req_type type) {
    rpc::criu_req r;
    r.set_type(type);
    if (type == rpc::DUMP || type == rpc::RESTORE) {
      r.mutable_opts()->set_images_dir_fd(images_.get());
      r.mutable_opts()->set_log_file("dump.log");
      r.mutable_opts()->set_log_level(4);
    }
    if (type == rpc::DUMP) {
      r.mutable_opts()->set_pid(4242);
    }
    return r;
  }
  void answer(bool yes) {
    rpc::criu_req r;
    r.set_type(rpc::NOTIFY);
    r.set_notify_success(yes);
    send(r);
  }
  std::string file(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(directory_ / name).rdbuf();
    return text.str();
  }

  std::filesystem::path directory_, home_;
  UniqueFd images_, caller_;
  Settings base_;
  Engine engine_;
  std::thread thread_;
  WorkerEnd end_;
  bool closed_ = false;
};

TEST_F(Swrk, TellsItsVersionAndEnds) {
  start();
  const auto response = ask(request(rpc::VERSION));
  EXPECT_TRUE(response.success());
  EXPECT_EQ(response.type(), rpc::VERSION);
  EXPECT_EQ(response.version().major_number(), 4);
  EXPECT_EQ(response.version().minor_number(), 2);
  EXPECT_FALSE(response.version().has_sublevel() || response.version().has_gitid());
  EXPECT_EQ(finish(), 0);
}

TEST_F(Swrk, StaysOpenWhenAskedTo) {
  start();
  auto version = request(rpc::VERSION);
  version.set_keep_open(true);
  EXPECT_TRUE(ask(version).success());
  EXPECT_TRUE(ask(version).success());
  EXPECT_TRUE(ask(request(rpc::VERSION)).success());
  EXPECT_EQ(finish(), 0);
}

TEST_F(Swrk, ACallerThatLeavesIsABrokenProtocol) {
  start();
  caller_.reset();
  EXPECT_EQ(finish(), 255);
}

TEST_F(Swrk, DropsTheConnectionWhenADumpShallBeFollowed) {
  start();
  auto dump = request(rpc::DUMP);
  dump.set_keep_open(true);
  ask(dump);
  EXPECT_TRUE(closed_);
  EXPECT_EQ(finish(), 255);
}

TEST_F(Swrk, AnswersUnknownTypesWithTheFourBytesOfCriu) {
  for (const std::string& bytes :
       {std::string("\x08\x63", 2), std::string("\x08\x00", 2), std::string("\x08\x06", 2)}) {
    start();
    send_bytes(bytes);
    const auto packet = RpcChannel(caller_.get()).receive();
    ASSERT_TRUE(packet.has_value() && packet->has_value());
    EXPECT_EQ(**packet, std::string("\x08\x00\x10\x00", 4));
    EXPECT_EQ(finish(), 255);
  }
}

TEST_F(Swrk, SaysNothingToWhatIsNoMessage) {
  start();
  send_bytes("\xff\xff\xff");
  receive();
  EXPECT_TRUE(closed_);
  EXPECT_EQ(finish(), 255);
}

TEST_F(Swrk, TellsOnlyOfFeaturesThatWereAskedForAndAreThere) {
  start();
  auto features = request(rpc::FEATURE_CHECK);
  features.mutable_features()->set_mem_track(true);
  const auto response = ask(features);
  EXPECT_TRUE(response.success());
  EXPECT_TRUE(response.features().has_mem_track() && response.features().has_lazy_pages() &&
              response.features().has_pidfd_store());
  EXPECT_FALSE(response.features().lazy_pages() || response.features().pidfd_store());
  EXPECT_EQ(finish(), 0);
}

TEST_F(Swrk, PreDumpsUntilItDumps) {
  std::vector<std::string> parents;
  engine_.pre_dump = [&](const engine::DumpOptions& options) -> Result<engine::DumpReport> {
    parents.push_back("pre-dump after " + options.parent_images);
    return engine::DumpReport{};
  };
  engine_.checkpoint = [&](const engine::DumpOptions& options, engine::Listener&) -> Result<engine::DumpReport> {
    parents.push_back("dump after " + options.parent_images);
    return engine::DumpReport{};
  };
  start();
  auto first = request(rpc::DUMP);
  first.set_type(rpc::PRE_DUMP);
  const auto response = ask(first);
  EXPECT_TRUE(response.success());
  EXPECT_EQ(response.type(), rpc::PRE_DUMP);
  auto second = request(rpc::DUMP);
  second.mutable_opts()->set_parent_img("../1");
  EXPECT_TRUE(ask(second).success());
  EXPECT_EQ(finish(), 0);
  EXPECT_THAT(parents, testing::ElementsAre("pre-dump after ", "dump after ../1"));
}

TEST_F(Swrk, ASinglePreDumpIsOne) {
  engine_.pre_dump = [](const engine::DumpOptions&) { return Result<engine::DumpReport>(engine::DumpReport{}); };
  start();
  auto only = request(rpc::DUMP);
  only.set_type(rpc::SINGLE_PRE_DUMP);
  const auto response = ask(only);
  EXPECT_TRUE(response.success());
  EXPECT_EQ(response.type(), rpc::SINGLE_PRE_DUMP);
  EXPECT_EQ(finish(), 0);
}

TEST_F(Swrk, NothingElseFollowsAPreDump) {
  engine_.pre_dump = [](const engine::DumpOptions&) { return Result<engine::DumpReport>(engine::DumpReport{}); };
  start();
  auto first = request(rpc::DUMP);
  first.set_type(rpc::PRE_DUMP);
  EXPECT_TRUE(ask(first).success());
  const auto response = ask(request(rpc::VERSION));
  EXPECT_EQ(response.type(), rpc::EMPTY);
  EXPECT_FALSE(response.success());
  EXPECT_EQ(finish(), 255);
}

// The last word of a sender that has nothing to send.
void end_conversation(std::int32_t port) {
  const auto socket = lazy::connect_to({"127.0.0.1", static_cast<std::uint16_t>(port), -1});
  ASSERT_TRUE(socket.has_value()) << socket.error().message();
  ASSERT_TRUE(lazy::send(socket->get(), lazy::command(lazy::Verb::close)).has_value());
  std::int32_t status = -1;
  ASSERT_EQ(::recv(socket->get(), &status, sizeof status, MSG_WAITALL), 4);
  EXPECT_EQ(status, 0);
}

TEST_F(Swrk, StartsAPageServerAtAnyFreePort) {
  for (const auto type : {rpc::PAGE_SERVER, rpc::PAGE_SERVER_CHLD}) {
    start();
    auto r = request(rpc::DUMP);
    r.set_type(type);
    r.mutable_opts()->mutable_ps()->set_address("127.0.0.1");
    const auto response = ask(r);
    EXPECT_TRUE(response.success()) << response.cr_errmsg();
    EXPECT_EQ(response.type(), rpc::PAGE_SERVER);
    EXPECT_GT(response.ps().port(), 0);
    EXPECT_EQ(response.ps().pid() != 0, type == rpc::PAGE_SERVER_CHLD);
    end_conversation(response.ps().port());
    EXPECT_EQ(finish(), 0);
  }
}

TEST_F(Swrk, SaysWhichPageServerCannotBe) {
  start();
  auto r = request(rpc::DUMP);
  r.set_type(rpc::PAGE_SERVER);
  r.mutable_opts()->mutable_ps()->set_address("192.0.2.1");  // nobody's (RFC 5737)
  const auto response = ask(r);
  EXPECT_FALSE(response.success());
  EXPECT_THAT(response.cr_errmsg(), HasSubstr("192.0.2.1"));
  EXPECT_EQ(finish(), 1);
}

TEST_F(Swrk, BadOptionsAreEbadrqc) {
  using Spoil = void (*)(rpc::criu_opts&);
  for (const Spoil spoil : std::initializer_list<Spoil>{
           [](rpc::criu_opts& o) { o.set_log_file("a/b"); }, [](rpc::criu_opts& o) { o.set_images_dir_fd(9999); },
           [](rpc::criu_opts& o) { o.set_images_dir_fd(-1); }, [](rpc::criu_opts& o) { o.set_empty_ns(0x20000000); },
           [](rpc::criu_opts& o) { o.mutable_ps()->set_port(70000); },
           [](rpc::criu_opts& o) { o.add_external("nonsense"); }}) {
    start();
    auto dump = request(rpc::DUMP);
    spoil(*dump.mutable_opts());
    const auto response = ask(dump);
    EXPECT_EQ(response.type(), rpc::DUMP);
    EXPECT_FALSE(response.success());
    EXPECT_EQ(response.cr_errno(), EBADRQC);
    EXPECT_THAT(response.cr_errmsg(), testing::EndsWith("\n"));
    EXPECT_EQ(finish(), 1);
  }
}

TEST_F(Swrk, ADumpWithoutPidIsThatOfTheCallerAndAnsweredAtTheRestore) {
  for (const bool lives_on : {true, false}) {
    struct stat socket {};
    start();
    ASSERT_EQ(::fstat(caller_.get(), &socket), 0);
    engine_.checkpoint = [&](const engine::DumpOptions& options, engine::Listener&) -> Result<engine::DumpReport> {
      EXPECT_EQ(options.pid, HostPid{::getpid()});
      EXPECT_EQ(options.caller_socket, socket.st_ino);
      return engine::DumpReport{};
    };
    auto dump = request(rpc::DUMP);
    dump.mutable_opts()->clear_pid();
    dump.mutable_opts()->set_leave_running(lives_on);
    const auto response = ask(dump);
    EXPECT_EQ(response.success(), lives_on);
    EXPECT_EQ(closed_, !lives_on) << "the answer of a process that was ended waits in its image";
    EXPECT_EQ(finish(), 0);
  }
}

TEST_F(Swrk, OverANamedSocketTheCallersDescriptorsAndChildrenAreOutOfReach) {
  base_.in_service = true;
  for (const bool sibling : {true, false}) {
    start();
    auto restore = request(rpc::RESTORE);
    if (sibling) {
      restore.mutable_opts()->set_rst_sibling(true);
    } else {
      auto* const inherit = restore.mutable_opts()->add_inherit_fd();
      inherit->set_key("pipe:[1]");
      inherit->set_fd(1);
    }
    const auto response = ask(restore);
    EXPECT_FALSE(response.success());
    EXPECT_EQ(response.cr_errno(), EBADRQC);
    EXPECT_EQ(finish(), 1);
  }
}

TEST_F(Swrk, DumpsWithNotificationsLogAndStatistics) {
  engine_.checkpoint = [](const engine::DumpOptions& options,
                          engine::Listener& listener) -> Result<engine::DumpReport> {
    EXPECT_EQ(options.pid, HostPid{4242});
    EXPECT_EQ(options.external_mounts.at(0).key, "/etc/hosts");
    FERRY_CHECK(listener.on({engine::Stage::pre_dump, {}, -1}));
    FERRY_TRY(const auto answer, listener.on({engine::Stage::query_ext_files, {}, -1}));
    EXPECT_THAT(answer.external, testing::ElementsAre("unix[5]"));
    return engine::DumpReport{.freezing_us = 1, .frozen_us = 700, .pages_written = 9};
  };
  start();
  auto dump = request(rpc::DUMP);
  dump.mutable_opts()->set_notify_scripts(true);
  auto* const mount = dump.mutable_opts()->add_ext_mnt();
  mount->set_key("/etc/hosts");
  mount->set_val("/etc/hosts");
  auto notice = ask(dump);
  EXPECT_EQ(notice.type(), rpc::NOTIFY);
  EXPECT_TRUE(notice.success());
  EXPECT_EQ(notice.notify().script(), "pre-dump");
  EXPECT_FALSE(notice.notify().has_pid());
  answer(true);
  EXPECT_EQ(receive().notify().script(), "query-ext-files");
  rpc::criu_req externals;
  externals.set_type(rpc::NOTIFY);
  externals.set_notify_success(true);
  externals.mutable_opts()->add_external("unix[5]");
  const auto response = ask(externals);
  EXPECT_EQ(response.type(), rpc::DUMP);
  EXPECT_TRUE(response.success());
  EXPECT_TRUE(response.dump().has_restored());
  EXPECT_EQ(finish(), 0);
  const auto stats = image::load_stats(images_.get(), "stats-dump");
  ASSERT_TRUE(stats.has_value());
  EXPECT_EQ(stats->dump().frozen_time(), 700U);
  EXPECT_EQ(stats->dump().pages_written(), 9U);
  struct stat status {};
  ASSERT_EQ(::stat((directory_ / "dump.log").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
  EXPECT_THAT(file("dump.log"), testing::MatchesRegex("\\([0-9.]+\\) ferry (.|\n)*finished successfully(.|\n)*"));
}

TEST_F(Swrk, ACallerThatSaysNoOrDiesFailsTheStage) {
  for (const bool dies : {false, true}) {
    std::string heard;
    engine_.checkpoint = [&](const engine::DumpOptions&, engine::Listener& listener) -> Result<engine::DumpReport> {
      const auto told = listener.on({engine::Stage::post_dump, {}, -1});
      heard = told.has_value() ? "" : told.error().message();
      FERRY_CHECK(told);
      return engine::DumpReport{};
    };
    start();
    auto dump = request(rpc::DUMP);
    dump.mutable_opts()->set_notify_scripts(true);
    EXPECT_EQ(ask(dump).notify().script(), "post-dump");
    if (dies) {
      caller_.reset();
      EXPECT_EQ(finish(), 255);
      EXPECT_THAT(heard, HasSubstr("closed the RPC socket"));
    } else {
      answer(false);
      const auto response = receive();
      EXPECT_FALSE(response.success());
      EXPECT_EQ(finish(), 1);
      EXPECT_THAT(heard, HasSubstr("said no at post-dump"));
    }
    EXPECT_THAT(file("dump.log"), HasSubstr("Error ("));
  }
}

TEST_F(Swrk, ARefusedRestoreStillTellsThePid) {
  engine_.restore = [](const engine::RestoreOptions& options,
                       engine::Listener& listener) -> Result<engine::RestoreReport> {
    EXPECT_TRUE(options.detached && options.sibling);
    EXPECT_EQ(options.inherit_fds.at(0).key, "pipe:[7]");
    FERRY_CHECK(listener.on({engine::Stage::post_restore, HostPid{77}, -1}));
    return engine::RestoreReport{};
  };
  start();
  auto restore = request(rpc::RESTORE);
  restore.mutable_opts()->set_notify_scripts(true);
  restore.mutable_opts()->set_rst_sibling(true);
  auto* const pipe = restore.mutable_opts()->add_inherit_fd();
  pipe->set_key("pipe:[7]");
  pipe->set_fd(1);
  EXPECT_EQ(ask(restore).notify().pid(), 77);
  answer(false);
  const auto response = receive();
  EXPECT_FALSE(response.success());
  EXPECT_EQ(response.restore().pid(), 77);
  EXPECT_EQ(finish(), 1);
}

TEST_F(Swrk, AFailedRestoreWithoutATreeTellsMinusOneAndTheErrno) {
  engine_.restore = [](const engine::RestoreOptions&, engine::Listener&) -> Result<engine::RestoreReport> {
    return sys_fail(EEXIST, "clone3(set_tid 77)");
  };
  start();
  const auto response = ask(request(rpc::RESTORE));
  EXPECT_EQ(response.type(), rpc::RESTORE);
  EXPECT_EQ(response.restore().pid(), -1);
  EXPECT_EQ(response.cr_errno(), EEXIST);
  EXPECT_EQ(finish(), 1);
}

TEST_F(Swrk, HandsOverAnOrphanTerminal) {
  engine_.restore = [this](const engine::RestoreOptions&, engine::Listener& listener) -> Result<engine::RestoreReport> {
    FERRY_CHECK(listener.on({engine::Stage::orphan_pts_master, {}, images_.get()}));
    return engine::RestoreReport{.root = HostPid{5}};
  };
  start();
  auto restore = request(rpc::RESTORE);
  restore.mutable_opts()->set_notify_scripts(true);
  send(restore);
  std::array<char, 256> data{};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  iovec part{data.data(), data.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ASSERT_GT(::recvmsg(caller_.get(), &message, MSG_CMSG_CLOEXEC), 0);
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  ASSERT_NE(header, nullptr);
  EXPECT_EQ(header->cmsg_type, SCM_RIGHTS);
  int passed = -1;
  std::memcpy(&passed, CMSG_DATA(header), sizeof passed);
  const UniqueFd own(passed);
  struct stat ours {};
  struct stat theirs {};
  ASSERT_EQ(::fstat(own.get(), &theirs), 0);
  ASSERT_EQ(::fstat(images_.get(), &ours), 0);
  EXPECT_EQ(ours.st_ino, theirs.st_ino);
  answer(true);
  EXPECT_EQ(receive().restore().pid(), 5);
  EXPECT_EQ(finish(), 0);
}

TEST_F(Swrk, TheConfigurationFileOfTheRequestWins) {
  const auto config = directory_ / "runc.conf";
  std::ofstream(config) << "log-file other.log\ntcp-close\nno-shell-job\n";
  engine_.checkpoint = [](const engine::DumpOptions& options, engine::Listener&) -> Result<engine::DumpReport> {
    EXPECT_TRUE(options.tcp_close);
    EXPECT_FALSE(options.shell_job);
    return engine::DumpReport{};
  };
  start();
  auto dump = request(rpc::DUMP);
  dump.mutable_opts()->set_shell_job(true);
  dump.mutable_opts()->set_config_file(config);
  EXPECT_TRUE(ask(dump).success());
  EXPECT_EQ(finish(), 0);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "dump.log"));
  EXPECT_TRUE(std::filesystem::exists(directory_ / "other.log"));
}

TEST_F(Swrk, RunsActionScriptsAndTakesTheirNo) {
  const auto script = directory_ / "script";
  std::ofstream(script) << "#!/bin/sh\necho \"$CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID $#\" >> " << directory_ / "seen"
                        << "\ntest -d \"$CRTOOLS_IMAGE_DIR\" || exit 9\n"
                        << "test \"$CRTOOLS_SCRIPT_ACTION\" != post-dump || exit 3\n";
  std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  base_.action_scripts.push_back(script);
  engine_.checkpoint = [](const engine::DumpOptions&, engine::Listener& listener) -> Result<engine::DumpReport> {
    FERRY_CHECK(listener.on({engine::Stage::pre_dump, {}, -1}));
    FERRY_CHECK(listener.on({engine::Stage::query_ext_files, {}, -1}));
    FERRY_CHECK(listener.on({engine::Stage::post_dump, {}, -1}));
    return engine::DumpReport{};
  };
  start();
  EXPECT_FALSE(ask(request(rpc::DUMP)).success());
  EXPECT_EQ(finish(), 1);
  EXPECT_EQ(file("seen"), "pre-dump 4242 0\npost-dump 4242 0\n");
  EXPECT_THAT(file("dump.log"), HasSubstr("said no at post-dump with status 3"));
}

TEST_F(Swrk, WritesAndComparesTheProcessor) {
  for (const auto type : {rpc::CPUINFO_DUMP, rpc::CPUINFO_CHECK}) {
    start();
    auto r = request(rpc::DUMP);
    r.set_type(type);
    const auto response = ask(r);
    EXPECT_TRUE(response.success()) << response.cr_errmsg();
    EXPECT_EQ(response.type(), type);
    EXPECT_EQ(finish(), 0);
  }
}

}  // namespace
}  // namespace ferry::criu
