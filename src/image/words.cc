#include "image/words.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace ferry::image {
namespace {

struct Word {
  std::uint64_t value;
  std::string_view name;
};

// O_LARGEFILE of the kernel; that of libc is 0 where every file is large.
constexpr std::uint64_t kLargeFile = 0x8000;
// O_TMPFILE holds O_DIRECTORY, so only its own bit is named.
constexpr std::uint64_t kTmpFile = static_cast<std::uint64_t>(O_TMPFILE) & ~static_cast<std::uint64_t>(O_DIRECTORY);
// In the same manner O_SYNC holds O_DSYNC.
constexpr std::uint64_t kSync = static_cast<std::uint64_t>(O_SYNC) & ~static_cast<std::uint64_t>(O_DSYNC);

constexpr std::array kOpenFlags = std::to_array<Word>({
    {O_WRONLY, "O_WRONLY"},       {O_RDWR, "O_RDWR"},         {O_CREAT, "O_CREAT"},
    {O_EXCL, "O_EXCL"},           {O_NOCTTY, "O_NOCTTY"},     {O_TRUNC, "O_TRUNC"},
    {O_APPEND, "O_APPEND"},       {O_NONBLOCK, "O_NONBLOCK"}, {O_DSYNC, "O_DSYNC"},
    {O_ASYNC, "FASYNC"},          {O_DIRECT, "O_DIRECT"},     {kLargeFile, "O_LARGEFILE"},
    {O_DIRECTORY, "O_DIRECTORY"}, {O_NOFOLLOW, "O_NOFOLLOW"}, {O_NOATIME, "O_NOATIME"},
    {O_CLOEXEC, "O_CLOEXEC"},     {kSync, "O_SYNC"},          {O_PATH, "O_PATH"},
    {kTmpFile, "O_TMPFILE"},
});
constexpr std::array kPagemap = std::to_array<Word>({{1, "PE_PARENT"}, {2, "PE_LAZY"}, {4, "PE_PRESENT"}});
constexpr std::array kSeals = std::to_array<Word>({
    {F_SEAL_SEAL, "F_SEAL_SEAL"},
    {F_SEAL_SHRINK, "F_SEAL_SHRINK"},
    {F_SEAL_GROW, "F_SEAL_GROW"},
    {F_SEAL_WRITE, "F_SEAL_WRITE"},
    {0x10, "F_SEAL_FUTURE_WRITE"},
    {0x20, "F_SEAL_EXEC"},
});
constexpr std::array kTaskStates = std::to_array<Word>({{1, "Alive"}, {2, "Dead"}, {3, "Stopped"}});
constexpr std::array kProt =
    std::to_array<Word>({{PROT_READ, "PROT_READ"}, {PROT_WRITE, "PROT_WRITE"}, {PROT_EXEC, "PROT_EXEC"}});
constexpr std::array kMap = std::to_array<Word>({
    {MAP_SHARED, "MAP_SHARED"},
    {MAP_PRIVATE, "MAP_PRIVATE"},
    {MAP_ANONYMOUS, "MAP_ANON"},
    {MAP_32BIT, "MAP_32BIT"},
    {MAP_GROWSDOWN, "MAP_GROWSDOWN"},
    {MAP_LOCKED, "MAP_LOCKED"},
    {MAP_NORESERVE, "MAP_NORESERVE"},
    {MAP_POPULATE, "MAP_POPULATE"},
    {MAP_NONBLOCK, "MAP_NONBLOCK"},
    {MAP_STACK, "MAP_STACK"},
    {MAP_HUGETLB, "MAP_HUGETLB"},
});
constexpr std::array kVma = std::to_array<Word>({
    {1U << 0, "VMA_AREA_REGULAR"},
    {1U << 1, "VMA_AREA_STACK"},
    {1U << 2, "VMA_AREA_VSYSCALL"},
    {1U << 3, "VMA_AREA_VDSO"},
    {1U << 5, "VMA_AREA_HEAP"},
    {1U << 6, "VMA_FILE_PRIVATE"},
    {1U << 7, "VMA_FILE_SHARED"},
    {1U << 8, "VMA_ANON_SHARED"},
    {1U << 9, "VMA_ANON_PRIVATE"},
    {1U << 10, "VMA_AREA_SYSVIPC"},
    {1U << 11, "VMA_AREA_SOCKET"},
    {1U << 12, "VMA_AREA_VVAR"},
    {1U << 13, "VMA_AREA_AIORING"},
    {1U << 14, "VMA_AREA_MEMFD"},
    {1U << 15, "VMA_AREA_SHSTK"},
    {1U << 16, "VMA_AREA_GUARD"},
    {1U << 17, "VMA_AREA_UPROBES"},
    {1U << 27, "VMA_EXT_PLUGIN"},
});
constexpr std::array kFamilies = std::to_array<Word>(
    {{AF_UNIX, "UNIX"}, {AF_INET, "INET"}, {AF_INET6, "INET6"}, {AF_NETLINK, "NETLINK"}, {AF_PACKET, "PACKET"}});
constexpr std::array kProtocols = std::to_array<Word>({
    {IPPROTO_IP, "IP"},
    {IPPROTO_ICMP, "ICMP"},
    {IPPROTO_TCP, "TCP"},
    {IPPROTO_UDP, "UDP"},
    {IPPROTO_ICMPV6, "ICMPV6"},
    {IPPROTO_UDPLITE, "UDPLITE"},
    {IPPROTO_RAW, "RAW"},
});
constexpr std::array kSocketTypes = std::to_array<Word>({
    {SOCK_STREAM, "STREAM"},
    {SOCK_DGRAM, "DGRAM"},
    {SOCK_RAW, "RAW"},
    {SOCK_SEQPACKET, "SEQPACKET"},
    {SOCK_PACKET, "PACKET"},
});
constexpr std::array kSocketStates = std::to_array<Word>({
    {TCP_ESTABLISHED, "ESTABLISHED"},
    {TCP_SYN_SENT, "SYN_SENT"},
    {TCP_SYN_RECV, "SYN_RECV"},
    {TCP_FIN_WAIT1, "FIN_WAIT1"},
    {TCP_FIN_WAIT2, "FIN_WAIT2"},
    {TCP_TIME_WAIT, "TIME_WAIT"},
    {TCP_CLOSE, "CLOSE"},
    {TCP_CLOSE_WAIT, "CLOSE_WAIT"},
    {TCP_LAST_ACK, "LAST_ACK"},
    {TCP_LISTEN, "LISTEN"},
    {TCP_CLOSING, "CLOSING"},
});

std::string flags(std::span<const Word> words, std::uint64_t value) {
  std::string out;
  const auto put = [&out](std::string_view word) { out.append(out.empty() ? "" : " | ").append(word); };
  for (const Word& word : words) {
    if ((value & word.value) == word.value) {
      put(word.name);
      value &= ~word.value;
    }
  }
  if (value != 0) {
    put(fmt::format("{:#x}", value));
  }
  return out;
}

std::string name(std::span<const Word> words, std::uint64_t value) {
  const auto found = std::find_if(words.begin(), words.end(), [&](const Word& word) { return word.value == value; });
  return found == words.end() ? std::to_string(value) : std::string(found->name);
}

}  // namespace

