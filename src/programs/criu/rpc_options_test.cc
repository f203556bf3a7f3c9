// Every field of a request, taken from the schema itself: done or refused, never ignored.
#include "programs/criu/rpc_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "rpc.pb.h"

namespace ferry::criu {
namespace {

constexpr HostPid kPeer{42};

// The messages of the RPC carry no descriptors (they cost time at every start), so the schema is read as text
// and values are encoded by hand: protobuf's wire format is a key and a number, or a length and bytes.
struct Field {
  std::string type, name;
  std::uint32_t number = 0;
};
using Schema = std::map<std::string, std::vector<Field>>;

Schema read_schema() {
  std::ifstream in(std::filesystem::path(__FILE__).parent_path() / "rpc.proto");
  const std::regex head("^message (\\w+)"), field("^ +(?:required|optional|repeated) (\\w+) +(\\w+) *= *(\\d+)");
  Schema schema;
  std::string message;
  for (std::string line; std::getline(in, line);) {
    std::smatch match;
    if (std::regex_search(line, match, head)) {
      message = match[1];
    } else if (std::regex_search(line, match, field)) {
      schema[message].push_back({match[1], match[2], static_cast<std::uint32_t>(std::stoul(match[3]))});
    }
  }
  return schema;
}

std::string varint(std::uint64_t number) {
  std::string out;
  for (; number >= 0x80; number >>= 7) {
    out += static_cast<char>(number | 0x80);
  }
  return out + static_cast<char>(number);
}

// Values that mean something where 1 or "/x" would not.
const std::map<std::string, std::string> kTexts{{"criu_opts.external", "net[1]:key"},
                                                {"join_namespace.ns", "net"},
                                                {"join_namespace.ns_file", "1"},
                                                {"criu_opts.log_file", "other.log"}};
// manage_cgroups: its "on" is where the settings begin.
const std::map<std::string, std::uint64_t> kNumbers{
    {"criu_opts.empty_ns", 0x40000000}, {"criu_opts.log_level", 4}, {"criu_opts.manage_cgroups", 0}};

// A field with a value that differs from its default.
std::string encode(const Schema& schema, const std::string& message, const Field& field) {
  const std::string key = message + "." + field.name;
  const auto as_bytes = [&](const std::string& bytes) {
    return varint(field.number << 3 | 2) + varint(bytes.size()) + bytes;
  };
  if (field.type == "string") {
    return as_bytes(kTexts.contains(key) ? kTexts.at(key) : "/x");
  }
  if (const auto inner = schema.find(field.type); inner != schema.end()) {
    std::string bytes;
    for (const Field& part : inner->second) {
      if (part.name != "extra_opt") {  // only a user namespace has one
        bytes += encode(schema, field.type, part);
      }
    }
    return as_bytes(bytes);
  }
  return varint(field.number << 3) + varint(kNumbers.contains(key) ? kNumbers.at(key) : 1);
}

struct Applied {
  Settings settings;
  std::string refusal;
};
Applied apply(const rpc::criu_opts& opts) {
  Applied out;
  for (const Result<void>& step :
       {apply_rpc_places(out.settings, opts, kPeer), apply_rpc_options(out.settings, opts)}) {
    if (!step.has_value()) {
      out.refusal = step.error().message();
    }
  }
  return out;
}

TEST(RpcOptions, EveryFieldIsDoneOrRefusedByNameAndNeverIgnored) {
  // Read elsewhere: the worker reads the file itself; inodes count once the switch beside them is on.
  const std::set<std::string> elsewhere{"config_file", "unix_sk_ino"};
  // How CRIU goes about something that has one way here; the result is the same.
  const std::set<std::string> one_way{"pre_dump_mode", "mntns_compat_mode", "ext_sharing", "ext_masters",
                                      "force_irmap",   "irmap_scan_paths",  "unprivileged"};
  const Schema schema = read_schema();
  ASSERT_TRUE(schema.contains("criu_opts"));
  rpc::criu_opts nothing;
  nothing.set_images_dir_fd(3);
  const Applied before = apply(nothing);
  ASSERT_EQ(before.refusal, "");
  int done = 0;
  for (const Field& field : schema.at("criu_opts")) {
    if (elsewhere.contains(field.name)) {
      continue;
    }
    rpc::criu_opts opts;
    const std::string images = field.name == "images_dir_fd" ? "" : varint(1 << 3) + varint(3);
    ASSERT_TRUE(opts.ParseFromString(images + encode(schema, "criu_opts", field))) << field.name;
    if (field.name == "images_dir") {
      opts.set_images_dir_fd(-1);
    }
    const Applied after = apply(opts);
    if (after.refusal.empty()) {
      EXPECT_EQ(after.settings == before.settings, one_way.contains(field.name)) << field.name;
      ++done;
    } else {
      std::string option = "option --" + field.name;
      std::replace(option.begin(), option.end(), '_', '-');
      EXPECT_THAT(after.refusal,
                  testing::AnyOf(testing::HasSubstr("RPC option " + field.name), testing::HasSubstr(option)))
          << "refused under another name";
    }
  }
  EXPECT_GT(done, 30);
}

TEST(RpcOptions, InodesOfExternalSocketsCountWithTheirSwitch) {
  rpc::criu_opts opts;
  opts.set_images_dir_fd(3);
  opts.set_ext_unix_sk(true);
  opts.add_unix_sk_ino()->set_inode(77);
  EXPECT_THAT(apply(opts).settings.common.external, testing::ElementsAre("unix[77]"));
}

}  // namespace
}  // namespace ferry::criu
