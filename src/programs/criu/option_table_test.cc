#include "programs/criu/option_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "programs/criu/command_line.h"
#include "programs/criu/config_file.h"
#include "programs/criu/option_value.h"

namespace ferry::criu {
namespace {

using testing::HasSubstr;

// criu(8)'s options of 4.2, written down here a second time on purpose.
const std::set<std::string> kAllOfCriu{"tree",
                                       "leave-stopped",
                                       "leave-running",
                                       "restore-detached",
                                       "daemon",
                                       "restore-sibling",
                                       "images-dir",
                                       "work-dir",
                                       "log-file",
                                       "log-pid",
                                       "verbosity",
                                       "display-stats",
                                       "pidfile",
                                       "status-fd",
                                       "config",
                                       "no-default-config",
                                       "root",
                                       "join-ns",
                                       "ext-unix-sk",
                                       "tcp-established",
                                       "skip-in-flight",
                                       "tcp-close",
                                       "close",
                                       "evasive-devices",
                                       "veth-pair",
                                       "action-script",
                                       "link-remap",
                                       "shell-job",
                                       "file-locks",
                                       "page-server",
                                       "address",
                                       "port",
                                       "ps-socket",
                                       "prev-images-dir",
                                       "track-mem",
                                       "auto-dedup",
                                       "pre-dump-mode",
                                       "lazy-pages",
                                       "stream",
                                       "libdir",
                                       "cpu-cap",
                                       "force-irmap",
                                       "irmap-scan-path",
                                       "ext-mount-map",
                                       "external",
                                       "inherit-fd",
                                       "exec-cmd",
                                       "manage-cgroups",
                                       "cgroup-root",
                                       "cgroup-props",
                                       "cgroup-props-file",
                                       "cgroup-dump-controller",
                                       "cgroup-yard",
                                       "freeze-cgroup",
                                       "feature",
                                       "extra",
                                       "experimental",
                                       "all",
                                       "skip-mnt",
                                       "enable-fs",
                                       "enable-external-sharing",
                                       "enable-external-masters",
                                       "ghost-limit",
                                       "ghost-fiemap",
                                       "lsm-profile",
                                       "lsm-mount-context",
                                       "timeout",
                                       "empty-ns",
                                       "network-lock",
                                       "weak-sysctls",
                                       "file-validation",
                                       "skip-file-rwx-check",
                                       "mntns-compat-mode",
                                       "unprivileged",
                                       "allow-uprobes",
                                       "deprecated",
                                       "tls-cacert",
                                       "tls-cacrl",
                                       "tls-cert",
                                       "tls-key",
                                       "tls",
                                       "tls-no-cn-verify",
                                       "ms"};

TEST(OptionTable, HasEveryOptionOfCriu) {
  std::set<std::string> have;
  for (const Option& option : options()) {
    EXPECT_TRUE(have.insert(option.name).second) << option.name << " is there twice";
  }
  EXPECT_EQ(have, kAllOfCriu);
}

TEST(OptionTable, LettersAreUnique) {
  std::set<char> letters{'h', 'V'};
  for (const Option& option : options()) {
    if (option.letter != 0) {
      EXPECT_TRUE(letters.insert(option.letter).second) << option.letter;
    }
  }
}

class RefusedOption : public testing::TestWithParam<const Option*> {};

TEST_P(RefusedOption, IsRefusedByNameOnTheCommandLine) {
  const Option& option = *GetParam();
  std::vector<std::string> arguments{"criu", "dump", "--no-default-config", "-t", "1", std::string("--") + option.name};
  if (option.argument == Argument::required) {
    arguments.emplace_back("1");
  }
  const auto run = parse_command_line(arguments);
  ASSERT_FALSE(run.has_value());
  EXPECT_EQ(run.error().kind, Kind::unsupported);
  EXPECT_THAT(run.error().message(),
              HasSubstr(fmt::format("option --{} is not supported by this version of ferry: ", option.name)));
}

TEST_P(RefusedOption, MayBeSwitchedOff) {
  const Option& option = *GetParam();
  if (!option.negatable) {
    bool negated = false;
    EXPECT_EQ(find_option(std::string("no-") + option.name, negated), nullptr);
    return;
  }
  EXPECT_TRUE(parse_command_line({"criu", "dump", "-t1", std::string("--no-") + option.name}).has_value());
}

std::vector<const Option*> refused_options() {
  std::vector<const Option*> refused;
  for (const Option& option : options()) {
    if (option.apply == nullptr) {
      refused.push_back(&option);
    }
  }
  return refused;
}
std::string test_name(const testing::TestParamInfo<const Option*>& info) {
  std::string name = info.param->name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, RefusedOption, testing::ValuesIn(refused_options()), test_name);

TEST(OptionValue, SizesHaveUnits) {
  EXPECT_EQ(parse_size("ghost-limit", "10").value(), 10U);
  EXPECT_EQ(parse_size("ghost-limit", "3K").value(), 3U << 10);
  EXPECT_EQ(parse_size("ghost-limit", "10M").value(), 10U << 20);
  EXPECT_EQ(parse_size("ghost-limit", "2G").value(), 2ULL << 30);
  EXPECT_FALSE(parse_size("ghost-limit", "").has_value());
  EXPECT_FALSE(parse_size("ghost-limit", "M").has_value());
  EXPECT_FALSE(parse_size("ghost-limit", "-1").has_value());
  EXPECT_FALSE(parse_size("ghost-limit", "18446744073709551615K").has_value());
}

TEST(OptionValue, CpuCapabilitiesAddAndTakeAway) {
  EXPECT_EQ(parse_cpu_capability("").value(), 0xffffffffU);
  EXPECT_EQ(parse_cpu_capability("none").value(), 0U);
  EXPECT_EQ(parse_cpu_capability("fpu,ins").value(), 1U | 4U | 8U);
  EXPECT_EQ(parse_cpu_capability("^cpu").value(), 0xffffffffU & ~2U);
  EXPECT_EQ(parse_cpu_capability("all,^fpu").value(), 0xffffffffU & ~1U);
  EXPECT_FALSE(parse_cpu_capability("fpu,sse").has_value());
}

TEST(OptionValue, CgroupRootsMayNameAController) {
  EXPECT_EQ(parse_cgroup_root("/a:b").value().path, "/a:b");
  EXPECT_EQ(parse_cgroup_root("/a:b").value().controller, "");
  EXPECT_EQ(parse_cgroup_root("cpu,cpuacct:/x").value().controller, "cpu,cpuacct");
  EXPECT_EQ(parse_cgroup_root("name=systemd:/x").value().path, "/x");
  EXPECT_FALSE(parse_cgroup_root("cpu").has_value());
  EXPECT_FALSE(parse_cgroup_root("cpu:x").has_value());
  EXPECT_FALSE(parse_cgroup_root(":/x").has_value());
}

TEST(OptionValue, InheritedDescriptorsHaveANumberAndAResource) {
  const auto pipe = parse_inherit_fd("fd[12]:pipe:[907276]").value();
  EXPECT_EQ(pipe.fd, 12);
  EXPECT_EQ(pipe.key, "pipe:[907276]");
  for (const char* const bad : {"", "fd[]:x", "fd[-1]:x", "fd[1]:", "fd[1]", "debug[1]:x", "fd[99999999999]:x"}) {
    EXPECT_FALSE(parse_inherit_fd(bad).has_value()) << bad;
  }
}

TEST(OptionValue, ExternalMountsComeInOneForm) {
  engine::CommonOptions options;
  ASSERT_TRUE(add_external(options, "mnt[/etc/hosts]:hosts").has_value());
  ASSERT_TRUE(add_external_mount(options, "/a:/b").has_value());
  ASSERT_TRUE(add_external(options, "mnt[/odd]dir]:key").has_value());
  ASSERT_EQ(options.external_mounts.size(), 3U);
  EXPECT_EQ(options.external_mounts[0].key, "/etc/hosts");
  EXPECT_EQ(options.external_mounts[0].value, "hosts");
  EXPECT_EQ(options.external_mounts[1].value, "/b");
  EXPECT_EQ(options.external_mounts[2].key, "/odd]dir");
  ASSERT_TRUE(add_external(options, "net[4026531840]:extRootNetNS").has_value());
  ASSERT_TRUE(add_external(options, "mnt[]:ms").has_value());
  ASSERT_TRUE(add_external_mount(options, "auto").has_value());
  EXPECT_THAT(options.external, testing::ElementsAre("net[4026531840]:extRootNetNS", "mnt[]:ms", "mnt[]"));
  for (const char* const bad : {"", "mnt", "mnt[/a]", "mnt[/a]:", "[1]:x", "mnt]["}) {
    EXPECT_FALSE(add_external(options, bad).has_value()) << bad;
  }
}

TEST(OptionValue, NamespacesToJoinHaveAKind) {
  const auto user = parse_join_namespace("user:/proc/1/ns/user,1000,1000").value();
  EXPECT_EQ(user.kind, "user");
  EXPECT_EQ(user.file, "/proc/1/ns/user");
  EXPECT_EQ(user.extra, "1000,1000");
  EXPECT_EQ(parse_join_namespace("net:42").value().file, "42");
  for (const char* const bad : {"net", "net:", "cgroup:/x", "net:42,1"}) {
    EXPECT_FALSE(parse_join_namespace(bad).has_value()) << bad;
  }
}

TEST(OptionValue, UnixSocketsMayBeNamed) {
  engine::CommonOptions options;
  ASSERT_TRUE(allow_external_unix_sockets(options, "12,34").has_value());
  EXPECT_TRUE(options.external_unix_sockets);
  EXPECT_THAT(options.external, testing::ElementsAre("unix[12]", "unix[34]"));
  EXPECT_FALSE(allow_external_unix_sockets(options, "12,x").has_value());
}

}  // namespace
}  // namespace ferry::criu
