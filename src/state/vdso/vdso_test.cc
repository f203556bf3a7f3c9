#include "state/vdso/vdso.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

#include <cerrno>
#include <cstring>

namespace ferry::state::vdso {
namespace {

// A copy of this kernel's vDSO that stands for another one's: it cannot work where it lies.
class Copy {
 public:
  Copy() : content_(own().begin(), own().end()) {}
  std::span<std::byte> content() { return content_; }

  // To be called once it leads out.
  void map() {
    at_ = ::mmap(nullptr, content_.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(at_, MAP_FAILED);
    std::memcpy(at_, content_.data(), content_.size());
    ASSERT_EQ(::mprotect(at_, content_.size(), PROT_READ | PROT_EXEC), 0);
  }
  ~Copy() {
    if (at_ != nullptr) {
      ::munmap(at_, content_.size());
    }
  }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

  template <class F>
  F* function(const std::string& name) {
    const auto all = functions(content_).value();
    for (const Function& f : all) {
      if (f.name == name) {
        return reinterpret_cast<F*>(static_cast<std::byte*>(at_) + f.offset);
      }
    }
    return nullptr;
  }

 private:
  std::vector<std::byte> content_;
  void* at_ = nullptr;
};

void expect_it_tells_the_time(Copy& copy) {
  auto* clock_gettime_there = copy.function<int(clockid_t, timespec*)>("__vdso_clock_gettime");
  ASSERT_NE(clock_gettime_there, nullptr);
  for (const clockid_t clock : {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID}) {
    timespec before{}, there{}, after{};
    ::clock_gettime(clock, &before);
    EXPECT_EQ(clock_gettime_there(clock, &there), 0);
    ::clock_gettime(clock, &after);
    const auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; };
    EXPECT_LE(ns(before), ns(there)) << "clock " << clock;
    EXPECT_LE(ns(there), ns(after)) << "clock " << clock;
  }
  auto* gettimeofday_there = copy.function<int(timeval*, void*)>("__vdso_gettimeofday");
  ASSERT_NE(gettimeofday_there, nullptr);
  timeval now{};
  EXPECT_EQ(gettimeofday_there(&now, nullptr), 0);
  EXPECT_NEAR(static_cast<double>(now.tv_sec), static_cast<double>(::time(nullptr)), 1);
  auto* time_there = copy.function<time_t(time_t*)>("__vdso_time");
  ASSERT_NE(time_there, nullptr);
  EXPECT_NEAR(static_cast<double>(time_there(nullptr)), static_cast<double>(::time(nullptr)), 1);
  auto* getcpu_there = copy.function<int(unsigned*, unsigned*, void*)>("__vdso_getcpu");
  ASSERT_NE(getcpu_there, nullptr);
  unsigned cpu = ~0U;
  EXPECT_EQ(getcpu_there(&cpu, nullptr, nullptr), 0);
  EXPECT_LT(cpu, 1U << 16);
}

std::uint64_t address_of_own() { return reinterpret_cast<std::uint64_t>(own().data()); }

TEST(Vdso, OffersWhatProgramsCall) {
  ASSERT_FALSE(own().empty());
  const auto all = functions(own());
  ASSERT_TRUE(all.has_value()) << all.error().message();
  for (const char* name : {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu"}) {
    EXPECT_EQ(std::count_if(all->begin(), all->end(), [&](const Function& f) { return f.name == name; }), 1) << name;
  }
}

TEST(Vdso, OfAnotherKernelLeadsToThisOne) {
  Copy copy;
  const auto led = lead_out(copy.content(), own(), address_of_own());
  ASSERT_TRUE(led.has_value()) << led.error().message();
  copy.map();
  expect_it_tells_the_time(copy);
}

TEST(Vdso, OfAnotherKernelMakesSystemCallsWhereThisOneHasNone) {
  Copy copy;
  const auto led = lead_out(copy.content(), {}, 0);
  ASSERT_TRUE(led.has_value()) << led.error().message();
  copy.map();
  expect_it_tells_the_time(copy);
  if (auto* getrandom_there =
          copy.function<long(void*, std::size_t, unsigned, void*, std::size_t)>("__vdso_getrandom")) {
    std::array<unsigned char, 64> bytes{};
    EXPECT_EQ(getrandom_there(bytes.data(), bytes.size(), 0, nullptr, 0), static_cast<long>(bytes.size()));
    EXPECT_NE(bytes, (std::array<unsigned char, 64>{}));
    EXPECT_EQ(getrandom_there(nullptr, 0, 0, bytes.data(), ~std::size_t{0}), -ENOSYS);
  }
}

TEST(Vdso, IsKnownByItsBuild) {
  const std::string build = build_of(own());
  EXPECT_GE(build.size(), 16U);
  Copy copy;
  ASSERT_EQ(build_of(copy.content()), build);
  // What the kernel has fitted to the processor does not make it another one.
  const Function some = functions(own()).value().front();
  copy.content()[some.offset] ^= std::byte{0xff};
  EXPECT_EQ(build_of(copy.content()), build);
  const auto at =
      std::search(copy.content().begin(), copy.content().end(), reinterpret_cast<const std::byte*>(build.data()),
                  reinterpret_cast<const std::byte*>(build.data() + build.size()));
  ASSERT_NE(at, copy.content().end());
  *at ^= std::byte{1};
  EXPECT_NE(build_of(copy.content()), build);
}

TEST(Vdso, ThatIsDamagedIsRefused) {
  std::vector<std::byte> zeros(8192);
  EXPECT_EQ(lead_out(zeros, own(), address_of_own()).error().kind, Kind::corrupt);
  for (std::size_t size = 0; size < own().size(); size += 64) {
    Copy copy;
    const auto led = lead_out(copy.content().first(size), own(), address_of_own());
    if (!led.has_value()) {
      EXPECT_EQ(led.error().kind, Kind::corrupt) << size;
    }
  }
  // No number in it is trusted.
  for (std::size_t at = 0; at < 4096; ++at) {
    Copy copy;
    copy.content()[at] = std::byte{0xff};
    static_cast<void>(lead_out(copy.content(), own(), address_of_own()));
  }
}

}  // namespace
}  // namespace ferry::state::vdso
