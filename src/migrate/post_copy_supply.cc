#include "migrate/post_copy_supply.h"

#include <fcntl.h>

#include <array>
#include <chrono>

#include "image/page_store.h"
#include "migrate/freezer.h"
#include "migrate/message.pb.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "sys/proc.h"

namespace ferry::migrate {
namespace {

using image::kPageSize;

// The destination says something every three seconds at least.
constexpr std::chrono::seconds kSilence(10);

Result<NsPid> innermost_number(HostPid pid) {
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/status", pid)));
  FERRY_TRY(const auto status, sys::parse_status(text));
  if (status.ns_tgid.empty()) {
    return fail(Kind::gone, "process {} has ended", pid);
  }
  return NsPid(status.ns_tgid.back());
}

}  // namespace

Result<std::unique_ptr<PostCopySupply>> PostCopySupply::of_frozen(const std::string& cgroup) {
  auto out = std::make_unique<PostCopySupply>(false);
  FERRY_TRY(const auto pids, members(cgroup));
  for (const HostPid pid : pids) {
    auto memory = sys::open(fmt::format("/proc/{}/mem", pid), O_RDONLY);
    const auto name = innermost_number(pid);
    if (memory.has_value() && name.has_value()) {
      out->offer(*name, pid, std::make_shared<const UniqueFd>(std::move(*memory)));
    }
  }
  if (out->processes_.empty()) {
    return fail(Kind::gone, "no process is left in {}, and with them the memory that has not been fetched yet", cgroup);
  }
  return out;
}

void PostCopySupply::offer(NsPid name, HostPid pid, std::shared_ptr<const UniqueFd> memory) {
  const std::lock_guard<std::mutex> held(lock_);
  processes_.insert_or_assign(name, Process{pid, std::move(memory)});
}

Result<void> PostCopySupply::serve(Link& link) const {
  auto obeyed = obey(link);
  if (!obeyed && obeyed.error().kind != Kind::gone && obeyed.error().kind != Kind::invalid) {
    wire::Message reason;
    reason.mutable_failure()->set_reason(obeyed.error().message());
    static_cast<void>(link.send(reason));
  }
  return obeyed;
}

Result<void> PostCopySupply::obey(Link& link) const {
  PageBatch batch;
  for (;;) {
    wire::Message message;
    FERRY_CHECK(link.receive(message, kSilence));
    if (message.has_all_here()) {
      return {};
    }
    if (!message.has_want()) {
      return fail(Kind::corrupt, "{} sent a message that does not belong where pages are fetched", link.peer());
    }
    const wire::Want& want = message.want();
    if (want.bytes() == 0) {
      continue;
    }
    FERRY_CHECK(answer(NsPid(static_cast<pid_t>(want.pid())), want.vaddr(), want.bytes(), link, batch));
  }
}

Result<void> PostCopySupply::answer(NsPid name, std::uint64_t vaddr, std::uint64_t bytes, Link& link,
                                    PageBatch& batch) const {
  Process process;
  {
    const std::lock_guard<std::mutex> held(lock_);
    const auto found = processes_.find(name);
    if (found == processes_.end()) {
      return fail(Kind::corrupt, "{} asks for memory of process {}, which has none here", link.peer(), name);
    }
    process = found->second;
  }
  if (vaddr % kPageSize != 0 || bytes % kPageSize != 0 || bytes > kBatchContent || vaddr > UINT64_MAX - bytes) {
    return fail(Kind::corrupt, "{} asks for {} bytes at {:#x}, which are no pages", link.peer(), bytes, vaddr);
  }
  batch.begin({image::Type::pagemap, static_cast<std::uint64_t>(name.value)});
  const std::array range{sys::PageRange{vaddr, vaddr + bytes}};
  const std::uint64_t here = sys::read_ranges(process.pid, range, batch.tail().first(bytes)) / kPageSize * kPageSize;
  batch.keep(vaddr, here);
  // The rest a page at a time, through /proc/PID/mem where protection forbids it otherwise.
  for (std::uint64_t at = vaddr + here; at < vaddr + bytes; at += kPageSize) {
    FERRY_CHECK(sys::read_memory(process.pid, at, batch.tail().first(kPageSize), process.memory->get())
                    .during("reading page {:#x} of process {}, which {} waits for", at, name, link.peer()));
    batch.keep(at, kPageSize);
  }
  FERRY_CHECK(batch.send(link, pack_));
  sent_bytes_ += bytes;
  return {};
}

}  // namespace ferry::migrate
