#include "container/docker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "container/preflight.h"

namespace ferry::container {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kInspect = R"({
  "Id": "85aa34bcabb7", "Name": "/looper", "Image": "sha256:f7", "LogPath": "/l", "ExecIDs": ["e1"], "Driver": "overlay2",
  "State": {"Status": "running", "Pid": 42, "Health": {"Status": "healthy"}},
  "HostConfig": {"NetworkMode": "lan", "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}, "AutoRemove": true,
    "IpcMode": "private", "LogConfig": {"Type": "json-file"}, "Runtime": "runc",
    "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "53/udp": [{"HostPort": "5353"}], "1/tcp": null}},
  "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/u", "LowerDir": "/a:/b", "MergedDir": "/m"}},
  "Mounts": [{"Type": "volume", "Name": "v", "Source": "/s", "Destination": "/d", "Driver": "local", "RW": true}],
  "Config": {"Image": "busybox", "Hostname": "h", "Tty": true, "Env": null, "AttachStdout": true,
    "Healthcheck": {"Test": ["CMD-SHELL", "true"]}},
  "NetworkSettings": {"Networks": {"lan": {"IPAddress": "10.0.0.2", "MacAddress": "02:42:0a:00:00:02", "Aliases": ["web", "85aa34bcabb7"]}}}
})";

TEST(DockerInspect, ReadsWhatAMoveNeeds) {
  const auto c = parse_container(kInspect);
  ASSERT_TRUE(c.has_value()) << c.error().message();
  EXPECT_EQ(c->name, "looper");
  EXPECT_TRUE(c->running());
  EXPECT_EQ(c->pid.value, 42);
  EXPECT_EQ(c->upper_dir, "/u");
  EXPECT_EQ(c->restart_policy, (RestartPolicy{"on-failure", 3}));
  EXPECT_TRUE(c->auto_remove);
  EXPECT_TRUE(c->tty);
  EXPECT_TRUE(c->foreground);
  EXPECT_EQ(c->health, "healthy");
  EXPECT_THAT(c->exec_ids, ElementsAre("e1"));
  EXPECT_THAT(c->ports, testing::UnorderedElementsAre("8080/tcp", "5353/udp"));
  ASSERT_EQ(c->mounts.size(), 1U);
  EXPECT_EQ(c->mounts[0].destination, "/d");
  ASSERT_EQ(c->endpoints.size(), 1U);
  EXPECT_EQ(c->endpoints[0].ip, "10.0.0.2");
}

TEST(DockerInspect, BearsNullsAndOtherTypes) {
  const auto c = parse_container(
      R"({"Id":"x","Name":7,"State":null,"Mounts":null,"HostConfig":[],"Config":"?","NetworkSettings":{"Networks":null}})");
  ASSERT_TRUE(c.has_value());
  EXPECT_EQ(c->restart_policy.name, "no");
  EXPECT_FALSE(c->running());
}

TEST(DockerInspect, RefusesWhatIsNoContainer) {
  for (const char* text : {"", "[]", "{}", "{\"Id\":"}) {
    const auto c = parse_container(text);
    ASSERT_FALSE(c.has_value()) << text;
    EXPECT_EQ(c.error().kind, Kind::corrupt);
  }
}

TEST(DockerInfo, FindsRootlessAndRemappedDaemons) {
  const auto plain = parse_daemon_info(
      R"({"DockerRootDir":"/d","ExperimentalBuild":true,"SecurityOptions":["name=seccomp,profile=default"]})");
  ASSERT_TRUE(plain.has_value());
  EXPECT_TRUE(plain->experimental);
  EXPECT_FALSE(plain->rootless || plain->user_namespaces);
  EXPECT_TRUE(parse_daemon_info(R"({"DockerRootDir":"/d","SecurityOptions":["name=rootless"]})")->rootless);
  EXPECT_TRUE(parse_daemon_info(R"({"DockerRootDir":"/d","SecurityOptions":["name=userns"]})")->user_namespaces);
  EXPECT_FALSE(parse_daemon_info("{}").has_value());
}

