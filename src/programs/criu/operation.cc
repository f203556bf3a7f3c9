#include "programs/criu/operation.h"

#include <unistd.h>

#include <limits>

#include "base/log.h"
#include "image/proto/stats.pb.h"
#include "image/stats.h"

namespace ferry::criu {
namespace {

// stats_entry has 32 bits for times; a dump of more than 71 minutes reads as 71 minutes.
std::uint32_t narrow_us(std::uint64_t us) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(us, std::numeric_limits<std::uint32_t>::max()));
}

Result<void> save(const engine::DumpReport& report, int work_dir) {
  pb::StatsEntry stats;
  pb::DumpStatsEntry& dump = *stats.mutable_dump();
  dump.set_freezing_time(narrow_us(report.freezing_us));
  dump.set_frozen_time(narrow_us(report.frozen_us));
  dump.set_memdump_time(narrow_us(report.memdump_us));
  dump.set_memwrite_time(narrow_us(report.memwrite_us));
  dump.set_pages_scanned(report.pages_scanned);
  dump.set_pages_skipped_parent(report.pages_skipped_parent);
  dump.set_pages_written(report.pages_written);
  dump.set_pages_lazy(report.pages_lazy);
  return image::save_stats(stats, work_dir, "stats-dump");
}

Result<void> save(const engine::RestoreReport& report, int work_dir) {
  pb::StatsEntry stats;
  pb::RestoreStatsEntry& restore = *stats.mutable_restore();
  restore.set_pages_compared(0);
  restore.set_pages_skipped_cow(0);
  restore.set_forking_time(narrow_us(report.forking_us));
  restore.set_restore_time(narrow_us(report.restore_us));
  restore.set_pages_restored(report.pages_restored);
  return image::save_stats(stats, work_dir, "stats-restore");
}

// By now the operation has succeeded and cannot be undone; statistics that could not be written (a
// full disk) are worth a warning.
void warn_if_failed(const Result<void>& saved, std::string_view file) {
  if (!saved.has_value()) {
    log::warning("{} was not written: {}", file, saved.error().message());
  }
}

std::string text_of(const engine::DumpReport& report) {
  return fmt::format(
      "Freezing time: {} us\nFrozen time: {} us\nMemory dump time: {} us\nMemory write time: {} us\n"
      "Memory pages scanned: {}\nMemory pages skipped from parent: {}\nMemory pages written: {}\n",
      report.freezing_us, report.frozen_us, report.memdump_us, report.memwrite_us, report.pages_scanned,
      report.pages_skipped_parent, report.pages_written);
}

std::string text_of(const engine::RestoreReport& report) {
  return fmt::format("Forking time: {} us\nRestore time: {} us\nPages restored: {}\n", report.forking_us,
                     report.restore_us, report.pages_restored);
}

}  // namespace

int become(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const std::string& word : command) {
    argv.push_back(const_cast<char*>(word.c_str()));
  }
  argv.push_back(nullptr);
  ::execvp(argv[0], argv.data());
  const Result<void> failed = sys_fail(fmt::format("execvp({})", command.front()));
  log::error(failed.error());
  return 1;
}

DumpOutcome run_dump(const Engine& engine, const Settings& settings, const Workplace& place, engine::Listener* caller) {
  engine::DumpOptions options = dump_options(settings);
  options.images_dir = place.images();
  options.work_dir = place.work();
  ActionScripts scripts(settings.action_scripts, place.images(), options.pid);
  Listeners all;
  if (caller != nullptr) {
    all.add(caller);
  }
  all.add(&scripts);
  StatusFd status(settings.status_fd);
  all.add(&status);
  const auto report = engine.checkpoint(options, all);
  if (!report.has_value()) {
    log::error(report.error());
    log::write(log::Level::error, fmt::format("Error (criu): Dumping FAILED, process {} was not saved", options.pid));
    return {tl::unexpected<Error>(report.error()), scripts.failed_status(), {}};
  }
  warn_if_failed(save(*report, place.work()), "stats-dump");
  log::info("Dumping finished successfully: frozen for {} us, {} pages written", report->frozen_us,
            report->pages_written);
  return {{}, 0, text_of(*report)};
}

DumpOutcome run_pre_dump(const Engine& engine, const Settings& settings, const Workplace& place) {
  engine::DumpOptions options = dump_options(settings);
  options.images_dir = place.images();
  options.work_dir = place.work();
  const auto report = engine.pre_dump(options);
  if (!report.has_value()) {
    log::error(report.error());
    log::write(log::Level::error,
               fmt::format("Error (criu): Pre-dumping FAILED, process {} was not saved", options.pid));
    return {tl::unexpected<Error>(report.error()), 0, {}};
  }
  warn_if_failed(save(*report, place.work()), "stats-dump");
  log::info("Pre-dumping finished successfully: {} pages written, {} are in the parent set", report->pages_written,
            report->pages_skipped_parent);
  return {{}, 0, text_of(*report)};
}

RestoreOutcome run_restore(const Engine& engine, const Settings& settings, const Workplace& place,
                           engine::Listener* caller) {
  engine::RestoreOptions options = restore_options(settings);
  options.images_dir = place.images();
  options.work_dir = place.work();
  ActionScripts scripts(settings.action_scripts, place.images(), HostPid{});
  PidFile pid_file(settings.pidfile, place.work());
  Listeners all;
  if (caller != nullptr) {
    all.add(caller);
  }
  all.add(&scripts);
  all.add(&pid_file);
  const auto report = engine.restore(options, all);
  if (!report.has_value()) {
    log::error(report.error());
    log::write(log::Level::error, "Error (criu): Restoring FAILED");
    return {tl::unexpected<Error>(report.error()), all.root(), {}};
  }
  pid_file.keep();
  warn_if_failed(save(*report, place.work()), "stats-restore");
  log::info("Restore finished successfully: root task {}, {} us", report->root, report->restore_us);
  return {{}, report->root.value, text_of(*report)};
}

}  // namespace ferry::criu
