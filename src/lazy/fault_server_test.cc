// The fault server on memory of this very process, fed from files and over a connection.
#include "lazy/fault_server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "lazy/endpoint.h"
#include "lazy/file_source.h"
#include "lazy/page_supply.h"
#include "lazy/remote_source.h"

namespace ferry::lazy {
namespace {

constexpr std::size_t kPage = image::kPageSize;
constexpr std::size_t kPages = 1024;
const NsPid kPid(7);

// Memory that is missing, and a file with what should be in it: every word of a page is the page's number plus one.
class MissingMemory : public testing::Test {
 protected:
  void SetUp() override {
    void* at =
        ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    base_ = static_cast<std::uint64_t*>(at);
    uffd_ = UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    if (!uffd_) {
      GTEST_SKIP() << "userfaultfd(2) needs CAP_SYS_PTRACE";
    }
    ASSERT_TRUE(sys::missing_negotiate(uffd_.get()).has_value());
    ASSERT_TRUE(sys::missing_register(uffd_.get(), address(0), address(kPages)).has_value());
    std::string name = testing::TempDir() + "/ferry-fault-XXXXXX";
    file_ = UniqueFd(::mkstemp(name.data()));
    ::unlink(name.c_str());
    std::vector<std::uint64_t> content(kPages * kWords);
    for (std::size_t i = 0; i < content.size(); ++i) {
      content[i] = i / kWords + 1;
    }
    ASSERT_EQ(::write(file_.get(), content.data(), kPages * kPage), static_cast<ssize_t>(kPages * kPage));
  }
  void TearDown() override {
    uffd_.reset();
    ::munmap(base_, kPages * kPage);
  }
  [[nodiscard]] std::uint64_t address(std::size_t page) const {
    return reinterpret_cast<std::uint64_t>(base_) + page * kPage;
  }
  [[nodiscard]] std::uint64_t first_word(std::size_t page) const {
    return *static_cast<volatile std::uint64_t*>(base_ + page * kWords);
  }
  // All but every 16th page has content.
  [[nodiscard]] std::vector<image::Extent> extents() const {
    std::vector<image::Extent> out;
    for (std::size_t p = 0; p < kPages; p += 16) {
      out.push_back({address(p + 1), 15, file_.get(), (p + 1) * kPage});
    }
    return out;
  }
  [[nodiscard]] Missing missing() const {
    Missing out;
    for (const image::Extent& e : extents()) {
      out.add(e.vaddr, e.vaddr + e.page_count * kPage);
    }
    return out;
  }
  void expect_everything() const {
    for (std::size_t p = kPages; p-- > 0;) {
      ASSERT_EQ(first_word(p), p % 16 == 0 ? 0 : p + 1) << p;
    }
  }

