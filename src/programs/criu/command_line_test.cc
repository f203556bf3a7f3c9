#include "programs/criu/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ferry::criu {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Result<Invocation> parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"criu", "--no-default-config"});
  return parse_command_line(std::move(arguments));
}

TEST(CommandLine, OptionsStandOnEitherSideOfTheCommand) {
  const auto run = parse({"-t", "42", "dump", "-D", "/images", "-v4", "--leave-running", "-o", "dump.log"});
  ASSERT_TRUE(run.has_value()) << run.error().message();
  EXPECT_EQ(run->command, Command::dump);
  EXPECT_EQ(run->settings.dump.pid, HostPid{42});
  EXPECT_EQ(run->settings.images_dir, "/images");
  EXPECT_EQ(run->settings.log_file, "dump.log");
  EXPECT_EQ(run->settings.verbosity, 4);
  EXPECT_TRUE(run->settings.dump.leave_running);
}

TEST(CommandLine, VerbosityAddsOrSets) {
  EXPECT_EQ(parse({"dump", "-t1"})->settings.verbosity, 2);
  EXPECT_EQ(parse({"dump", "-t1", "-v"})->settings.verbosity, 3);
  EXPECT_EQ(parse({"dump", "-t1", "-vv"})->settings.verbosity, 4);
  EXPECT_EQ(parse({"dump", "-t1", "-v1"})->settings.verbosity, 1);
  EXPECT_EQ(parse({"dump", "-t1", "--verbosity=0"})->settings.verbosity, 0);
  EXPECT_FALSE(parse({"dump", "-t1", "-vx"}).has_value());
}

TEST(CommandLine, LongOptionsMayBeShortened) {
  EXPECT_TRUE(parse({"restore", "--shell"})->settings.common.shell_job);
  EXPECT_TRUE(parse({"restore", "--restore-d"})->settings.restore.detached);
  EXPECT_FALSE(parse({"restore", "--restore"}).has_value());  // -detached or -sibling
  EXPECT_THAT(parse({"restore", "--nonsense"}).error().message(), HasSubstr("--nonsense"));
}

TEST(CommandLine, SwitchesCanBeTakenBack) {
  EXPECT_FALSE(parse({"restore", "--shell-job", "--no-shell-job"})->settings.common.shell_job);
  EXPECT_TRUE(parse({"restore", "--no-shell-job", "--shell-job"})->settings.common.shell_job);
}

TEST(CommandLine, FillsWhatTheEngineAsksFor) {
  const auto run = parse({"restore",
                          "-d",
                          "-S",
                          "--external",
                          "mnt[key]:/host",
                          "--inherit-fd",
                          "fd[3]:pipe:[7]",
                          "--cgroup-root",
                          "cpu:/x",
                          "--manage-cgroups=full",
                          "--empty-ns",
                          "net",
                          "--tcp-close",
                          "--veth-pair",
                          "eth0=veth1",
                          "--join-ns",
                          "uts:/p",
                          "--link-remap",
                          "-l",
                          "-j",
                          "-x"});
  ASSERT_TRUE(run.has_value()) << run.error().message();
  const engine::RestoreOptions options = restore_options(run->settings);
  EXPECT_TRUE(options.detached);
  EXPECT_TRUE(options.sibling);
  EXPECT_EQ(options.external_mounts.at(0).key, "key");
  EXPECT_EQ(options.inherit_fds.at(0).fd, 3);
  EXPECT_EQ(options.cgroup_roots.at(0).controller, "cpu");
  EXPECT_EQ(options.cgroup_mode, engine::CgroupMode::full);
  EXPECT_TRUE(options.empty_net_namespace);
  EXPECT_TRUE(options.tcp_close);
  EXPECT_THAT(options.veth_pairs, ElementsAre("eth0=veth1"));
  EXPECT_EQ(options.join_namespaces.at(0).kind, "uts");
  EXPECT_TRUE(options.link_remap && options.file_locks && options.shell_job && options.external_unix_sockets);
}

TEST(CommandLine, CpuCapabilityIsFpuAndInstructionsUnlessSaid) {
  EXPECT_EQ(parse({"restore"})->settings.common.cpu_capability, 5U);
  EXPECT_EQ(parse({"restore", "--cpu-cap"})->settings.common.cpu_capability, 0xffffffffU);
  EXPECT_EQ(parse({"restore", "--cpu-cap=none"})->settings.common.cpu_capability, 0U);
}

TEST(CommandLine, TakesACommandToRunAfterTheRestore) {
  const auto run = parse({"restore", "--exec-cmd", "--", "sh", "-c", "x"});
  ASSERT_TRUE(run.has_value()) << run.error().message();
  EXPECT_THAT(run->settings.exec_command, ElementsAre("sh", "-c", "x"));
  EXPECT_FALSE(parse({"restore", "--exec-cmd"}).has_value());
  EXPECT_FALSE(parse({"restore", "--", "sh"}).has_value());
}

