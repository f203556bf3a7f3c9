#include "migrate/direct.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "migrate/message.pb.h"
#include "migrate/page_intake.h"
#include "migrate/page_streams.h"

namespace ferry::migrate {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Direct : public testing::Test {
 protected:
  void SetUp() override {
    ::signal(SIGPIPE, SIG_IGN);  // as the programs do
    control_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
    auto listener = DirectListener::open("127.0.0.1", 0);
    ASSERT_TRUE(listener) << listener.error().message();
    listener_.emplace(std::move(*listener));
  }

  // Both ends of so many connections.
  struct Ends {
    std::vector<Link> here, there;
  };
  Ends connect_all(unsigned count) {
    Ends out;
    out.there = accept_while(count, [&] {
      auto connected = connect(listener_->key(), count);
      ASSERT_TRUE(connected) << connected.error().message();
      out.here = std::move(*connected);
    });
    EXPECT_EQ(out.here.size(), count);
    EXPECT_EQ(out.there.size(), count);
    return out;
  }

  // Accepts in a thread while `client` runs.
  std::vector<Link> accept_while(unsigned count, const std::function<void()>& client) {
    std::vector<Link> out;
    std::thread thread([&] {
      auto found = listener_->accept(count, control_.get(), seconds(20), "source");
      EXPECT_TRUE(found);
      if (found) {
        out = std::move(*found);
      }
    });
    client();
    thread.join();
    return out;
  }
  Result<std::vector<Link>> connect(const OneTimeKey& key, unsigned count) {
    return connect_directly("127.0.0.1", listener_->port(), key, count, seconds(10), -1, "destination");
  }
  UniqueFd knock() const {
    UniqueFd out(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(listener_->port());
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(out.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
    return out;
  }
  void tell() { ::eventfd_write(control_.get(), 1); }

  UniqueFd control_;
  std::optional<DirectListener> listener_;
};

TEST_F(Direct, CarriesFramesBothWaysOverEveryConnection) {
  auto [here, there] = connect_all(3);
  ASSERT_EQ(there.size(), 3U);
  for (std::size_t i = 0; i < here.size(); ++i) {
    wire::Message message;
    message.mutable_mark()->set_number(i + 100);
    ASSERT_TRUE(here[i].send(message));
    wire::Message arrived;
    ASSERT_TRUE(there[i].receive(arrived, seconds(5)));
    EXPECT_EQ(arrived.mark().number(), i + 100) << "connections were mixed up";
    ASSERT_TRUE(there[i].send(message));
    ASSERT_TRUE(here[i].receive(arrived, seconds(5)));
  }
  std::string much(5 << 20, 'x');
  for (std::size_t i = 0; i < much.size(); i += 1000) {
    much[i] = static_cast<char>(i / 1000);
  }
  std::thread sender([&] {
    EXPECT_TRUE(here[1].send_bulk(std::as_bytes(std::span(much))));
    EXPECT_TRUE(here[1].end_bulk());
  });
  const auto text = there[1].receive_text(much.size());
  sender.join();
  ASSERT_TRUE(text) << text.error().message();
  EXPECT_TRUE(*text == much);
  here[2].close();
  wire::Message none;
  const auto end = there[2].receive(none, seconds(5));
  ASSERT_FALSE(end);
  EXPECT_EQ(end.error().kind, Kind::gone);
}

TEST_F(Direct, RefusesWhoeverHasAnotherKey) {
  auto other = OneTimeKey::make();
  ASSERT_TRUE(other);
  const auto there = accept_while(1, [&] {
    const auto connected = connect(*other, 1);
    ASSERT_FALSE(connected);
    EXPECT_EQ(connected.error().kind, Kind::denied) << connected.error().message();
    tell();
  });
  EXPECT_TRUE(there.empty());
}

TEST_F(Direct, DoesNotTalkToAListenerWithAnotherKey) {
  // The same from the other side: it is the client that must not believe.
  const OneTimeKey ours = listener_->key();
  auto impostor = DirectListener::open("127.0.0.1", 0);
  ASSERT_TRUE(impostor);
  listener_.emplace(std::move(*impostor));
  const auto there = accept_while(1, [&] {
    EXPECT_FALSE(connect(ours, 1));
    tell();
  });
  EXPECT_TRUE(there.empty());
}

TEST_F(Direct, IsNotHeldUpByStrangers) {
  const UniqueFd silent = knock();
  const UniqueFd noisy = knock();
  ASSERT_EQ(::write(noisy.get(), "GET / HTTP/1.0\r\n\r\n", 18), 18);
  std::vector<Link> here;
  const auto begin = std::chrono::steady_clock::now();
  const auto there = accept_while(2, [&] {
    auto connected = connect(listener_->key(), 2);
    ASSERT_TRUE(connected) << connected.error().message();
    here = std::move(*connected);
  });
  EXPECT_EQ(there.size(), 2U);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(2));
  std::array<char, 100> told{};
  const ssize_t got = ::read(noisy.get(), told.data(), told.size());
  EXPECT_LE(got, 7) << "a stranger was told more than an alert";
}

TEST_F(Direct, StopsListeningWhenTheSourceHasGivenUp) {
  const auto there = accept_while(2, [&] { tell(); });
  EXPECT_TRUE(there.empty());
}

TEST_F(Direct, NoticesThatNobodyListens) {
  const std::uint16_t port = listener_->port();
  const OneTimeKey key = listener_->key();
  listener_.reset();
  const auto connected = connect_directly("127.0.0.1", port, key, 1, seconds(5), -1, "destination");
  ASSERT_FALSE(connected);
  EXPECT_NE(connected.error().message().find(std::to_string(port)), std::string::npos) << connected.error().message();
}

// Somebody in the middle who changes one byte of what crosses.
TEST_F(Direct, NoticesAChangedByte) {
  std::array<int, 2> left{};
  std::array<int, 2> right{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, left.data()), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, right.data()), 0);
  UniqueFd near(left[1]);
  UniqueFd far(right[1]);
  std::atomic<bool> spoil = false;
  const auto copy = [&](int from, int to) {
    std::array<char, 4096> bytes{};
    for (ssize_t got = 0; (got = ::read(from, bytes.data(), bytes.size())) > 0;) {
      bytes[static_cast<std::size_t>(got) - 1] =
          static_cast<char>(bytes[static_cast<std::size_t>(got) - 1] ^ (spoil ? 1 : 0));
      if (::write(to, bytes.data(), static_cast<std::size_t>(got)) != got) {
        return;
      }
    }
  };
  std::thread forth([&] { copy(near.get(), far.get()); });
  std::thread back([&] { copy(far.get(), near.get()); });
  auto client = TlsTransport::client(UniqueFd(left[0]), listener_->key(), 0);
  auto server = TlsTransport::server(UniqueFd(right[0]), listener_->key());
  ASSERT_TRUE(client && server);
  for (bool client_done = false, server_done = false; !client_done || !server_done;) {
    const auto one = (*client)->shake_hands();
    const auto other = (*server)->shake_hands();
    ASSERT_TRUE(one && other);
    client_done = *one;
    server_done = *other;
  }
  {
    Link here(std::move(*client), -1, "destination");
    Link there(std::move(*server), -1, "source");
    spoil = true;
    wire::Message message;
    message.mutable_mark()->set_number(1);
    EXPECT_TRUE(here.send(message));
    const auto arrived = there.receive(message, seconds(5));
    EXPECT_FALSE(arrived);
    if (!arrived) {
      EXPECT_EQ(arrived.error().kind, Kind::corrupt) << arrived.error().message();
    }
  }
  ::shutdown(near.get(), SHUT_RDWR);
  ::shutdown(far.get(), SHUT_RDWR);
  forth.join();
  back.join();
}

