// How a restore tells a lazy-pages daemon which processes wait for pages: over a Unix socket, as CRIU does.
//
// For each process of the tree its number, then a userfaultfd of its memory; the negative of its number for one that
// waits for nothing.  The number of the end once all run.
#pragma once

#include <string>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace ferry::lazy {

inline constexpr const char* kSocketName = "lazy-pages.socket";
inline constexpr std::uint32_t kEndOfTree = 0x52535446;

// `directory`: what a relative path starts from.  Errors: gone (nobody listens there).
Result<UniqueFd> connect_to_daemon(int directory, const std::string& path);
Result<UniqueFd> listen_for_restore(int directory, const std::string& path);

Result<void> send_process(int socket, NsPid pid, int uffd);
Result<void> send_idle_process(int socket, NsPid pid);
Result<void> send_end(int socket);

struct Handed {
  enum class What : std::uint8_t { process, idle, end, hung_up } what{};
  NsPid pid;
  UniqueFd uffd;
};
Result<Handed> receive_handed(int socket);

}  // namespace ferry::lazy
