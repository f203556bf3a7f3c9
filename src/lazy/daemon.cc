#include "lazy/daemon.h"

#include <signal.h>
#include <unistd.h>

#include <map>
#include <memory>

#include "base/log.h"
#include "image/page_store.h"
#include "image/proto/mm.pb.h"
#include "image/set.h"
#include "lazy/file_source.h"
#include "lazy/hand_over.h"
#include "lazy/remote_source.h"
#include "state/memory/lazy.h"
#include "sys/file.h"

namespace ferry::lazy {
namespace {

using image::Name;
using image::Type;

// The pages that a restore of the set leaves to us.
class Plan {
 public:
  static Result<std::unique_ptr<Plan>> make(int images_dir) {
    auto out = std::make_unique<Plan>();
    FERRY_TRY(out->set_, image::load(images_dir));
    FERRY_TRY(auto store, image::PageStore::open(out->set_, images_dir));
    out->store_.emplace(std::move(store));
    for (const Name mm : out->set_.names(Type::mm)) {
      const NsPid pid(static_cast<pid_t>(mm.id));
      FERRY_TRY(const auto* entry, out->set_.one<pb::MmEntry>(mm));
      FERRY_TRY(const auto extents, out->store_->extents({Type::pagemap, mm.id}));
      auto later = state::memory::divide(*entry, extents).later;
      FERRY_CHECK(out->files_.add(pid, later).during("pages of process {}", pid));
      out->later_.emplace(pid, std::move(later));
    }
    return out;
  }
  [[nodiscard]] bool needs_page_server() const {
    for (const auto& [pid, later] : later_) {
      for (const image::Extent& e : later) {
        if (e.fd < 0) {
          return true;
        }
      }
    }
    return false;
  }
  Result<Missing> missing_of(NsPid pid) const {
    const auto later = later_.find(pid);
    if (later == later_.end()) {
      return fail(Kind::corrupt, "the restore hands over process {}, which is not in the images", pid);
    }
    Missing out;
    for (const image::Extent& e : later->second) {
      out.add(e.vaddr, e.vaddr + e.page_count * image::kPageSize);
    }
    return out;
  }
  FileSource& files() { return files_; }

 private:
  image::Set set_;
  std::optional<image::PageStore> store_;
  FileSource files_;
  std::map<NsPid, std::vector<image::Extent>> later_;
};

Result<UniqueFd> accept_restore(int listener) { return accept_from(listener).during("waiting for a restore"); }

// A signal that would end us would give zeros to a program for what is still missing.
void outlive_signals() {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE}) {
    ::signal(signal, SIG_IGN);
  }
  (void)sys::write_file("/proc/self/oom_score_adj", "-1000");  // needs CAP_SYS_RESOURCE, which not everybody has
}

}  // namespace

Result<FaultReport> serve_restore(const DaemonOptions& options) {
  FERRY_TRY(const auto plan, Plan::make(options.images_dir));
  FaultServer server;
  server.add_source(plan->files());
  std::unique_ptr<RemoteSource> remote;
  if (options.page_server.has_value()) {
    FERRY_TRY(remote, RemoteSource::connect(*options.page_server));
    server.add_source(*remote);
  } else if (plan->needs_page_server()) {
    return fail(Kind::invalid,
                "pages of this set are with the tree that was dumped: --page-server with the --address and "
                "--port of criu dump --lazy-pages");
  }
  FERRY_TRY(const UniqueFd listener, listen_for_restore(options.work_dir, options.socket));
  if (options.ready) {
    FERRY_CHECK(options.ready());
  }
  auto accepted = accept_restore(listener.get());
  (void)::unlinkat(options.work_dir, options.socket.c_str(), 0);
  FERRY_TRY(const UniqueFd restore, std::move(accepted));
  outlive_signals();
  bool ended = false;
  const auto more = [&]() -> Result<bool> {
    FERRY_TRY(auto handed, receive_handed(restore.get()));
    switch (handed.what) {
      case Handed::What::process: {
        FERRY_TRY(auto missing, plan->missing_of(handed.pid));
        log::info("process {} waits for {} KiB", handed.pid, missing.bytes() >> 10);
        FERRY_CHECK(server.add_process(handed.pid, std::move(handed.uffd), std::move(missing)));
        return true;
      }
      case Handed::What::idle:
        return true;
      case Handed::What::end:
        ended = true;
        log::info("the tree runs, {} KiB are missing", server.missing_bytes() >> 10);
        return false;
      case Handed::What::hung_up:
        return false;
    }
    return false;
  };
  FERRY_CHECK(server.watch(restore.get(), more));
  if (const auto served = server.run(); !served.has_value()) {
    log::error(served.error());
    log::warning("this process stays, so that nobody gets zeros for pages that are missing: kill the tree, then it");
    for (;;) {
      ::pause();
    }
  }
  if (!ended) {
    return fail(Kind::gone, "the restore ended before its tree ran");
  }
  if (remote != nullptr) {
    if (const auto told = remote->finish(); !told.has_value()) {
      log::warning("everything is here, but the page server could not be told: {}", told.error().message());
    }
  }
  return server.report();
}

}  // namespace ferry::lazy
