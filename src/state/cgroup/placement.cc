#include "state/cgroup/placement.h"

#include <algorithm>
#include <iterator>

#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::state::cgroup {
namespace {

// Up to here a file for each thread is as fast as a list for each hierarchy.
constexpr std::size_t kFew = 16;

}  // namespace

std::vector<pid_t> parse_members(std::string_view text) {
  std::vector<pid_t> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    if (const auto number = sys::parse_number(text.substr(0, end))) {
      out.push_back(static_cast<pid_t>(*number));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  std::sort(out.begin(), out.end());
  return out;
}

Placement::Placement(DumpHost& host, const std::vector<std::unique_ptr<DumpTask>>& tasks) : host_(host) {
  std::size_t threads = 0;
  for (const auto& task : tasks) {
    threads += static_cast<std::size_t>(
        std::count_if(task->threads.begin(), task->threads.end(), [&](const DumpThread& t) { return task->asks(t); }));
  }
  many_ = threads > kFew;
}

// Nullopt where a list cannot be had: cgroup.threads of a group that is no valid domain (cgroup-v2.rst).
std::optional<std::vector<pid_t>> Placement::list(const Membership& membership) {
  std::optional<std::vector<pid_t>> out;
  for (const auto& [name, path] : membership) {
    const auto hierarchy = host_.hierarchy(name);
    if (!hierarchy.has_value()) {
      return std::nullopt;
    }
    const auto text = (*hierarchy)->thread_list(path);
    if (!text.has_value()) {
      return std::nullopt;
    }
    std::vector<pid_t> here = parse_members(*text);
    if (out.has_value()) {
      std::vector<pid_t> both;
      std::set_intersection(out->begin(), out->end(), here.begin(), here.end(), std::back_inserter(both));
      here = std::move(both);
    }
    out = std::move(here);
  }
  return out;
}

Result<const Membership*> Placement::of(const DumpTask& task, const DumpThread& thread) {
  for (const Place& place : places_) {
    if (place.threads.has_value() &&
        std::binary_search(place.threads->begin(), place.threads->end(), thread.tid.value)) {
      return &place.membership;
    }
  }
  FERRY_TRY(const std::string text, sys::read_file_at(task.proc.get(), fmt::format("task/{}/cgroup", thread.tid)));
  FERRY_TRY(Membership membership, parse_membership(text));
  for (Place& place : places_) {
    if (place.membership == membership) {
      return &place.membership;
    }
  }
  Place place{std::move(membership), std::nullopt};
  if (many_) {
    place.threads = list(place.membership);
  }
  places_.push_back(std::move(place));
  return &places_.back().membership;
}

}  // namespace ferry::state::cgroup