  static constexpr std::size_t kWords = kPage / 8;
  std::uint64_t* base_ = nullptr;
  UniqueFd uffd_, file_;
};

TEST_F(MissingMemory, ComesFromAFile) {
  FileSource files;
  ASSERT_TRUE(files.add(kPid, extents()).has_value());
  FaultServer server;
  server.add_source(files);
  ASSERT_TRUE(server.add_process(kPid, std::move(uffd_), missing()).has_value());
  EXPECT_EQ(server.missing_bytes(), kPages / 16 * 15 * kPage);
  std::thread toucher([&] { expect_everything(); });
  const auto served = server.run();
  toucher.join();
  ASSERT_TRUE(served.has_value()) << served.error().message();
  EXPECT_EQ(server.report().pages, kPages / 16 * 15);
}

// A file that is cut after it was looked at: nobody gets zeros; when it is whole again, everything comes.
TEST_F(MissingMemory, IsWaitedForWhenItsFileIsCut) {
  FileSource files;
  ASSERT_TRUE(files.add(kPid, extents()).has_value());
  ASSERT_EQ(::ftruncate(file_.get(), 100 * kPage), 0);
  FaultServer server;
  server.add_source(files);
  ASSERT_TRUE(server.add_process(kPid, std::move(uffd_), missing()).has_value());
  std::atomic<std::uint64_t> found{0};
  std::thread toucher([&] {
    EXPECT_EQ(first_word(50), 51U);
    found = 1;
    EXPECT_EQ(first_word(500), 501U);
    found = 2;
  });
  std::thread mender([&] {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (found == 0 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    EXPECT_EQ(found, 1U);
    for (std::size_t p = 100; p < kPages; ++p) {
      const std::vector<std::uint64_t> page(kWords, p + 1);
      ASSERT_EQ(::pwrite(file_.get(), page.data(), kPage, static_cast<off_t>(p * kPage)), static_cast<ssize_t>(kPage));
    }
  });
  const auto served = server.run();
  mender.join();
  toucher.join();
  ASSERT_TRUE(served.has_value()) << served.error().message();
  expect_everything();
}

// What is asked for over a connection is memory of this process as well: a copy of the file.
class RemoteMemory : public MissingMemory {
 protected:
  void SetUp() override {
    MissingMemory::SetUp();
    if (!uffd_) {
      return;
    }
    void* at = ::mmap(nullptr, kPages * kPage, PROT_READ, MAP_PRIVATE, file_.get(), 0);
    ASSERT_NE(at, MAP_FAILED);
    source_ = static_cast<std::byte*>(at);
    memory_ = UniqueFd(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
    auto supply = PageSupply::open({"127.0.0.1", 0, -1});
    ASSERT_TRUE(supply.has_value()) << supply.error().message();
    supply_ = std::move(*supply);
    port_ = supply_.port().value_or(0);
    ASSERT_NE(port_, 0);
    // The addresses differ, as those of two processes would not: so the server is asked for the source's own.
    for (const image::Extent& e : extents()) {
      supply_.offer(kPid, HostPid(::getpid()), memory_.get(), source_address(e.vaddr),
                    source_address(e.vaddr) + e.page_count * kPage);
    }
    offering_ = std::thread([this] { supplied_ = supply_.serve(); });
  }
  void TearDown() override {
    if (offering_.joinable()) {
      offering_.join();
    }
    if (source_ != nullptr) {
      ::munmap(source_, kPages * kPage);
    }
    MissingMemory::TearDown();
  }
  [[nodiscard]] std::uint64_t source_address(std::uint64_t vaddr) const {
    return reinterpret_cast<std::uint64_t>(source_) + (vaddr - address(0));
  }
  // As if the memory had been moved from where the source has it.
  [[nodiscard]] Missing moved() const {
    Missing out;
    for (const image::Extent& e : extents()) {
      out.add(source_address(e.vaddr), source_address(e.vaddr) + e.page_count * kPage);
    }
    out.move(reinterpret_cast<std::uint64_t>(source_), address(0), kPages * kPage);
    return out;
  }

  std::byte* source_ = nullptr;
  UniqueFd memory_;
  PageSupply supply_;
  std::uint16_t port_ = 0;
  std::thread offering_;
  Result<void> supplied_;
};

TEST_F(RemoteMemory, ComesOverAConnection) {
  auto remote = RemoteSource::connect({"127.0.0.1", port_, -1});
  ASSERT_TRUE(remote.has_value()) << remote.error().message();
  FaultServer server;
  server.add_source(**remote);
  ASSERT_TRUE(server.add_process(kPid, std::move(uffd_), moved()).has_value());
  std::thread toucher([&] { expect_everything(); });
  const auto served = server.run();
  toucher.join();
  ASSERT_TRUE(served.has_value()) << served.error().message();
  EXPECT_TRUE((*remote)->finish().has_value());
  offering_.join();
  EXPECT_TRUE(supplied_.has_value());
}

// Between server and supply a relay that hangs up twice, the second time within an answer.
TEST_F(RemoteMemory, ComesOverTheNextConnectionWhenOneIsLost) {
  auto listener = listen_at({"127.0.0.1", 0, -1});
  ASSERT_TRUE(listener.has_value());
  const std::uint16_t relay_port = port_of(listener->get()).value_or(0);
  std::thread relay([&] {
    for (const std::size_t allowed : {std::size_t{100'000}, std::size_t{300'001}, std::size_t{1} << 40}) {
      const auto client = accept_from(listener->get());
      const auto there = connect_to({"127.0.0.1", port_, -1});
      ASSERT_TRUE(client.has_value() && there.has_value());
      std::thread forward([&] {
        char bytes[4096];
        for (ssize_t n = 0; (n = ::read(client->get(), bytes, sizeof bytes)) > 0;) {
          if (::send(there->get(), bytes, static_cast<std::size_t>(n), MSG_NOSIGNAL) != n) {
            break;
          }
        }
        ::shutdown(there->get(), SHUT_RDWR);
      });
      std::vector<char> bytes(65536);
      std::size_t left = allowed;
      while (left != 0) {
        const ssize_t n = ::read(there->get(), bytes.data(), std::min(left, bytes.size()));
        if (n <= 0 || ::send(client->get(), bytes.data(), static_cast<std::size_t>(n), MSG_NOSIGNAL) != n) {
          break;
        }
        left -= static_cast<std::size_t>(n);
      }
      ::shutdown(client->get(), SHUT_RDWR);
      ::shutdown(there->get(), SHUT_RDWR);
      forward.join();
    }
  });
  auto remote = RemoteSource::connect({"127.0.0.1", relay_port, -1});
  ASSERT_TRUE(remote.has_value()) << remote.error().message();
  FaultServer server;
  server.add_source(**remote);
  ASSERT_TRUE(server.add_process(kPid, std::move(uffd_), moved()).has_value());
  std::thread toucher([&] { expect_everything(); });
  const auto served = server.run();
  toucher.join();
  ASSERT_TRUE(served.has_value()) << served.error().message();
  EXPECT_TRUE((*remote)->finish().has_value());
  (*remote).reset();  // hangs up, which ends the relay
  relay.join();
  offering_.join();
  EXPECT_TRUE(supplied_.has_value());
}

}  // namespace
}  // namespace ferry::lazy
