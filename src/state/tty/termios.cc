#include "state/tty/termios.h"

#include <sys/ioctl.h>
#include <termios.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace ferry::state::tty {
namespace {

constexpr std::size_t kCharacters = 19;  // NCCS of the kernel's struct termios; the C library's has 32
constexpr std::size_t kWords = 19;       // words of c_cc in the image, used as room for bytes

struct KernelTermios {  // <asm-generic/termbits.h>, which contradicts <termios.h>
  std::uint32_t iflag, oflag, cflag, lflag;
  unsigned char line;
  unsigned char cc[kCharacters];
};
static_assert(sizeof(KernelTermios) == 36);

void encode(const KernelTermios& from, pb::TermiosEntry& out) {
  out.set_c_iflag(from.iflag);
  out.set_c_oflag(from.oflag);
  out.set_c_cflag(from.cflag);
  out.set_c_lflag(from.lflag);
  out.set_c_line(from.line);
  out.set_c_ispeed(0);  // the speed of a terminal that has one is in c_cflag
  out.set_c_ospeed(0);
  std::uint32_t words[kWords] = {};
  std::memcpy(words, from.cc, sizeof from.cc);
  for (const std::uint32_t word : words) {
    out.add_c_cc(word);
  }
}

Result<KernelTermios> decode(const pb::TermiosEntry& from) {
  KernelTermios out{};
  out.iflag = from.c_iflag();
  out.oflag = from.c_oflag();
  out.cflag = from.c_cflag();
  out.lflag = from.c_lflag();
  out.line = static_cast<unsigned char>(from.c_line());
  std::uint32_t words[kWords] = {};
  if (static_cast<std::size_t>(from.c_cc_size()) * sizeof words[0] < kCharacters) {
    return fail(Kind::corrupt, "tty-info.img has {} words of control characters", from.c_cc_size());
  }
  for (int i = 0; i < from.c_cc_size() && i < static_cast<int>(kWords); ++i) {
    words[i] = from.c_cc(i);
  }
  std::memcpy(out.cc, words, sizeof out.cc);
  return out;
}

}  // namespace

Result<void> collect_attributes(int fd, std::string_view subject, pb::TtyInfoEntry& out) {
  KernelTermios modes{};
  if (::ioctl(fd, TCGETS, &modes) != 0) {
    if (errno == EIO) {
      return {};
    }
    return sys_fail(fmt::format("ioctl({}, TCGETS)", subject));
  }
  encode(modes, *out.mutable_termios());
  KernelTermios locked{};
  if (::ioctl(fd, TIOCGLCKTRMIOS, &locked) != 0) {
    return sys_fail(fmt::format("ioctl({}, TIOCGLCKTRMIOS)", subject));
  }
  encode(locked, *out.mutable_termios_locked());
  winsize size{};
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0) {
    return sys_fail(fmt::format("ioctl({}, TIOCGWINSZ)", subject));
  }
  out.mutable_winsize()->set_ws_row(size.ws_row);
  out.mutable_winsize()->set_ws_col(size.ws_col);
  out.mutable_winsize()->set_ws_xpixel(size.ws_xpixel);
  out.mutable_winsize()->set_ws_ypixel(size.ws_ypixel);
  return {};
}

Result<void> restore_modes(int fd, const pb::TtyInfoEntry& entry) {
  if (entry.has_termios()) {
    FERRY_TRY(const KernelTermios modes, decode(entry.termios()));
    if (::ioctl(fd, TCSETS, &modes) != 0) {
      return sys_fail(fmt::format("ioctl(terminal {}, TCSETS)", entry.id()));
    }
  }
  if (entry.has_termios_locked()) {
    FERRY_TRY(const KernelTermios locked, decode(entry.termios_locked()));
    if (::ioctl(fd, TIOCSLCKTRMIOS, &locked) != 0) {
      return sys_fail(fmt::format("ioctl(terminal {}, TIOCSLCKTRMIOS)", entry.id()));
    }
  }
  return {};
}

Result<void> restore_window_size(int fd, const pb::TtyInfoEntry& entry) {
  if (!entry.has_winsize()) {
    return {};
  }
  const auto& from = entry.winsize();
  const winsize size{static_cast<unsigned short>(from.ws_row()), static_cast<unsigned short>(from.ws_col()),
                     static_cast<unsigned short>(from.ws_xpixel()), static_cast<unsigned short>(from.ws_ypixel())};
  if (::ioctl(fd, TIOCSWINSZ, &size) != 0) {
    return sys_fail(fmt::format("ioctl(terminal {}, TIOCSWINSZ)", entry.id()));
  }
  return {};
}

Result<bool> reads_lines(int fd, std::string_view subject) {
  KernelTermios modes{};
  if (::ioctl(fd, TCGETS, &modes) != 0) {
    return sys_fail(fmt::format("ioctl({}, TCGETS)", subject));
  }
  return (modes.lflag & ICANON) != 0;
}

Result<Quiet> Quiet::make(int fd, std::string_view subject, Reading reading) {
  Modes before{};
  static_assert(sizeof(Modes) == sizeof(KernelTermios));
  if (::ioctl(fd, TCGETS, &before) != 0) {
    return sys_fail(fmt::format("ioctl({}, TCGETS)", subject));
  }
  Modes quiet = before;
  quiet.iflag &= IXON;  // a change of IXON would be told to a master in packet mode (ioctl_tty(2), TIOCPKT)
  quiet.oflag = 0;
  quiet.lflag &= reading == Reading::as_it_is ? ICANON : 0;
  for (const int editing : {VERASE, VKILL, VEOF, VEOL, VREPRINT, VWERASE, VLNEXT, VEOL2}) {
    quiet.cc[editing] = 0;  // _POSIX_VDISABLE
  }
  if (::ioctl(fd, TCSETS, &quiet) != 0) {
    return sys_fail(fmt::format("ioctl({}, TCSETS)", subject));
  }
  return Quiet(fd, before);
}

Quiet::Quiet(Quiet&& other) noexcept : fd_(std::exchange(other.fd_, -1)), before_(other.before_) {}

Result<void> Quiet::end() {
  const int fd = std::exchange(fd_, -1);
  if (fd >= 0 && ::ioctl(fd, TCSETS, &before_) != 0) {
    return sys_fail("ioctl(terminal, TCSETS)");
  }
  return {};
}

Quiet::~Quiet() { (void)end(); }

}  // namespace ferry::state::tty
