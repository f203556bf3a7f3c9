#include "programs/criu/swrk.h"

#include <fcntl.h>
#include <sys/wait.h>

#include <cerrno>
#include <optional>

#include "base/log.h"
#include "engine/check.h"
#include "programs/criu/config_file.h"
#include "programs/criu/option_table.h"
#include "programs/criu/page_commands.h"
#include "programs/criu/rpc_channel.h"
#include "programs/criu/rpc_options.h"
#include "rpc.pb.h"
#include "state/cpu/cpuinfo.h"
#include "sys/file.h"

namespace ferry::criu {
namespace {

constexpr int kProtocolFailure = 255;

rpc::criu_resp answer(rpc::criu_req_type type, bool success) {
  rpc::criu_resp response;
  response.set_type(type);
  response.set_success(success);
  return response;
}

// A request that went wrong.  The codes are those that clients know: no such process, pid in use, no
// such ability; more than that is in the text, which ends with a newline as in CRIU.
rpc::criu_resp answer(rpc::criu_req_type type, const Error& error) {
  rpc::criu_resp response = answer(type, false);
  if (error.os_errno == ESRCH || error.os_errno == EEXIST || error.os_errno == ENOTSUP) {
    response.set_cr_errno(error.os_errno);
  }
  response.set_cr_errmsg(fmt::format("Error (criu): {}\n", error.message()));
  return response;
}

// A request whose options make no sense, or ask for what ferry does not do.
rpc::criu_resp bad_options(rpc::criu_req_type type, const Error& error) {
  rpc::criu_resp response = answer(type, error);
  response.set_cr_errno(EBADRQC);
  return response;
}

// The requests after which the connection may stay open.
bool may_stay_open(rpc::criu_req_type type) {
  return type == rpc::PAGE_SERVER || type == rpc::PAGE_SERVER_CHLD || type == rpc::CPUINFO_DUMP ||
         type == rpc::CPUINFO_CHECK || type == rpc::FEATURE_CHECK || type == rpc::VERSION;
}

Result<void> names_process(const rpc::criu_req& request) {
  if (!request.opts().has_pid()) {
    return tl::unexpected<Error>(
        not_supported("a request without pid, by which a process saves itself,", "ask another process to do it"));
  }
  return {};
}

class Worker {
 public:
  Worker(int socket, const Settings& base, const Engine& engine) : channel_(socket), base_(base), engine_(engine) {}
  WorkerEnd run();

 private:
  rpc::criu_resp handle(const rpc::criu_req& request);
  rpc::criu_resp dump(const rpc::criu_req& request);
  rpc::criu_resp pre_dump(const rpc::criu_req& request);
  rpc::criu_resp restore(const rpc::criu_req& request);
  rpc::criu_resp cpuinfo(const rpc::criu_req& request);
  rpc::criu_resp page_server(const rpc::criu_req& request);

  // Settings and workplace of a request.  The workplace exists as soon as there is one, also if the
  // options are bad, so that the log says so too.
  struct Prepared {
    Settings settings;
    std::optional<Workplace> place;
  };
  Result<void> prepare(const rpc::criu_req& request, Prepared& prepared);