std::string in_words(pb::Show manner, std::uint64_t value) {
  switch (manner) {
    case pb::OPEN_FLAGS:
      return flags(kOpenFlags, value);
    case pb::DEVICE:
      return fmt::format("{}:{}", value >> 20, value & 0xfffff);
    case pb::PAGEMAP_FLAGS:
      return flags(kPagemap, value);
    case pb::SEALS:
      return flags(kSeals, value);
    case pb::TASK_STATE:
      return name(kTaskStates, value);
    case pb::PROT:
      return flags(kProt, value);
    case pb::MAP_FLAGS:
      return flags(kMap, value);
    case pb::VMA_STATUS:
      return flags(kVma, value);
    case pb::FAMILY:
      return name(kFamilies, value);
    case pb::PROTO:
      return name(kProtocols, value);
    case pb::SOCKET_TYPE:
      return name(kSocketTypes, value);
    case pb::SOCKET_STATE:
      return name(kSocketStates, value);
    case pb::HEX:
    case pb::PLAIN:
    case pb::ADDRESS:
    case pb::QUOTED:
      break;
  }
  return fmt::format("{:#x}", value);
}

std::string address(std::span<const std::uint32_t> words) {
  if (words.size() != 1 && words.size() != 4) {
    return {};
  }
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(words.size() == 1 ? AF_INET : AF_INET6, words.data(), text.data(), text.size());
  return text.data();
}

std::string quoted_bytes(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    if (c >= ' ' && c <= '~' && c != '=') {
      out.push_back(c);
    } else {
      out += fmt::format("={:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      group = group << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    }
    for (std::size_t k = 0; k < 4; ++k) {
      out.push_back(i + k > bytes.size() ? '=' : kDigits[group >> (18 - 6 * k) & 63]);
    }
  }
  return out;
}

}  // namespace ferry::image
