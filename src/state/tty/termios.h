// Terminal attributes as ioctl_tty(2) gives them, and as tty-info.img holds them.
#pragma once

#include <string_view>

#include "base/error.h"
#include "image/proto/tty.pb.h"

namespace ferry::state::tty {

// Modes, locked modes and window size.  A terminal that was hung up (EIO) has none of them.
Result<void> collect_attributes(int fd, std::string_view subject, pb::TtyInfoEntry& out);
Result<void> restore_modes(int fd, const pb::TtyInfoEntry& entry);
Result<void> restore_window_size(int fd, const pb::TtyInfoEntry& entry);

// Until it is destroyed the terminal takes bytes as they are: no echo, no translation, no signals, no
// editing characters.  Whether it gathers lines stays, because changing that cuts the line that is
// being gathered.
class Quiet {
 public:
  enum class Reading : std::uint8_t { as_it_is, characters };  // lines, if the terminal reads lines; or not
  static Result<Quiet> make(int fd, std::string_view subject, Reading reading = Reading::as_it_is);
  Quiet(Quiet&& other) noexcept;
  Quiet& operator=(Quiet&&) = delete;
  ~Quiet();
  Result<void> end();

 private:
  struct Modes {  // struct termios of the kernel, <asm-generic/termbits.h>
    std::uint32_t iflag, oflag, cflag, lflag;
    unsigned char line;
    unsigned char cc[19];
  };
  Quiet(int fd, Modes before) : fd_(fd), before_(before) {}
  int fd_;
  Modes before_;
};

// Whether the terminal reads whole lines (ICANON, termios(3)).
Result<bool> reads_lines(int fd, std::string_view subject);

}  // namespace ferry::state::tty
