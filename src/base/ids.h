// Numbers that must not be mixed up, as types that cannot be.
#pragma once

#include <fmt/core.h>
#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <functional>

namespace ferry {

template <class Tag, class Rep>
struct Id {
  Rep value{};
  constexpr Id() = default;
  constexpr explicit Id(Rep v) : value(v) {}
  constexpr auto operator<=>(const Id&) const = default;
};

// A pid or tid as ferry's own pid namespace sees it: the number to give to ptrace, /proc and kill.
using HostPid = Id<struct HostPidTag, pid_t>;
// The same task's number in the innermost pid namespace it lives in: what images hold.
using NsPid = Id<struct NsPidTag, pid_t>;
// A descriptor number in another process's table.
using RemoteFd = Id<struct RemoteFdTag, int>;

}  // namespace ferry

template <class Tag, class Rep>
struct fmt::formatter<ferry::Id<Tag, Rep>> {
  constexpr auto parse(format_parse_context& ctx) { return ctx.begin(); }
  template <class Ctx>
  auto format(const ferry::Id<Tag, Rep>& id, Ctx& ctx) const {
    return fmt::format_to(ctx.out(), "{}", id.value);
  }
};

template <class Tag, class Rep>
struct std::hash<ferry::Id<Tag, Rep>> {
  std::size_t operator()(const ferry::Id<Tag, Rep>& id) const noexcept { return std::hash<Rep>{}(id.value); }
};