TEST(ReachedAddress, IsTheThirdWord) {
  EXPECT_EQ(reached_address("192.0.2.7 51234 192.0.2.9 22"), "192.0.2.9");
  EXPECT_EQ(reached_address("fd00::7 51234 fd00::9 22"), "fd00::9");
  EXPECT_EQ(reached_address(nullptr), "");
  EXPECT_EQ(reached_address("nonsense"), "");
}

// Memory of a process, over two connections, until a mark.
TEST_F(Direct, BringsPagesBeforeTheirMark) {
  constexpr std::size_t kPages = 5000;
  constexpr std::size_t kPage = 4096;
  auto* memory =
      static_cast<char*>(::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  for (std::size_t i = 0; i < kPages; i += 3) {  // two of three hold nothing
    std::memset(memory + i * kPage, static_cast<int>(i % 255 + 1), kPage);
  }
  const auto address = reinterpret_cast<std::uint64_t>(memory);
  auto [here, there] = connect_all(2);
  ASSERT_EQ(there.size(), 2U);
  std::mutex lock;
  std::map<std::uint64_t, char> arrived;  // page, its first byte
  auto intake = PageIntake::start(there, [&](image::Name name, std::span<const ArrivedPages> runs) -> Result<void> {
    EXPECT_EQ(name.id, 7U);
    const std::lock_guard<std::mutex> held(lock);
    for (const ArrivedPages& run : runs) {
      for (std::uint64_t i = 0; i < run.pages; ++i) {
        arrived[run.vaddr + i * kPage] = run.zeros ? '\0' : static_cast<char>(run.content[i * kPage]);
      }
    }
    return {};
  });
  ASSERT_TRUE(intake);
  {
    Link nobody(UniqueFd(), UniqueFd(), -1, "nobody");
    PageStreams streams(nobody, here, true);
    const auto mem = std::make_shared<const UniqueFd>();
    // The last range is not mapped, or not all of it: that is passed over.
    streams.add({image::Type::pagemap, 7}, HostPid(::getpid()), mem,
                {{address, address + kPages * kPage}, {0x1000, 0x3000}});
    const auto mark = streams.mark(false);
    ASSERT_TRUE(mark);
    ASSERT_TRUE((*intake)->wait_for(*mark));
    EXPECT_EQ(streams.content_bytes(), (kPages + 2) / 3 * kPage);
    {
      const std::lock_guard<std::mutex> held(lock);
      ASSERT_EQ(arrived.size(), kPages);
      for (std::size_t i = 0; i < kPages; ++i) {
        ASSERT_EQ(arrived[address + i * kPage], memory[i * kPage]) << "page " << i;
      }
    }
    const auto last = streams.mark(true);
    ASSERT_TRUE(last);
    ASSERT_TRUE((*intake)->finish(*last));
  }
  // The connections are free for other things again.
  ASSERT_TRUE(here[0].send_bulk(std::as_bytes(std::span("text", 4))));
  ASSERT_TRUE(here[0].end_bulk());
  const auto text = there[0].receive_text(10);
  ASSERT_TRUE(text);
  EXPECT_EQ(*text, "text");
  ::munmap(memory, kPages * kPage);
}

// Private pages of this process that no other one has (proc(5), pagemap, bit 56).
std::size_t exclusive_pages(const char* at, std::size_t count) {
  std::vector<std::uint64_t> entries(count);
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY));
  const auto bytes = count * sizeof(std::uint64_t);
  EXPECT_EQ(
      ::pread(pagemap.get(), entries.data(), bytes, static_cast<off_t>(reinterpret_cast<std::uint64_t>(at) / 4096 * 8)),
      static_cast<ssize_t>(bytes));
  return static_cast<std::size_t>(
      std::count_if(entries.begin(), entries.end(), [](std::uint64_t e) { return (e >> 56 & 1) != 0; }));
}