TEST(DockerHost, OnlyALocalSocketWillDo) {
  EXPECT_EQ(*socket_of_docker_host(""), "/var/run/docker.sock");
  EXPECT_EQ(*socket_of_docker_host("unix:///x/y.sock"), "/x/y.sock");
  for (const char* remote : {"tcp://10.0.0.1:2375", "ssh://host", "unix://"}) {
    const auto refused = socket_of_docker_host(remote);
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().kind, Kind::unsupported);
    EXPECT_THAT(refused.error().message(), HasSubstr(remote));
  }
}

TEST(DockerApiVersion, IsTheOldestThatBothSpeak) {
  EXPECT_EQ(*negotiate_version("1.41", "1.12"), "1.41");
  EXPECT_EQ(*negotiate_version("1.50", "1.24"), "1.41");
  EXPECT_EQ(*negotiate_version("1.52", "1.44"), "1.44");
  EXPECT_EQ(negotiate_version("1.40", "1.12").error().kind, Kind::unsupported);
  EXPECT_EQ(negotiate_version("two", "1.12").error().kind, Kind::corrupt);
}

TEST(DockerApi, NoDaemonIsOneClearSentence) {
  const auto api = DockerApi::connect("/nonexistent/docker.sock");
  ASSERT_FALSE(api.has_value());
  EXPECT_EQ(api.error().message(),
            "no Docker daemon answers at /nonexistent/docker.sock: start it, or name its socket in DOCKER_HOST");
}

TEST(DockerApi, EscapesNamesInPaths) { EXPECT_EQ(url_escape("a/b c:1"), "a%2Fb%20c%3A1"); }

TEST(Preflight, NamesEachStateThatIsNotRunning) {
  Container c;
  c.name = "web";
  c.status = "running";
  EXPECT_TRUE(check_running(c).has_value());
  for (const auto& [status, word] : {std::pair{"exited", "not running"}, std::pair{"created", "not running"},
                                     std::pair{"paused", "unpause"}, std::pair{"restarting", "restarting"}}) {
    c.status = status;
    const auto refused = check_running(c);
    ASSERT_FALSE(refused.has_value());
    EXPECT_THAT(refused.error().message(), HasSubstr("web"));
    EXPECT_THAT(refused.error().message(), HasSubstr(word));
  }
}

TEST(Preflight, KnowsItsOwnHealthProbe) {
  Container c;
  c.health_probe = {"CMD-SHELL", "curl -f http://x"};
  EXPECT_TRUE(is_health_probe(c, {"", HostPid(1), "/bin/sh -c curl -f http://x", true}));
  EXPECT_FALSE(is_health_probe(c, {"", HostPid(1), "sh", true}));
  c.health_probe = {"CMD", "/check", "now"};
  EXPECT_TRUE(is_health_probe(c, {"", HostPid(1), "/check now", true}));
  c.health_probe = {"NONE"};
  EXPECT_FALSE(is_health_probe(c, {"", HostPid(1), "", true}));
}

TEST(Preflight, JoinsRefusalsAndPassesNotes) {
  EXPECT_TRUE(refuse({{false, "note"}}).has_value());
  const auto refused = refuse({{true, "one"}, {false, "note"}, {true, "two"}});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().message(), "one; two");
}

TEST(DockerExec, ReadsCommandAndPid) {
  const auto session =
      parse_exec(R"({"ID":"e","Running":true,"Pid":9,"ProcessConfig":{"entrypoint":"sh","arguments":["-c","x"]}})");
  ASSERT_TRUE(session.has_value());
  EXPECT_EQ(session->command, "sh -c x");
  EXPECT_EQ(session->pid.value, 9);
}

}  // namespace
}  // namespace ferry::container
