#include "container/twin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "container/json.h"

namespace ferry::container {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

Network segment(const std::string& name, const std::string& driver, const std::string& subnet) {
  Network out;
  out.name = name;
  out.driver = driver;
  out.subnets = {subnet};
  out.explicit_subnet = true;
  return out;
}

// A container as Docker describes it, changed by a JSON merge patch (RFC 7386).
Container container_with(const Json& change = Json::object()) {
  Json inspect = {
      {"Id", "85aa34bcabb715"},
      {"Name", "/web"},
      {"Image", "sha256:f7"},
      {"State", {{"Status", "running"}, {"Pid", 42}}},
      {"Driver", "overlay2"},
      {"HostConfig",
       {{"NetworkMode", "lan"},
        {"RestartPolicy", {{"Name", "always"}, {"MaximumRetryCount", 0}}},
        {"AutoRemove", true},
        {"Memory", 1 << 20},
        {"SecurityOpt", {"seccomp:unconfined"}},
        {"LogConfig", {{"Type", "json-file"}}}}},
      {"Config",
       {{"Image", "busybox"},
        {"Hostname", "web-host"},
        {"Domainname", "example"},
        {"Env", {"A=1"}},
        {"Cmd", {"sleep", "1"}},
        {"User", "7"},
        {"Tty", true},
        {"Labels", {{"k", "v"}}},
        {"AttachStdout", true}}},
      {"NetworkSettings",
       {{"Networks",
         {{"lan",
           {{"IPAddress", "10.0.0.2"}, {"MacAddress", "02:42:0a:00:00:02"}, {"Aliases", {"w", "85aa34bcabb7"}}}}}}}}};
  inspect.merge_patch(change);
  return parse_container(inspect.dump()).value();
}

DestinationFacts good_destination() {
  DestinationFacts facts;
  facts.api_version = "1.41";
  facts.image_of_name = "sha256:f7";
  facts.networks.emplace("lan", segment("lan", "macvlan", "10.0.0.0/24"));
  return facts;
}

const std::map<std::string, Network> kHere{{"lan", segment("lan", "macvlan", "10.0.0.0/24")}};

TEST(Twin, IsTheSameWithoutRestartsAndRemoval) {
  const auto plan = plan_twin(container_with(), kHere, good_destination());
  ASSERT_TRUE(plan.has_value()) << plan.error().message();
  EXPECT_THAT(plan->obstacles, IsEmpty());
  EXPECT_THAT(plan->differences, IsEmpty());
  const Json request = Json::parse(plan->request_json);
  EXPECT_EQ(request["Hostname"], "web-host");
  EXPECT_EQ(request["Domainname"], "example");
  EXPECT_EQ(request["Env"], Json({"A=1"}));
  EXPECT_EQ(request["Cmd"], Json({"sleep", "1"}));
  EXPECT_EQ(request["User"], "7");
  EXPECT_EQ(request["Tty"], true);
  EXPECT_EQ(request["AttachStdout"], false);
  EXPECT_EQ(request["Labels"]["k"], "v");
  EXPECT_EQ(request["Image"], "busybox");
  EXPECT_EQ(request["HostConfig"]["RestartPolicy"]["Name"], "no");
  EXPECT_EQ(request["HostConfig"]["AutoRemove"], false);
  EXPECT_EQ(request["HostConfig"]["Memory"], 1 << 20);
  EXPECT_EQ(request["HostConfig"]["SecurityOpt"], Json({"seccomp:unconfined"}));
  EXPECT_EQ(plan->restart_policy.name, "always");
  EXPECT_TRUE(plan->auto_remove);
}

TEST(Twin, KeepsAddressAndMacOnASharedSegment) {
  const auto plan = plan_twin(container_with(), kHere, good_destination());
  const Json request = Json::parse(plan.value().request_json);
  const Json& endpoint = request["NetworkingConfig"]["EndpointsConfig"]["lan"];
  EXPECT_EQ(endpoint["IPAMConfig"]["IPv4Address"], "10.0.0.2");
  EXPECT_EQ(endpoint["Aliases"], Json({"w"}));
  EXPECT_EQ(request["MacAddress"], "02:42:0a:00:00:02");
  auto newer = good_destination();
  newer.api_version = "1.44";
  const Json other = Json::parse(plan_twin(container_with(), kHere, newer).value().request_json);
  EXPECT_EQ(other["NetworkingConfig"]["EndpointsConfig"]["lan"]["MacAddress"], "02:42:0a:00:00:02");
}

TEST(Twin, SaysWhichAddressIsLost) {
  auto facts = good_destination();
  facts.networks["lan"] = segment("lan", "macvlan", "10.9.0.0/24");
  const auto plan = plan_twin(container_with(), kHere, facts);
  ASSERT_TRUE(plan.has_value());
  EXPECT_THAT(plan->obstacles, IsEmpty());
  EXPECT_THAT(plan->differences, Contains(HasSubstr("10.0.0.2")));
  EXPECT_FALSE(Json::parse(plan->request_json)["NetworkingConfig"]["EndpointsConfig"]["lan"].contains("IPAMConfig"));
}

TEST(Twin, NamesEveryObstacle) {
  auto facts = good_destination();
  facts.networks.clear();
  facts.name_holder = "other";
  facts.taken_ports = {{"8080/tcp", "nginx"}};
  const auto plan =
      plan_twin(container_with({{"HostConfig",
                                 {{"IpcMode", "container:x"},
                                  {"PidMode", "host"},
                                  {"VolumesFrom", {"y"}},
                                  {"Links", {"z"}},
                                  {"Runtime", "kata"},
                                  {"DeviceRequests", {{{"Driver", "nvidia"}}}},
                                  {"PortBindings", {{"80/tcp", {{{"HostPort", "8080"}}}}}}}},
                                {"Mounts", {{{"Type", "bind"}, {"Source", "/data"}, {"Destination", "/d"}}}}}),
                kHere, facts);
  ASSERT_TRUE(plan.has_value());
  for (const char* word : {"named web", "ipc", "--pid host", "--volumes-from", "--link", "kata", "--gpus", "/data",
                           "8080/tcp", "network lan"}) {
    EXPECT_THAT(plan->obstacles, Contains(HasSubstr(word)));
  }
  EXPECT_THAT(plan->obstacles,
              Contains(HasSubstr("docker network create -d macvlan --subnet 10.0.0.0/24 -o parent=INTERFACE lan")));
}

TEST(Twin, NamesItsImageByIdWhereTheNameMeansAnother) {
  auto facts = good_destination();
  facts.image_of_name = "sha256:else";
  const auto plan = plan_twin(container_with(), kHere, facts);
  EXPECT_EQ(Json::parse(plan.value().request_json)["Image"], "sha256:f7");
  EXPECT_THAT(plan->differences, Contains(HasSubstr("busybox")));
}

TEST(Twin, GivesAnonymousVolumesTheSameName) {
  const auto source = container_with(
      {{"Mounts",
        {{{"Type", "volume"}, {"Name", "0123abcd"}, {"Driver", "local"}, {"Destination", "/v"}, {"RW", true}}}}});
  const auto plan = plan_twin(source, kHere, good_destination());
  const Json request = Json::parse(plan.value().request_json);
  const Json& mounts = request["HostConfig"]["Mounts"];
  ASSERT_EQ(mounts.size(), 1U);
  EXPECT_EQ(mounts[0]["Source"], "0123abcd");
  EXPECT_EQ(mounts[0]["Target"], "/v");
  EXPECT_THAT(plan->differences, Contains(HasSubstr("0123abcd")));
}

TEST(Twin, NetworksSurviveTheWire) {
  const auto there = decode_networks(encode_networks(kHere));
  ASSERT_TRUE(there.has_value());
  EXPECT_EQ(there->at("lan").subnets, kHere.at("lan").subnets);
  EXPECT_TRUE(there->at("lan").explicit_subnet);
  EXPECT_FALSE(decode_networks("{}").has_value());
}

}  // namespace
}  // namespace ferry::container
