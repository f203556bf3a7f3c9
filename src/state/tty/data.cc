#include "state/tty/data.h"

#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <termios.h>

#include <chrono>
#include <optional>

#include "state/tty/pty.h"
#include "state/tty/termios.h"
#include "sys/file.h"

namespace ferry::state::tty {
namespace {

constexpr std::chrono::seconds kPatience{5};

// Packet mode puts a byte before what is read (ioctl_tty(2), TIOCPKT); off for as long as this lives.
class WithoutPackets {
 public:
  static Result<WithoutPackets> make(int master, std::string_view subject) {
    int on = 0;
    if (::ioctl(master, TIOCGPKT, &on) != 0) {
      return sys_fail(fmt::format("ioctl({}, TIOCGPKT)", subject));
    }
    if (on == 0) {
      return WithoutPackets(-1);
    }
    struct pollfd p {};
    p.fd = master;
    p.events = POLLPRI;
    if (::poll(&p, 1, 0) == 1 && (p.revents & POLLPRI) != 0) {
      return fail(Kind::unsupported, "{}: a terminal in packet mode has a status that was not read; try again",
                  subject);
    }
    WithoutPackets out(master);
    FERRY_CHECK(out.set(0));
    return out;
  }
  WithoutPackets(WithoutPackets&& other) noexcept : master_(std::exchange(other.master_, -1)) {}
  WithoutPackets& operator=(WithoutPackets&&) = delete;
  ~WithoutPackets() { (void)set(1); }

 private:
  explicit WithoutPackets(int master) : master_(master) {}
  Result<void> set(int on) const {
    if (master_ >= 0 && ::ioctl(master_, TIOCPKT, &on) != 0) {
      return sys_fail("ioctl(terminal, TIOCPKT)");
    }
    return {};
  }
  int master_;
};

// How many bytes are ready; of a terminal that reads lines, those of complete ones.
Result<int> ready_bytes(int fd, std::string_view subject) {
  int bytes = 0;
  if (::ioctl(fd, FIONREAD, &bytes) != 0) {
    return sys_fail(fmt::format("ioctl({}, FIONREAD)", subject));
  }
  return bytes;
}

}  // namespace

Result<std::string> take_data(int fd, bool master, std::string_view subject) {
  if (master) {
    FERRY_TRY(const WithoutPackets plain, WithoutPackets::make(fd, subject));
    FERRY_TRY(const int ready, ready_bytes(fd, subject));
    return ready == 0 ? Result<std::string>(std::string()) : drain(fd, subject);
  }
  std::string out;
  FERRY_TRY(const int ready, ready_bytes(fd, subject));
  if (ready > 0) {
    FERRY_TRY(Quiet quiet, Quiet::make(fd, subject));
    FERRY_TRY(out, drain(fd, subject));
    FERRY_CHECK(quiet.end());
  }
  // What is left is a line that is not complete, and nobody could read it but as single characters.
  FERRY_TRY(Quiet single, Quiet::make(fd, subject, Quiet::Reading::characters));
  FERRY_TRY(const int rest, ready_bytes(fd, subject));
  if (rest > 0) {
    FERRY_TRY(const std::string half, drain(fd, subject));
    out += half;
  }
  FERRY_CHECK(single.end());
  return out;
}

Result<void> write_unchanged(int writer, int reader, int modes, const std::string& bytes, std::string_view subject) {
  if (bytes.empty()) {
    return {};
  }
  FERRY_TRY(Quiet quiet, Quiet::make(modes, subject));
  FERRY_TRY(const bool lines, reads_lines(reader, subject));
  const std::size_t newline = bytes.rfind('\n');
  const auto expected = static_cast<int>(!lines ? bytes.size() : newline == std::string::npos ? 0 : newline + 1);
  FERRY_CHECK(sys::write_all(writer, bytes.data(), bytes.size(), subject));
  // The kernel hands the bytes over in the background; poll(2) on a side with nothing to read waits for that.
  for (const auto deadline = std::chrono::steady_clock::now() + kPatience;;) {
    struct pollfd p {};
    p.fd = reader;
    p.events = POLLIN;
    ::poll(&p, 1, 0);
    FERRY_TRY(const int ready, ready_bytes(reader, subject));
    if (ready >= expected) {
      return quiet.end();
    }
    if (std::chrono::steady_clock::now() > deadline) {
      return fail(Kind::os, "{}: {} of {} bytes arrived within 5 s", subject, ready, expected);
    }
    ::sched_yield();
  }
}

}  // namespace ferry::state::tty
