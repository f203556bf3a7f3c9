#include "programs/criu/page_commands.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/log.h"
#include "engine/succession.h"
#include "image/dedup.h"
#include "lazy/daemon.h"
#include "lazy/endpoint.h"
#include "lazy/set_receiver.h"
#include "programs/criu/server.h"

namespace ferry::criu {
namespace {

Result<void> receive_set(const UniqueFd& socket, const Settings& settings, const Workplace& place) {
  lazy::SetReceiver receiver(place.images());
  FERRY_CHECK(receiver.serve(socket.get()).during("receiving pages"));
  log::info("{} pages were received", receiver.pages());
  if (settings.dump.auto_dedup) {
    FERRY_TRY(const std::uint64_t pages, image::punch_received(place.images()));
    log::info("{} pages were taken out of the parent set", pages);
  }
  return {};
}

Result<void> link_parent(const Settings& settings, const Workplace& place) {
  return settings.dump.parent_images.empty() ? Result<void>()
                                             : engine::link_parent(place.images(), settings.dump.parent_images);
}

}  // namespace

Result<void> run_page_server(const Settings& settings, const Workplace& place) {
  FERRY_CHECK(link_parent(settings, place));
  const auto where = page_server_place(settings);
  const bool given = where.socket >= 0;
  FERRY_TRY(UniqueFd socket, given ? lazy::take_client(where) : lazy::listen_at(where));
  Readiness ready;
  if (settings.restore.detached) {
    FERRY_TRY(const bool in_background, ready.go_on_in_background());
    if (!in_background) {
      return {};
    }
  }
  FERRY_CHECK(ready.tell(settings, place));
  if (!given) {
    FERRY_TRY(socket, lazy::accept_from(socket.get(), where.tls));
  }
  return receive_set(socket, settings, place);
}

Result<void> run_lazy_pages(const Settings& settings, const Workplace& place) {
  lazy::DaemonOptions options;
  options.images_dir = place.images();
  options.work_dir = place.work();
  if (settings.page_server) {
    options.page_server = page_server_place(settings);
  }
  Readiness ready;
  if (settings.restore.detached) {
    FERRY_TRY(const bool in_background, ready.go_on_in_background());
    if (!in_background) {
      return {};
    }
  }
  options.ready = [&] { return ready.tell(settings, place); };
  FERRY_TRY(const auto report, lazy::serve_restore(options));
  log::info("all memory is there: {} pages, {} faults waited for some of them (median {} us, 99 of 100 within {} us)",
            report.pages, report.faults, report.median_us, report.p99_us);
  return {};
}

Result<ServerStarted> start_page_server(const Settings& settings, const Workplace& place, bool detached) {
  FERRY_CHECK(link_parent(settings, place));
  const auto where = page_server_place(settings);
  const bool given = where.socket >= 0;
  FERRY_TRY(UniqueFd socket, given ? lazy::take_client(where) : lazy::listen_at(where));
  ServerStarted out;
  if (!given) {
    FERRY_TRY(out.port, lazy::port_of(socket.get()));
  }
  const pid_t child = ::fork();
  if (child < 0) {
    return sys_fail("fork");
  }
  if (child == 0) {
    if (detached) {
      ::setsid();
      if (::fork() != 0) {  // whoever is our parent does not have to wait for the server
        ::_exit(0);
      }
    }
    auto connection = given ? Result<UniqueFd>(std::move(socket)) : lazy::accept_from(socket.get(), where.tls);
    const Result<void> received = connection.has_value() ? receive_set(*connection, settings, place)
                                                         : Result<void>(tl::unexpect, connection.error());
    if (!received.has_value()) {
      log::error(received.error());
    }
    ::_exit(received.has_value() ? 0 : 1);
  }
  if (detached) {
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
  } else {
    out.pid = child;
  }
  return out;
}

}  // namespace ferry::criu