  RpcChannel channel_;
  const Settings& base_;
  const Engine& engine_;
  HostPid peer_;
  std::vector<std::string> exec_command_;
  bool nobody_listens_ = false;
};

Result<void> Worker::prepare(const rpc::criu_req& request, Prepared& prepared) {
  Settings& settings = prepared.settings;
  settings = base_;
  const rpc::criu_opts& opts = request.opts();
  const Result<void> places = apply_rpc_places(settings, opts, peer_);
  const Result<void> options = apply_rpc_options(settings, opts);
  // Last, because it wins over the request itself.
  const Result<void> file = opts.has_config_file() ? apply_config_file(settings, opts.config_file()) : Result<void>{};
  FERRY_CHECK(places);
  if (base_.in_service && (opts.rst_sibling() || opts.inherit_fd_size() > 0)) {
    return fail(Kind::invalid,
                "RPC options rst_sibling and inherit_fd need a criu that the caller started (criu swrk)");
  }
  if (settings.lazy_pages && opts.has_status_fd() && opts.status_fd() >= 0) {
    FERRY_TRY(auto theirs, sys::open(fmt::format("/proc/{}/fd/{}", peer_, opts.status_fd()), O_WRONLY)
                               .during("opening the RPC option status_fd"));
    settings.status_fd = theirs.release();  // closed once it was written to
  }
  FERRY_TRY(Workplace place, Workplace::open(settings));
  prepared.place.emplace(std::move(place));
  for (const Result<void>* const step : {&options, &file}) {
    if (!step->has_value()) {
      log::error(step->error());
      return *step;
    }
  }
  return {};
}

rpc::criu_resp Worker::dump(const rpc::criu_req& request) {
  Prepared prepared;
  if (const auto ready = prepare(request, prepared); !ready.has_value()) {
    return bad_options(request.type(), ready.error());
  }
  const bool itself = !request.opts().has_pid();
  if (itself) {
    prepared.settings.dump.pid = peer_;
    const auto socket = channel_.peer_inode();
    if (!socket.has_value()) {
      log::error(socket.error());
      return answer(request.type(), socket.error());
    }
    prepared.settings.dump.caller_socket = *socket;
  }
  RpcListener listener(channel_, prepared.settings.notify_scripts);
  const DumpOutcome outcome = run_dump(engine_, prepared.settings, *prepared.place, &listener);
  rpc::criu_resp response =
      outcome.result.has_value() ? answer(request.type(), true) : answer(request.type(), outcome.result.error());
  if (outcome.result.has_value()) {
    response.mutable_dump()->set_restored(false);
    // Whoever saved itself and was ended gets its answer at the restore.
    nobody_listens_ = itself && !prepared.settings.dump.leave_running;
  }
  if (const std::string line = log::first_error(); !line.empty()) {
    response.set_cr_errmsg(line);
  }
  return response;
}

rpc::criu_resp Worker::pre_dump(const rpc::criu_req& request) {
  Prepared prepared;
  if (const auto ready = prepare(request, prepared); !ready.has_value()) {
    return bad_options(request.type(), ready.error());
  }
  if (const auto named = names_process(request); !named.has_value()) {
    log::error(named.error());
    return bad_options(request.type(), named.error());
  }
  const DumpOutcome outcome = run_pre_dump(engine_, prepared.settings, *prepared.place);
  rpc::criu_resp response =
      outcome.result.has_value() ? answer(request.type(), true) : answer(request.type(), outcome.result.error());
  if (const std::string line = log::first_error(); !line.empty()) {
    response.set_cr_errmsg(line);
  }
  return response;
}

rpc::criu_resp Worker::restore(const rpc::criu_req& request) {
  Prepared prepared;
  if (const auto ready = prepare(request, prepared); !ready.has_value()) {
    return bad_options(request.type(), ready.error());
  }
  // Whoever asks by RPC gets an answer when the tree runs, not when it ends.
  prepared.settings.restore.detached = true;
  RpcListener listener(channel_, prepared.settings.notify_scripts);
  const RestoreOutcome outcome = run_restore(engine_, prepared.settings, *prepared.place, &listener);
  rpc::criu_resp response =
      outcome.result.has_value() ? answer(request.type(), true) : answer(request.type(), outcome.result.error());
  response.mutable_restore()->set_pid(outcome.root);
  if (const std::string line = log::first_error(); !line.empty()) {
    response.set_cr_errmsg(line);
  }
  if (outcome.result.has_value()) {
    exec_command_ = prepared.settings.exec_command;
  }
  return response;
}

rpc::criu_resp Worker::cpuinfo(const rpc::criu_req& request) {
  Prepared prepared;
  if (const auto ready = prepare(request, prepared); !ready.has_value()) {
    return bad_options(request.type(), ready.error());
  }
  const Result<void> result =
      request.type() == rpc::CPUINFO_DUMP
          ? state::cpu::dump_cpuinfo(prepared.place->images())
          : state::cpu::check_cpuinfo(prepared.place->images(), prepared.settings.common.cpu_capability);
  if (!result.has_value()) {
    log::error(result.error());
    return answer(request.type(), result.error());
  }
  return answer(request.type(), true);
}

rpc::criu_resp Worker::page_server(const rpc::criu_req& request) {
  // PAGE_SERVER_CHLD is answered under the name of PAGE_SERVER.
  Prepared prepared;
  if (const auto ready = prepare(request, prepared); !ready.has_value()) {
    return bad_options(rpc::PAGE_SERVER, ready.error());
  }
  const auto started = start_page_server(prepared.settings, *prepared.place, request.type() == rpc::PAGE_SERVER);
  if (!started.has_value()) {
    log::error(started.error());
    return answer(rpc::PAGE_SERVER, started.error());
  }
  rpc::criu_resp response = answer(rpc::PAGE_SERVER, true);
  response.mutable_ps()->set_pid(started->pid);
  response.mutable_ps()->set_port(started->port);
  return response;
}

rpc::criu_resp features(const rpc::criu_req& request) {
  rpc::criu_resp response = answer(request.type(), true);
  const auto available = [](bool asked, std::string_view name) {
    return asked && engine::probe_feature(name).value_or(engine::Feature::unknown) == engine::Feature::available;
  };
  const rpc::criu_features& asked = request.features();
  rpc::criu_features& told = *response.mutable_features();
  told.set_mem_track(available(asked.mem_track(), "mem_dirty_track"));
  told.set_lazy_pages(available(asked.lazy_pages(), "uffd-noncoop"));
  told.set_pidfd_store(available(asked.pidfd_store(), "pidfd_store"));
  return response;
}

rpc::criu_resp check(const rpc::criu_req& request) {
  const Result<void> result = engine::check_required_features();
  return result.has_value() ? answer(request.type(), true) : answer(request.type(), result.error());
}

rpc::criu_resp version(const rpc::criu_req& request) {
  rpc::criu_resp response = answer(request.type(), true);
  response.mutable_version()->set_major_number(4);
  response.mutable_version()->set_minor_number(2);
  return response;
}

rpc::criu_resp wait_pid(const rpc::criu_req& request) {
  int status = 0;
  const auto pid = static_cast<pid_t>(request.pid());
  pid_t waited = -1;
  // Only one child by its pid: 0 and negative numbers mean groups to waitpid(2).
  if (pid <= 0) {
    return answer(request.type(), false);
  }
  do {
    waited = ::waitpid(pid, &status, 0);
  } while (waited < 0 && errno == EINTR);
  rpc::criu_resp response = answer(request.type(), waited == pid);
  if (waited == pid) {
    response.set_status(status);
  }
  return response;
}

rpc::criu_resp Worker::handle(const rpc::criu_req& request) {
  switch (request.type()) {
    case rpc::DUMP:
      return dump(request);
    case rpc::RESTORE:
      return restore(request);
    case rpc::CHECK:
      return check(request);
    case rpc::PRE_DUMP:
    case rpc::SINGLE_PRE_DUMP:
      return pre_dump(request);
    case rpc::PAGE_SERVER:
    case rpc::PAGE_SERVER_CHLD:
      return page_server(request);
    case rpc::CPUINFO_DUMP:
    case rpc::CPUINFO_CHECK:
      return cpuinfo(request);
    case rpc::FEATURE_CHECK:
      return features(request);
    case rpc::VERSION:
      return version(request);
    case rpc::WAIT_PID:
      return wait_pid(request);
    case rpc::EMPTY:
    case rpc::NOTIFY:
      break;
  }
  return answer(rpc::EMPTY, false);
}

WorkerEnd Worker::run() {
  const Result<HostPid> peer = channel_.peer();
  if (!peer.has_value()) {
    log::error(peer.error());
    return {kProtocolFailure, {}};
  }
  peer_ = *peer;
  bool amid_pre_dumps = false;
  for (;;) {
    const auto packet = channel_.receive();
    if (!packet.has_value()) {
      log::error(packet.error());
      return {kProtocolFailure, {}};
    }
    rpc::criu_req request;
    // An unknown type is no value of the enum and lands in the unknown fields: that is answered, other
    // broken messages are not.
    if (!packet->has_value() || !request.ParsePartialFromString(**packet) ||
        (request.has_type() && !request.IsInitialized())) {
      return {kProtocolFailure, {}};
    }
    // A pre-dump is followed by another one, or by the dump.
    const bool follows = !amid_pre_dumps || request.type() == rpc::PRE_DUMP || request.type() == rpc::DUMP;
    const bool known = follows && request.has_type() && request.type() != rpc::EMPTY && request.type() != rpc::NOTIFY;
    if (known && request.keep_open() && !may_stay_open(request.type())) {
      const Result<void> refusal =
          fail(Kind::invalid, "request {} asks by keep_open for another one after it, and cannot be followed by any",
               static_cast<int>(request.type()));
      log::error(refusal.error());
      return {kProtocolFailure, {}};
    }
    const rpc::criu_resp response = known ? handle(request) : answer(rpc::EMPTY, false);
    if (nobody_listens_) {
      return {};
    }
    if (const auto sent = channel_.send(response.SerializeAsString()); !sent.has_value()) {
      log::error(sent.error());
      return {kProtocolFailure, {}};
    }
    if (!known) {
      return {kProtocolFailure, {}};
    }
    amid_pre_dumps = request.type() == rpc::PRE_DUMP && response.success();
    if (!request.keep_open() && !amid_pre_dumps) {
      return {response.success() ? 0 : 1, std::move(exec_command_)};
    }
  }
}

}  // namespace

WorkerEnd serve(int socket, const Settings& base, const Engine& engine) { return Worker(socket, base, engine).run(); }

}  // namespace ferry::criu
