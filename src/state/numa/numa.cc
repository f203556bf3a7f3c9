#include "state/numa/numa.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace ferry::state::numa {
namespace {

constexpr std::size_t kNodes = 1024;  // MAX_NUMNODES, at most, on x86-64
constexpr std::size_t kWord = sizeof(std::uint64_t);
// The kernel takes one off the number of nodes that it is given (get_nodes in mm/mempolicy.c).
constexpr std::size_t count_of(std::size_t mask_bytes) { return mask_bytes * 8 + 1; }

struct Question {
  tracee::Value result;
  tracee::Data mode, nodes;
};

Question put(tracee::Batch& batch, std::uint64_t address, unsigned flags) {
  const auto mode = batch.room(sizeof(int));
  const auto nodes = batch.room(kNodes / 8);
  return {batch.may(SYS_get_mempolicy, {mode, nodes, count_of(nodes.size), address, flags}), mode, nodes};
}

// A kernel without NUMA has no such call, and the kernel's own mappings no policy: then there is none to keep.
std::optional<pb::FerryMemoryPolicy> policy_of(const tracee::Replies& replies, const Question& question) {
  const int mode = replies[question.result] == 0 ? replies.object<int>(question.mode) : MPOL_DEFAULT;
  if (mode == MPOL_DEFAULT) {
    return std::nullopt;
  }
  auto nodes = replies.bytes(question.nodes);
  while (!nodes.empty() &&
         std::ranges::all_of(nodes.last(kWord), [](std::byte byte) { return byte == std::byte{0}; })) {
    nodes = nodes.first(nodes.size() - kWord);
  }
  pb::FerryMemoryPolicy out;
  out.set_mode(static_cast<std::uint32_t>(mode));
  out.set_nodes(nodes.data(), nodes.size());
  return out;
}

// Nodes that a process of this host may have memory of, one bit each; none on a kernel without NUMA.
std::vector<std::byte> nodes_with_memory() {
  std::vector<std::byte> out(kNodes / 8);
  if (::syscall(SYS_get_mempolicy, nullptr, out.data(), count_of(out.size()), nullptr, MPOL_F_MEMS_ALLOWED) != 0) {
    std::ranges::fill(out, std::byte{0});
  }
  return out;
}

// Whether it is to be set, which is said to the user if not.
Result<bool> check(const pb::FerryMemoryPolicy& policy, const std::string& subject) {
  if (policy.nodes().size() > kNodes / 8 || policy.nodes().size() % kWord != 0) {
    return fail(Kind::corrupt, "{} has a memory policy with {} bytes of nodes", subject, policy.nodes().size());
  }
  if (is_possible(policy, nodes_with_memory())) {
    return true;
  }
  log::warning("{}: this host has none of the memory nodes that its policy names, which is left out", subject);
  return false;
}

}  // namespace

bool is_possible(const pb::FerryMemoryPolicy& policy, std::span<const std::byte> nodes) {
  // Relative nodes are numbered anew among those that there are, and no nodes at all are those that may be used.
  if ((policy.mode() & MPOL_F_RELATIVE_NODES) != 0 || policy.nodes().empty()) {
    return true;
  }
  for (std::size_t i = 0; i < std::min(nodes.size(), policy.nodes().size()); ++i) {
    if ((static_cast<std::byte>(policy.nodes()[i]) & nodes[i]) != std::byte{0}) {
      return true;
    }
  }
  return false;
}

Answers ask(DumpTask& task, std::size_t first, tracee::Batch& batch) {
  std::vector<std::pair<std::size_t, Question>> questions;  // number of the mapping
  for (std::size_t i = first; i < std::min(first + kAtOnce, task.mappings.size()); ++i) {
    if (task.mappings[i].may_have_policy) {
      questions.emplace_back(i, put(batch, task.mappings[i].start, MPOL_F_ADDR));
    }
  }
  return [&task, questions = std::move(questions)](const tracee::Replies& replies) -> Result<void> {
    for (const auto& [number, question] : questions) {
      if (auto policy = policy_of(replies, question); policy.has_value()) {
        auto& range = *task.mm->add_ferry_policies();
        range.set_start(task.mappings[number].start);
        range.set_end(task.mappings[number].end);
        *range.mutable_policy() = std::move(*policy);
      }
    }
    return {};
  };
}

Answers ask_thread(DumpThread& thread, tracee::Batch& batch) {
  const Question question = put(batch, 0, 0);
  return [&thread, question](const tracee::Replies& replies) -> Result<void> {
    if (auto policy = policy_of(replies, question); policy.has_value()) {
      *thread.core->mutable_thread_core()->mutable_ferry_memory_policy() = std::move(*policy);
    }
    return {};
  };
}

Result<void> restore(const RestoreTask& task, tracee::Batch& batch) {
  for (const pb::FerryRangePolicy& range : task.mm->ferry_policies()) {
    const std::string subject = fmt::format("mapping {:x}-{:x} of pid {}", range.start(), range.end(), task.ns_pid());
    if (range.start() >= range.end()) {
      return fail(Kind::corrupt, "{} has a memory policy and no memory", subject);
    }
    FERRY_TRY(const bool possible, check(range.policy(), subject));
    if (possible) {
      const auto nodes = batch.bytes(std::as_bytes(std::span(range.policy().nodes())));
      // The cpuset of the tree may leave none of the nodes (EINVAL): that is this host's decision.
      batch.may(SYS_mbind, {range.start(), range.end() - range.start(), range.policy().mode(), nodes,
                            count_of(range.policy().nodes().size()), 0});
    }
  }
  return {};
}

Result<void> restore_thread(const RestoreTask& task, const RestoreThread& thread, tracee::Batch& batch) {
  const auto& core = thread.core->thread_core();
  if (!core.has_ferry_memory_policy()) {
    return {};
  }
  const auto& policy = core.ferry_memory_policy();
  FERRY_TRY(const bool possible, check(policy, fmt::format("thread {} of pid {}", thread.ns_tid, task.ns_pid())));
  if (possible) {
    const auto nodes = batch.bytes(std::as_bytes(std::span(policy.nodes())));
    batch.may(SYS_set_mempolicy, {policy.mode(), nodes, count_of(policy.nodes().size())});
  }
  return {};
}

}  // namespace ferry::state::numa
