#include "state/net/sysctl.h"

#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <span>
#include <utility>

#include "state/net/message.h"
#include "sys/file.h"
#include "sys/netlink.h"

namespace ferry::state::net {
namespace {

// The places in the lists of the images (docs/images.md).
constexpr const char* kConf4[] = {"accept_local",
                                  "accept_redirects",
                                  "accept_source_route",
                                  "arp_accept",
                                  "arp_announce",
                                  "arp_filter",
                                  "arp_ignore",
                                  "arp_notify",
                                  "bootp_relay",
                                  "disable_policy",
                                  "disable_xfrm",
                                  "force_igmp_version",
                                  "forwarding",
                                  "igmpv2_unsolicited_report_interval",
                                  "igmpv3_unsolicited_report_interval",
                                  "log_martians",
                                  "medium_id",
                                  "promote_secondaries",
                                  "proxy_arp",
                                  "proxy_arp_pvlan",
                                  "route_localnet",
                                  "rp_filter",
                                  "secure_redirects",
                                  "send_redirects",
                                  "shared_media",
                                  "src_valid_mark",
                                  "tag",
                                  "ignore_routes_with_linkdown",
                                  "drop_gratuitous_arp",
                                  "drop_unicast_in_l2_multicast"};
constexpr const char* kConf6[] = {"accept_dad",
                                  "accept_ra",
                                  "accept_ra_defrtr",
                                  "accept_ra_from_local",
                                  "accept_ra_min_hop_limit",
                                  "accept_ra_mtu",
                                  "accept_ra_pinfo",
                                  "accept_ra_rt_info_max_plen",
                                  "accept_ra_rtr_pref",
                                  "accept_redirects",
                                  "accept_source_route",
                                  "autoconf",
                                  "dad_transmits",
                                  "disable_ipv6",
                                  "drop_unicast_in_l2_multicast",
                                  "drop_unsolicited_na",
                                  "force_mld_version",
                                  "force_tllao",
                                  "forwarding",
                                  "hop_limit",
                                  "ignore_routes_with_linkdown",
                                  "keep_addr_on_down",
                                  "max_addresses",
                                  "max_desync_factor",
                                  "mldv1_unsolicited_report_interval",
                                  "mldv2_unsolicited_report_interval",
                                  "mtu",
                                  "ndisc_notify",
                                  "optimistic_dad",
                                  "proxy_ndp",
                                  "regen_max_retry",
                                  "router_probe_interval",
                                  "router_solicitation_delay",
                                  "router_solicitation_interval",
                                  "router_solicitations",
                                  "stable_secret",
                                  "suppress_frag_ndisc",
                                  "temp_prefered_lft",
                                  "temp_valid_lft",
                                  "use_oif_addrs_only",
                                  "use_optimistic",
                                  "use_tempaddr"};
constexpr const char* kSecret = "stable_secret";
constexpr const char* kDatagrams = "unix/max_dgram_qlen";
constexpr std::string_view kGeneration = "/addr_gen_mode";
constexpr const char* kPing = "ipv4/ping_group_range";
// What else a namespace has: these directories, without what lies in conf and neigh.
constexpr const char* kDirectories[] = {"ipv4", "ipv4/route", "ipv6",   "ipv6/icmp", "ipv6/route",
                                        "core", "netfilter",  "bridge", "mptcp"};

using List = google::protobuf::RepeatedPtrField<pb::SysctlEntry>;

std::string trimmed(std::string text) {
  text.erase(text.find_last_not_of(" \t\n") + 1);
  return text;
}

std::optional<std::string> read_value(int directory, const std::string& path) {
  auto text = sys::read_file_at(directory, path);
  return text.has_value() ? std::optional(trimmed(std::move(*text))) : std::nullopt;
}

void add_text(List& list, const std::optional<std::string>& value) {
  pb::SysctlEntry& entry = *list.Add();
  entry.set_type(pb::SYSCTLTYPE_CTL_STR);
  if (value.has_value()) {
    entry.set_sarg(*value);
  }
}

void save_conf(int sysctl, const std::string& directory, std::span<const char* const> names, List& list) {
  const auto opened = sys::open_at(sysctl, directory, O_PATH | O_DIRECTORY);
  for (const char* name : names) {
    const auto value = opened.has_value() ? read_value(opened->get(), name) : std::nullopt;
    if (std::string_view(name) == kSecret) {
      add_text(list, value);
      continue;
    }
    pb::SysctlEntry& entry = *list.Add();
    entry.set_type(pb::SYSCTLTYPE_CTL_32);
    std::int32_t number = 0;
    if (value.has_value() && std::from_chars(value->data(), value->data() + value->size(), number).ec == std::errc()) {
      entry.set_iarg(number);
    }
  }
}

// The parameters of a conf directory that have no place in the images' list.
Result<void> save_rest(int sysctl, const std::string& directory, std::span<const char* const> listed,
                       google::protobuf::RepeatedPtrField<pb::FerrySysctl>& out) {
  const auto opened = sys::open_at(sysctl, directory, O_RDONLY | O_DIRECTORY);
  if (!opened.has_value()) {
    return {};
  }
  FERRY_TRY(const auto names, sys::list_directory(opened->get(), "."));
  for (const std::string& name : names) {
    struct stat st;
    constexpr mode_t kBoth = S_IRUSR | S_IWUSR;
    if (std::find(listed.begin(), listed.end(), std::string_view(name)) != listed.end() ||
        ::fstatat(opened->get(), name.c_str(), &st, 0) != 0 || !S_ISREG(st.st_mode) || (st.st_mode & kBoth) != kBoth) {
      continue;
    }
    if (auto value = read_value(opened->get(), name); value.has_value() && !value->empty()) {
      pb::FerrySysctl& entry = *out.Add();
      entry.set_path(directory + "/" + name);
      entry.set_value(std::move(*value));
    }
  }
  return {};
}

Result<void> write_value(int directory, const std::string& path, const std::string& value, bool weak) {
  const auto present = read_value(directory, path);
  if (present == value) {
    return {};
  }
  auto written = sys::write_file_at(directory, path, value);
  if (!written.has_value() && weak && written.error().os_errno == ENOENT) {
    return {};
  }
  return std::move(written).during("setting {} to \"{}\"", path, value);
}

Result<void> restore_rest(int sysctl, const google::protobuf::RepeatedPtrField<pb::FerrySysctl>& list, bool weak) {
  for (const pb::FerrySysctl& one : list) {
    if (one.path().empty() || one.path().front() == '/' || one.path().find("..") != std::string::npos) {
      return fail(Kind::corrupt, "netns: \"{}\" is no kernel parameter", one.path());
    }
    // By sysctl it would make addresses (restore_generation).
    if (!one.path().ends_with(kGeneration)) {
      FERRY_CHECK(write_value(sysctl, one.path(), one.value(), weak));
    }
  }
  return {};
}

Result<void> restore_conf(int sysctl, const std::string& directory, std::span<const char* const> names,
                          const List& list, bool weak) {
  for (std::size_t i = 0; i < names.size() && i < static_cast<std::size_t>(list.size()); ++i) {
    const pb::SysctlEntry& entry = list.Get(static_cast<int>(i));
    if (!entry.has_iarg() && !entry.has_sarg()) {
      continue;  // that kernel did not have it
    }
    const std::string path = directory + "/" + names[i];
    const std::string value = entry.has_sarg() ? entry.sarg() : std::to_string(entry.iarg());
    FERRY_CHECK(write_value(sysctl, path, value, weak));
  }
  return {};
}

}  // namespace

Result<void> save_sysctls(int sysctl, pb::NetnsEntry& out) {
  save_conf(sysctl, "ipv4/conf/default", kConf4, *out.mutable_def_conf4());
  save_conf(sysctl, "ipv4/conf/all", kConf4, *out.mutable_all_conf4());
  save_conf(sysctl, "ipv6/conf/default", kConf6, *out.mutable_def_conf6());
  save_conf(sysctl, "ipv6/conf/all", kConf6, *out.mutable_all_conf6());
  pb::SysctlEntry& datagrams = *out.add_unix_conf();
  datagrams.set_type(pb::SYSCTLTYPE_CTL_32);
  if (const auto value = read_value(sysctl, kDatagrams)) {
    std::int32_t number = 0;
    std::from_chars(value->data(), value->data() + value->size(), number);
    datagrams.set_iarg(number);
  }
  add_text(*out.mutable_ipv4_sysctl(), read_value(sysctl, kPing));
  static constexpr const char* kElsewhere[] = {"ping_group_range"};
  for (const char* directory : kDirectories) {
    FERRY_CHECK(save_rest(sysctl, directory, kElsewhere, *out.mutable_ferry_sysctls()));
  }
  for (const char* name : {"all", "default"}) {
    FERRY_CHECK(save_rest(sysctl, fmt::format("ipv4/conf/{}", name), kConf4, *out.mutable_ferry_sysctls()));
    FERRY_CHECK(save_rest(sysctl, fmt::format("ipv6/conf/{}", name), kConf6, *out.mutable_ferry_sysctls()));
  }
  return {};
}

Result<void> save_sysctls_of(int sysctl, pb::NetDeviceEntry& device) {
  save_conf(sysctl, "ipv4/conf/" + device.name(), kConf4, *device.mutable_conf4());
  save_conf(sysctl, "ipv6/conf/" + device.name(), kConf6, *device.mutable_conf6());
  FERRY_CHECK(save_rest(sysctl, "ipv4/conf/" + device.name(), kConf4, *device.mutable_ferry_sysctls()));
  return save_rest(sysctl, "ipv6/conf/" + device.name(), kConf6, *device.mutable_ferry_sysctls());
}

Result<void> restore_sysctls(int sysctl, const pb::NetnsEntry& entry, bool weak) {
  FERRY_CHECK(restore_rest(sysctl, entry.ferry_sysctls(), weak));
  FERRY_CHECK(restore_conf(sysctl, "ipv4/conf/all", kConf4, entry.all_conf4(), weak));
  FERRY_CHECK(restore_conf(sysctl, "ipv4/conf/default", kConf4, entry.def_conf4(), weak));
  FERRY_CHECK(restore_conf(sysctl, "ipv6/conf/all", kConf6, entry.all_conf6(), weak));
  FERRY_CHECK(restore_conf(sysctl, "ipv6/conf/default", kConf6, entry.def_conf6(), weak));
  if (entry.unix_conf_size() > 0 && entry.unix_conf(0).has_iarg()) {
    FERRY_CHECK(write_value(sysctl, kDatagrams, std::to_string(entry.unix_conf(0).iarg()), weak));
  }
  if (entry.ipv4_sysctl_size() > 0 && entry.ipv4_sysctl(0).has_sarg()) {
    FERRY_CHECK(write_value(sysctl, kPing, entry.ipv4_sysctl(0).sarg(), weak));
  }
  return {};
}

Result<void> restore_sysctls_of(int sysctl, const pb::NetDeviceEntry& device, bool weak) {
  FERRY_CHECK(restore_conf(sysctl, "ipv4/conf/" + device.name(), kConf4, device.conf4(), weak));
  FERRY_CHECK(restore_conf(sysctl, "ipv6/conf/" + device.name(), kConf6, device.conf6(), weak));
  return restore_rest(sysctl, device.ferry_sysctls(), weak);
}

Result<void> restore_generation(const pb::NetDeviceEntry& device) {
  const auto saved = std::find_if(device.ferry_sysctls().begin(), device.ferry_sysctls().end(),
                                  [](const pb::FerrySysctl& s) { return s.path().ends_with(kGeneration); });
  std::uint8_t mode = 0;  // IN6_ADDR_GEN_MODE_EUI64, the default
  if (saved != device.ferry_sysctls().end()) {
    std::from_chars(saved->value().data(), saved->value().data() + saved->value().size(), mode);
  }
  ifinfomsg head{};
  head.ifi_index = static_cast<int>(device.ifindex());
  Message message(head);
  message.nest(IFLA_AF_SPEC, [&] {
    message.nest(AF_INET6, [&] { message.put_number<std::uint8_t>(IFLA_INET6_ADDR_GEN_MODE, mode); });
  });
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_ROUTE));
  auto set = netlink.request(RTM_SETLINK, NLM_F_ACK, message.bytes(), fmt::format("interface {}", device.name()),
                             [](Bytes) -> Result<void> { return {}; });
  // EAFNOSUPPORT, EOPNOTSUPP: there is no IPv6 on it.
  if (!set.has_value() && set.error().os_errno != EAFNOSUPPORT && set.error().os_errno != EOPNOTSUPP &&
      set.error().os_errno != EINVAL) {
    return set;
  }
  return {};
}

Result<void> switch_off_detection(int sysctl, const std::vector<const pb::NetDeviceEntry*>& devices) {
  std::vector<std::string> names{"all"};
  for (const pb::NetDeviceEntry* device : devices) {
    names.push_back(device->name());
  }
  for (const std::string& name : names) {
    const std::string directory = "ipv6/conf/" + name + "/";
    if (::faccessat(sysctl, directory.c_str(), F_OK, 0) != 0) {
      continue;  // there is no IPv6
    }
    FERRY_CHECK(sys::write_file_at(sysctl, directory + "accept_dad", "0"));
    if (name != "all") {
      FERRY_CHECK(sys::write_file_at(sysctl, directory + "addr_gen_mode", "1"));  // IN6_ADDR_GEN_MODE_NONE
    }
  }
  return {};
}

}  // namespace ferry::state::net