TEST(CommandLine, BadUsageIsSaidInOneSentence) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{}, "a command is missing"},
      {{"fly"}, "there is no command \"fly\""},
      {{"dump"}, "--tree PID"},
      {{"dump", "-t", "0"}, "--tree"},
      {{"dump", "-t", "x"}, "\"x\""},
      {{"dump", "-t"}, "-t"},
      {{"dump", "-t", "1", "more"}, "\"more\""},
      {{"dump", "-t", "1", "--inherit-fd", "fd[3]:x"}, "belongs to restore"},
      {{"restore", "-S"}, "needs --restore-detached"},
      {{"restore", "--empty-ns", "pid"}, "takes net"},
      {{"swrk"}, "Usage: criu swrk FD"},
      {{"swrk", "3", "4"}, "Usage: criu swrk FD"},
      {{"cpuinfo"}, "dump or check"},
      {{"cpuinfo", "show"}, "dump or check"},
  };
  for (const auto& [arguments, text] : cases) {
    const auto run = parse(arguments);
    ASSERT_FALSE(run.has_value()) << text;
    EXPECT_THAT(run.error().message(), HasSubstr(text));
  }
}

TEST(CommandLine, PageServerAndLazyPagesAreCommandsAndOptions) {
  const auto server = parse({"page-server", "--port", "99", "--address", "::1", "--status-fd", "3", "--daemon"});
  ASSERT_TRUE(server.has_value()) << server.error().message();
  EXPECT_EQ(server->command, Command::page_server);
  EXPECT_EQ(page_server_place(server->settings), (state::PageServerPlace{"::1", 99, -1}));
  EXPECT_EQ(parse({"page-server", "--ps-socket", "5"})->settings.ps_socket, 5);
  EXPECT_FALSE(parse({"page-server"}).has_value());
  EXPECT_FALSE(parse({"page-server", "--port", "0"}).has_value());
  EXPECT_FALSE(parse({"page-server", "--port", "65536"}).has_value());

  const auto daemon = parse({"lazy-pages", "--page-server", "--address", "host", "--port", "99"});
  ASSERT_TRUE(daemon.has_value()) << daemon.error().message();
  EXPECT_EQ(daemon->command, Command::lazy_pages);
  EXPECT_TRUE(daemon->settings.page_server);
  EXPECT_TRUE(parse({"lazy-pages"}).has_value());
  EXPECT_FALSE(parse({"lazy-pages", "--page-server"}).has_value());

  const auto dump = parse({"dump", "-t", "7", "--page-server", "--port", "99"});
  ASSERT_TRUE(dump.has_value()) << dump.error().message();
  ASSERT_TRUE(dump_options(dump->settings).page_server.has_value());
  EXPECT_FALSE(dump_options(dump->settings).lazy_pages);
  EXPECT_FALSE(parse({"dump", "-t", "7", "--page-server"}).has_value());
  EXPECT_FALSE(parse({"pre-dump", "-t", "7", "--lazy-pages"}).has_value());
  const auto lazy = parse({"dump", "-t", "7", "--lazy-pages", "--port", "99", "--status-fd", "3"});
  ASSERT_TRUE(lazy.has_value()) << lazy.error().message();
  EXPECT_TRUE(dump_options(lazy->settings).lazy_pages);
  EXPECT_EQ(dump_options(lazy->settings).page_server->port, 99);
  EXPECT_EQ(restore_options(parse({"restore", "--lazy-pages"})->settings).lazy_pages_socket, "lazy-pages.socket");
  EXPECT_EQ(restore_options(parse({"restore"})->settings).lazy_pages_socket, "");
}

TEST(CommandLine, PreDumpAndDedupAreCommands) {
  const auto run = parse({"pre-dump", "-t", "7", "--pre-dump-mode", "read", "--prev-images-dir", "../1"});
  ASSERT_TRUE(run.has_value()) << run.error().message();
  EXPECT_EQ(run->command, Command::pre_dump);
  EXPECT_EQ(run->settings.dump.parent_images, "../1");
  EXPECT_FALSE(parse({"pre-dump"}).has_value());
  EXPECT_FALSE(parse({"pre-dump", "-t", "7", "--pre-dump-mode", "guess"}).has_value());
  EXPECT_EQ(parse({"dedup", "-D", "."})->command, Command::dedup);
}

TEST(CommandLine, OnlyAServerHasAnAddressAndTellsThatItIsReady) {
  const auto service = parse({"service", "--address", "/run/s", "--status-fd", "7", "--daemon", "--pidfile", "p"});
  ASSERT_TRUE(service.has_value());
  EXPECT_EQ(service->command, Command::service);
  EXPECT_EQ(service->settings.address, "/run/s");
  EXPECT_EQ(service->settings.status_fd, 7);
  EXPECT_TRUE(service->settings.restore.detached);
  for (const std::vector<std::string>& option : {std::vector<std::string>{"--address", "x"}, {"--status-fd", "3"}}) {
    const auto dump = parse({"dump", "-t", "1", option[0], option[1]});
    ASSERT_FALSE(dump.has_value());
    EXPECT_THAT(dump.error().message(), HasSubstr("option " + option[0] + " for dump"));
  }
}

TEST(CommandLine, VersionAndHelpComeBeforeEverythingElse) {
  EXPECT_EQ(parse({"--version"})->command, Command::version);
  EXPECT_EQ(parse({"-V", "dump"})->command, Command::version);
  EXPECT_EQ(parse({"-h"})->command, Command::help);
  EXPECT_THAT(version_text(), testing::StartsWith("Version: 4.2\n"));
  EXPECT_THAT(help_text(), testing::AllOf(HasSubstr("-t, --tree=VALUE"), HasSubstr("--shell-job, --no-shell-job")));
}

}  // namespace
}  // namespace ferry::criu
