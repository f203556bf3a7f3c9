#include "migrate/hello.h"

#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <sstream>

#include "migrate/message.pb.h"
#include "sys/file.h"
#include "sys/missing_pages.h"

namespace ferry::migrate {
namespace {

constexpr int kRounds = 5;
constexpr std::chrono::seconds kPongLimit(20);

// Prefixes of instruction set extensions; the rest of the flags is about the kernel and its mitigations.
constexpr std::array kFeaturePrefixes{
    std::string_view("mmx"),    std::string_view("sse"),    std::string_view("ssse3"),   std::string_view("avx"),
    std::string_view("amx"),    std::string_view("bmi"),    std::string_view("fma"),     std::string_view("sha"),
    std::string_view("xsave"),  std::string_view("vaes"),   std::string_view("vpclmul"), std::string_view("movdir"),
    std::string_view("rdrand"), std::string_view("rdseed"), std::string_view("clflush"), std::string_view("3dnow")};
constexpr std::array kFeatures{
    std::string_view("aes"),     std::string_view("pclmulqdq"), std::string_view("gfni"),
    std::string_view("popcnt"),  std::string_view("movbe"),     std::string_view("f16c"),
    std::string_view("adx"),     std::string_view("fsgsbase"),  std::string_view("cx16"),
    std::string_view("abm"),     std::string_view("clwb"),      std::string_view("rdtscp"),
    std::string_view("lahf_lm"), std::string_view("rdpid"),     std::string_view("pku"),
    std::string_view("ospke"),   std::string_view("serialize"), std::string_view("waitpkg"),
    std::string_view("rtm"),     std::string_view("hle"),       std::string_view("fpu"),
    std::string_view("cmov"),    std::string_view("fxsr"),      std::string_view("prefetchwt1"),
    std::string_view("tbm"),     std::string_view("xop"),       std::string_view("lwp"),
    std::string_view("enqcmd")};

}  // namespace

std::set<std::string> program_features(std::string_view flags) {
  std::set<std::string> out;
  std::istringstream words{std::string(flags)};
  std::string word;
  while (words >> word) {
    const auto begins = [&](std::string_view prefix) { return word.starts_with(prefix); };
    if (std::any_of(kFeaturePrefixes.begin(), kFeaturePrefixes.end(), begins) ||
        std::find(kFeatures.begin(), kFeatures.end(), word) != kFeatures.end()) {
      out.insert(word);
    }
  }
  return out;
}

Result<HostFacts> facts_of_this_host() {
  HostFacts out;
  out.version = FERRY_VERSION;
  utsname names{};
  if (::uname(&names) != 0) {
    return sys_fail("uname");
  }
  out.name = names.nodename;
  out.kernel = names.release;
  out.architecture = names.machine;
  FERRY_TRY(const std::string text, sys::read_file("/proc/cpuinfo"));
  // The processors of one host are alike, and a program may have been started on any of them.
  const auto at = text.find("\nflags");
  const auto colon = at == std::string::npos ? at : text.find(':', at);
  if (colon == std::string::npos) {
    return fail(Kind::unsupported, "/proc/cpuinfo does not say what the processor can do");
  }
  const auto late_pages = sys::has_missing_pages();
  out.late_pages = late_pages.has_value() && *late_pages;
  out.cpu_features = program_features(std::string_view(text).substr(colon + 1, text.find('\n', colon) - colon - 1));
  return out;
}

Result<void> send_hello(Link& link, const HostFacts& facts) {
  wire::Message message;
  wire::Hello& hello = *message.mutable_hello();
  hello.set_protocol(facts.protocol);
  hello.set_version(facts.version);
  hello.set_host(facts.name);
  hello.set_kernel(facts.kernel);
  hello.set_architecture(facts.architecture);
  hello.set_late_pages(facts.late_pages);
  hello.mutable_cpu_features()->Assign(facts.cpu_features.begin(), facts.cpu_features.end());
  return link.send(message);
}

Result<HostFacts> receive_hello(Link& link, std::chrono::milliseconds silence) {
  wire::Message message;
  FERRY_CHECK(link.receive(message, silence));
  if (!message.has_hello()) {
    return fail(Kind::corrupt, "{} does not begin with a greeting", link.peer());
  }
  const wire::Hello& hello = message.hello();
  HostFacts out{.protocol = hello.protocol(),
                .version = hello.version(),
                .name = hello.host(),
                .kernel = hello.kernel(),
                .architecture = hello.architecture(),
                .late_pages = hello.late_pages(),
                .cpu_features = {hello.cpu_features().begin(), hello.cpu_features().end()}};
  if (out.protocol != kProtocol) {
    return fail(
        Kind::unsupported,
        "ferry {} on {} speaks version {} of the protocol between hosts, this ferry {} speaks version {}: install the same ferry on both",
        out.version, link.peer(), out.protocol, FERRY_VERSION, kProtocol);
  }
  return out;
}

std::vector<std::string> host_obstacles(const HostFacts& source, const HostFacts& destination) {
  std::vector<std::string> out;
  if (source.architecture != destination.architecture) {
    out.push_back(fmt::format("the destination is a {} machine and the source a {} one", destination.architecture,
                              source.architecture));
    return out;
  }
  std::string missing;
  for (const std::string& feature : source.cpu_features) {
    if (!destination.cpu_features.contains(feature)) {
      missing += (missing.empty() ? "" : ", ") + feature;
    }
  }
  if (!missing.empty()) {
    out.push_back(fmt::format(
        "the destination's processor lacks {}, which programs of the container may have chosen to use: move it to a host with the same or a newer processor",
        missing));
  }
  return out;
}

std::uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

Result<void> send_clocks(Link& link) {
  FERRY_TRY(const state::timens::Host host, state::timens::this_host());
  wire::Message message;
  wire::Pong& pong = *message.mutable_pong();
  pong.set_boot_id(host.boot_id);
  if (host.has_namespaces) {
    FERRY_TRY(const state::timens::Clocks first, state::timens::first_clocks(host));
    pong.set_first_monotonic_ns(static_cast<std::uint64_t>(first.monotonic_ns));
    pong.set_first_boottime_ns(static_cast<std::uint64_t>(first.boottime_ns));
  }
  pong.set_monotonic_ns(monotonic_ns());
  return link.send(message);
}

Result<ClockRelation> relate_clocks(Link& link) {
  FERRY_TRY(const state::timens::Host host, state::timens::this_host());
  ClockRelation best;
  best.error_ns = UINT64_MAX;
  best.first_ahead = {INT64_MIN, INT64_MIN};
  for (int round = 0; round < kRounds; ++round) {
    wire::Message ping;
    ping.mutable_ping();
    const std::uint64_t before = monotonic_ns();
    FERRY_CHECK(link.send(ping));
    wire::Message message;
    FERRY_CHECK(link.receive(message, kPongLimit));
    const std::uint64_t after = monotonic_ns();
    FERRY_TRY(const state::timens::Clocks here, state::timens::first_clocks(host));
    if (!message.has_pong()) {
      return fail(Kind::corrupt, "{} did not tell its clock", link.peer());
    }
    const wire::Pong& pong = message.pong();
    const std::uint64_t half = (after - before) / 2;
    if (half < best.error_ns) {
      best.ahead_ns = static_cast<std::int64_t>(pong.monotonic_ns() - (before + half));
      best.error_ns = half;
    }
    // Its clocks were read before ours.
    const state::timens::Clocks ahead = state::timens::Clocks{static_cast<std::int64_t>(pong.first_monotonic_ns()),
                                                              static_cast<std::int64_t>(pong.first_boottime_ns())} -
                                        here;
    best.first_ahead.monotonic_ns = std::max(best.first_ahead.monotonic_ns, ahead.monotonic_ns);
    best.first_ahead.boottime_ns = std::max(best.first_ahead.boottime_ns, ahead.boottime_ns);
    best.has_time_namespaces = pong.first_boottime_ns() != 0;
    best.same_boot = pong.boot_id() == host.boot_id;
  }
  return best;
}

}  // namespace ferry::migrate