TEST_F(Direct, LeavesPagesToThoseWhoShareThem) {
  constexpr std::size_t kPages = 512, kPage = 4096;
  auto* memory =
      static_cast<char*>(::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  std::memset(memory, 's', kPages * kPage);
  auto [here, there] = connect_all(1);
  ASSERT_EQ(there.size(), 1U);
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::pause();
    ::_exit(0);
  }
  ASSERT_EQ(exclusive_pages(memory, kPages), 0U);
  std::atomic<std::uint64_t> arrived{0};
  auto intake = PageIntake::start(there, [&](image::Name, std::span<const ArrivedPages> runs) -> Result<void> {
    for (const ArrivedPages& run : runs) {
      arrived += run.pages;
      EXPECT_EQ(static_cast<char>(run.content[0]), 's');
    }
    return {};
  });
  ASSERT_TRUE(intake);
  {
    Link nobody(UniqueFd(), UniqueFd(), -1, "nobody");
    PageStreams streams(nobody, here, true);
    const auto mem = std::make_shared<const UniqueFd>(::open("/proc/self/mem", O_RDONLY));
    const auto address = reinterpret_cast<std::uint64_t>(memory);
    streams.add({image::Type::pagemap, 7}, HostPid(::getpid()), mem,
                {{address, address + kPages * kPage}, {0x1000, 0x3000}}, state::memory::Reading::sharing);
    const auto last = streams.mark(true);
    ASSERT_TRUE(last);
    ASSERT_TRUE((*intake)->finish(*last));
  }
  EXPECT_EQ(arrived, kPages);
  EXPECT_EQ(exclusive_pages(memory, kPages), 0U);
  ::kill(child, SIGKILL);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  ::munmap(memory, kPages * kPage);
}

TEST_F(Direct, StopsTheSourceWhenPagesCannotBeTaken) {
  auto [here, there] = connect_all(1);
  ASSERT_EQ(there.size(), 1U);
  auto intake = PageIntake::start(
      there, [](image::Name, std::span<const ArrivedPages>) -> Result<void> { return fail(Kind::os, "no room"); });
  ASSERT_TRUE(intake);
  Link nobody(UniqueFd(), UniqueFd(), -1, "nobody");
  PageStreams streams(nobody, here, false);
  PageBatch batch;
  batch.begin({image::Type::pagemap, 7});
  std::memset(batch.tail().data(), 1, 4096);
  batch.keep(0x10000, 4096);
  ASSERT_TRUE(streams.send_in_order(batch));
  const auto waited = (*intake)->wait_for(1);
  ASSERT_FALSE(waited);
  EXPECT_EQ(waited.error().what, "no room");
  std::uint64_t count = 0;
  EXPECT_EQ(::read((*intake)->failed(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
}

}  // namespace
}  // namespace ferry::migrate
