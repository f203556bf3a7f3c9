#include "engine/pre_dump.h"

#include <fcntl.h>

#include <chrono>
#include <ctime>

#include "base/log.h"
#include "engine/limits.h"
#include "engine/list_tree.h"
#include "engine/page_server_keeper.h"
#include "engine/set_id.h"
#include "engine/succession.h"
#include "image/dedup.h"
#include "image/page_store.h"
#include "image/proto/inventory.pb.h"
#include "image/set.h"
#include "state/memory/gather.h"
#include "state/memory/pages.h"
#include "sys/file.h"
#include "sys/proc.h"
#include "tracee/stop_tree.h"

namespace ferry::engine {
namespace {

using Clock = std::chrono::steady_clock;
using image::Name;
using image::Type;
using state::memory::Gather;
using state::memory::Increment;
using state::memory::Tracker;

std::uint64_t micros(Clock::duration d) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}

class PreDump {
 public:
  explicit PreDump(const DumpOptions& options) : options_(options) {}

  Result<DumpReport> run() {
    FERRY_CHECK(raise_descriptor_limit());
    FERRY_TRY(const auto freezer, tracee::Freezer::open(options_.freeze_cgroup));
    if (freezer.was_frozen()) {
      return fail(Kind::unsupported,
                  "cgroup {} is frozen: nothing is written there that a pre-dump could get ahead of; "
                  "dump it, or let it run first",
                  options_.freeze_cgroup);
    }
    if (options_.page_server.has_value()) {
      FERRY_TRY(page_server_, PageServerKeeper::open(*options_.page_server, options_.images_dir));
    }
    FERRY_CHECK(succession_.begin(options_, true));
    FERRY_TRY(const std::string id, random_set_id());
    add_inventory(id);
    const auto tree = list_tree(options_.pid);
    // Who of several was forked from whom is not looked up here: nothing waits for this.
    reading_ = tree.size() > 1 ? state::memory::Reading::sharing : state::memory::Reading::fast;
    for (const HostPid pid : tree) {
      auto saved = save(pid).during("pre-dump of pid {}", pid);
      if (saved.has_value()) {
        continue;
      }
      if (pid == options_.pid) {
        return tl::unexpected<Error>(std::move(saved).error());
      }
      // A set without it is as good, only that the next one is larger.
      log::warning("{}", saved.error().message());
      succession_.increment()->forget(pid);
    }
    const auto begin = Clock::now();
    FERRY_CHECK(page_server_ != nullptr ? page_server_->images(set_) : image::save(set_, options_.images_dir));
    report_.memwrite_us = micros(Clock::now() - begin);
    if (auto handed = succession_.hand_on(id); !handed.has_value()) {
      log::warning("the next set has all memory again: {}", handed.error().message());
    }
    if (options_.auto_dedup) {
      if (const auto punched = image::punch_parents(options_.images_dir); !punched.has_value()) {
        log::warning("the parent sets keep their room: {}", punched.error().message());
      }
    }
    return report_;
  }

 private:
  void add_inventory(const std::string& id) {
    pb::InventoryEntry inventory;
    inventory.set_img_version(0);  // of a pre-dump, not to be restored
    timespec now{};
    ::clock_gettime(CLOCK_BOOTTIME, &now);
    inventory.set_dump_uptime(static_cast<std::uint64_t>(now.tv_sec) * 1'000'000 +
                              static_cast<std::uint64_t>(now.tv_nsec) / 1000);
    inventory.set_pre_dump_mode(2);  // read
    inventory.set_dump_criu_run_id(id);
    inventory.set_ferry_id(id);
    inventory.set_ferry_version(FERRY_VERSION);
    set_.add(Name{Type::inventory, 0}, std::move(inventory));
  }

  Result<void> save(HostPid pid) {
    FERRY_TRY(const UniqueFd proc, sys::open_proc(pid));
    FERRY_TRY(const auto text, sys::read_file_at(proc.get(), "status"));
    FERRY_TRY(const auto status, sys::parse_status(text));
    FERRY_TRY(const auto stat_text, sys::read_file_at(proc.get(), "stat"));
    FERRY_TRY(const auto stat, sys::parse_stat(stat_text));
    if (stat.state == 'Z') {
      return {};
    }
    const NsPid name(status.ns_tgid.empty() ? pid.value : status.ns_tgid.back());
    FERRY_CHECK(ensure_tracker(pid, name));
    const auto begin = Clock::now();
    FERRY_TRY(auto parts, succession_.increment()->divide(pid, nullptr));
    if (parts.renewed) {
      succession_.increment()->forget(pid);
      FERRY_CHECK(ensure_tracker(pid, name));
      FERRY_TRY(parts, succession_.increment()->divide(pid, nullptr));
    }
    FERRY_TRY(const UniqueFd memory, sys::open_at(proc.get(), "mem", O_RDONLY));
    FERRY_TRY(const auto writer, open_pages(Name{Type::pagemap, static_cast<std::uint64_t>(name.value)}));
    Gather gather(pid, memory.get(), Gather::Source::running, reading_, *writer);
    FERRY_CHECK(add(gather, parts));
    FERRY_CHECK(gather.finish());
    FERRY_CHECK(writer->finish());
    succession_.increment()->distrust(pid, gather.lost());
    report_.memdump_us += micros(Clock::now() - begin);
    log::info("pid {}: {} pages saved, {} are in the parent set", pid, state::memory::count_pages(parts.data),
              state::memory::count_pages(parts.in_parent));
    return {};
  }

  Result<std::unique_ptr<image::PageSink>> open_pages(Name pagemap) {
    if (page_server_ != nullptr) {
      return page_server_->pages(set_, pagemap);
    }
    FERRY_TRY(auto writer, image::PageWriter::create(set_, pagemap, options_.images_dir, ++last_pages_id_));
    return std::make_unique<image::PageWriter>(std::move(writer));
  }

  Result<void> ensure_tracker(HostPid pid, NsPid name) {
    if (succession_.increment()->tracks(pid)) {
      return {};
    }
    ways_.learn(pid);
    const auto begin = Clock::now();
    FERRY_TRY(auto tracker, Tracker::install(pid, ways_));
    report_.frozen_us += micros(Clock::now() - begin);
    succession_.track(std::move(tracker), name);
    return {};
  }

  // Both lists are sorted, and the pagemap has to be.
  Result<void> add(Gather& gather, const Increment::Parts& parts) {
    auto data = parts.data.begin();
    auto left = parts.in_parent.begin();
    while (data != parts.data.end() || left != parts.in_parent.end()) {
      if (left == parts.in_parent.end() || (data != parts.data.end() && data->start < left->start)) {
        FERRY_CHECK(gather.add(data->start, data->end, image::kPresent));
        ++data;
      } else {
        FERRY_CHECK(gather.add(left->start, left->end, image::kInParent));
        ++left;
      }
    }
    report_.pages_written += state::memory::count_pages(parts.data);
    report_.pages_skipped_parent += state::memory::count_pages(parts.in_parent);
    report_.pages_scanned += state::memory::count_pages(parts.data) + state::memory::count_pages(parts.in_parent);
    return {};
  }

  const DumpOptions& options_;
  Succession succession_;
  image::Set set_;
  std::unique_ptr<PageServerKeeper> page_server_;
  DumpReport report_;
  tracee::WaysBack ways_;
  std::uint32_t last_pages_id_ = 0;
  state::memory::Reading reading_{};
};

}  // namespace

Result<DumpReport> pre_dump(const DumpOptions& options) { return PreDump(options).run(); }

}  // namespace ferry::engine
