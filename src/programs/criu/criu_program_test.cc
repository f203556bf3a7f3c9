// The built program, as its callers start it.
#ifdef FERRY_CRIU_PROGRAM

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "programs/criu/rpc_channel.h"
#include "rpc.pb.h"

namespace ferry::criu {
namespace {

struct Ended {
  int status = -1;
  std::string output;  // stdout and stderr
};

// Runs criu to its end; `inherited` keeps its number in the child.
Ended run(std::vector<std::string> arguments, int inherited = -1) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return {};
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  arguments.insert(arguments.begin(), FERRY_CRIU_PROGRAM);
  std::vector<char*> argv;
  for (std::string& argument : arguments) {
    argv.push_back(argument.data());
  }
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(writer.get(), STDOUT_FILENO);
    ::dup2(writer.get(), STDERR_FILENO);
    if (inherited >= 0) {
      ::fcntl(inherited, F_SETFD, 0);
    }
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  writer.reset();
  Ended ended;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = ::read(reader.get(), buffer.data(), buffer.size())) > 0;) {
    ended.output.append(buffer.data(), static_cast<std::size_t>(n));
  }
  int status = 0;
  if (::waitpid(child, &status, 0) == child && WIFEXITED(status)) {
    ended.status = WEXITSTATUS(status);
  }
  return ended;
}

// One request that is in the socket before criu starts, and its answer.
Ended ask(const std::string& request, rpc::criu_resp& response) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return {};
  }
  const UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  const RpcChannel channel(ours.get());
  if (!channel.send(request).has_value()) {
    return {};
  }
  Ended ended = run({"swrk", std::to_string(theirs.get())}, theirs.get());
  theirs.reset();
  const auto packet = channel.receive();
  if (!packet.has_value() || !packet->has_value() || !response.ParseFromString(**packet)) {
    ended.status = -1;
  }
  return ended;
}

TEST(CriuProgram, TellsItsVersionFirst) {
  const Ended ended = run({"--version"});
  EXPECT_EQ(ended.status, 0);
  EXPECT_THAT(ended.output, testing::StartsWith("Version: 4.2\nferry "));
}

TEST(CriuProgram, AnswersVersionAndLooksForFeatures) {
  rpc::criu_resp version;
  EXPECT_EQ(ask("\x08\x0a", version).status, 0);
  EXPECT_EQ(version.version().major_number(), 4);
  rpc::criu_resp features;
  EXPECT_EQ(ask("\x08\x09\x2a\x02\x08\x01", features).status, 0);
  EXPECT_TRUE(features.success() && features.features().has_mem_track());
}

TEST(CriuProgram, EndsWith255AfterAnUnknownRequest) {
  rpc::criu_resp response;
  EXPECT_EQ(ask("\x08\x63", response).status, 255);
  EXPECT_EQ(response.type(), rpc::EMPTY);
  EXPECT_FALSE(response.success());
}

TEST(CriuProgram, EndsWith1AfterBadOptions) {
  rpc::criu_req request;
  request.set_type(rpc::DUMP);
  request.mutable_opts()->set_images_dir_fd(9999);
  rpc::criu_resp response;
  EXPECT_EQ(ask(request.SerializeAsString(), response).status, 1);
  EXPECT_EQ(response.cr_errno(), EBADRQC);
}

TEST(CriuProgram, SaysBadUsageOnStderr) {
  EXPECT_EQ(run({"swrk", "3", "4"}).status, 1);
  const Ended ended = run({"dump", "--tree", "1", "--stream"});
  EXPECT_EQ(ended.status, 1);
  EXPECT_THAT(ended.output,
              testing::StartsWith("Error (criu): option --stream is not supported by this version of ferry: "));
}

}  // namespace
}  // namespace ferry::criu

#endif
