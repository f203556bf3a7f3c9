#include "programs/criu/rpc_options.h"

#include <sched.h>

#include <array>

#include "base/log.h"
#include "programs/criu/option_table.h"
#include "programs/criu/option_value.h"
#include "rpc.pb.h"

namespace ferry::criu {
namespace {

using rpc::criu_opts;

Result<void> refuse(std::string_view name, std::string_view reason) {
  return tl::unexpected<Error>(not_supported(fmt::format("RPC option {}", name), reason));
}

// Options that ferry does not do, each with the test whether the request really asks for it: clients
// send many of them as false.
struct RefusedOption {
  const char* name;
  bool (*asked)(const criu_opts&);
  const char* why;
};
constexpr std::array kRefused{
    RefusedOption{"status_fd",
                  [](const criu_opts& o) { return o.has_status_fd() && o.status_fd() >= 0 && !o.lazy_pages(); },
                  "it tells when a server listens, and only a lazy dump is one"},
    RefusedOption{"pidfd_store_sk", [](const criu_opts& o) { return o.has_pidfd_store_sk(); },
                  "who has tracked a process from one pre-dump to the next is found without it"},
    RefusedOption{"lsm_mount_context", [](const criu_opts& o) { return o.has_lsm_mount_context(); },
                  "SELinux mount contexts are not changed"},
};

Result<void> apply_cgroups(Settings& settings, const criu_opts& opts) {
  using engine::CgroupMode;
  CgroupMode& mode = settings.common.cgroup_mode;
  if (opts.has_manage_cgroups()) {
    mode = opts.manage_cgroups() ? CgroupMode::soft : CgroupMode::ignore;
  }
  if (opts.has_manage_cgroups_mode()) {
    switch (opts.manage_cgroups_mode()) {
      case rpc::IGNORE:
        mode = CgroupMode::ignore;
        break;
      case rpc::CG_NONE:
        mode = CgroupMode::none;
        break;
      case rpc::PROPS:
        mode = CgroupMode::props;
        break;
      case rpc::SOFT:
      case rpc::DEFAULT:
        mode = CgroupMode::soft;
        break;
      case rpc::FULL:
        mode = CgroupMode::full;
        break;
      case rpc::STRICT:
        mode = CgroupMode::strict;
        break;
    }
  }
  for (const rpc::cgroup_root& root : opts.cg_root()) {
    settings.common.cgroup_roots.push_back({root.ctrl(), root.path()});
  }
  for (const std::string& controller : opts.cgroup_dump_controller()) {
    FERRY_CHECK(add_words(settings.common.cgroup_controllers, controller));
  }
  if (opts.has_cgroup_props()) {
    FERRY_CHECK(add_cgroup_properties(settings.common, opts.cgroup_props()));
  }
  if (opts.has_cgroup_props_file()) {
    FERRY_CHECK(add_cgroup_property_file(settings.common, opts.cgroup_props_file()));
  }
  settings.common.cgroup_yard = opts.cgroup_yard();
  if (opts.has_freeze_cgroup()) {
    settings.dump.freeze_cgroup = opts.freeze_cgroup();
  }
  return {};
}

void apply_network_lock(Settings& settings, const criu_opts& opts) {
  if (!opts.has_network_lock()) {
    return;
  }
  switch (opts.network_lock()) {
    case rpc::IPTABLES:
      settings.common.network_lock = engine::NetworkLock::iptables;
      break;
    case rpc::NFTABLES:
      settings.common.network_lock = engine::NetworkLock::nftables;
      break;
    case rpc::SKIP:
      settings.common.network_lock = engine::NetworkLock::skip;
      break;
  }
}

Result<void> apply_externals(Settings& settings, const criu_opts& opts) {
  for (const rpc::ext_mount_map& mount : opts.ext_mnt()) {
    settings.common.external_mounts.push_back({mount.key(), mount.val()});
  }
  settings.common.weak_sysctls = settings.common.weak_sysctls || opts.weak_sysctls();
  for (const std::string& type : opts.enable_fs()) {
    FERRY_CHECK(add_words(settings.common.enable_fs, type));
  }
  for (const std::string& external : opts.external()) {
    FERRY_CHECK(add_external(settings.common, external));
  }
  if (opts.auto_ext_mnt()) {
    FERRY_CHECK(add_external_mount(settings.common, "auto"));
  }
  for (const std::string& path : opts.skip_mnt()) {
    settings.common.skip_mounts.push_back(path);
  }
  if (opts.has_ext_unix_sk()) {
    settings.common.external_unix_sockets = opts.ext_unix_sk();
  }
  if (opts.ext_unix_sk()) {
    for (const rpc::unix_sk& socket : opts.unix_sk_ino()) {
      settings.common.external.push_back(fmt::format("unix[{}]", socket.inode()));
    }
  }
  return {};
}

Result<void> apply_restore(Settings& settings, const criu_opts& opts) {
  for (const rpc::inherit_fd& inherit : opts.inherit_fd()) {
    if (inherit.fd() < 0) {
      return fail(Kind::invalid, "RPC option inherit_fd: {} for {} is no descriptor", inherit.fd(), inherit.key());
    }
    settings.restore.inherit_fds.push_back({inherit.key(), inherit.fd()});
  }
  for (const rpc::join_namespace& join : opts.join_ns()) {
    std::string text = join.ns() + ":" + join.ns_file();
    if (join.has_extra_opt()) {
      text += "," + join.extra_opt();
    }
    FERRY_TRY(auto parsed, parse_join_namespace(text));
    settings.restore.join_namespaces.push_back(std::move(parsed));
  }
  for (const rpc::criu_veth_pair& pair : opts.veths()) {
    settings.restore.veth_pairs.push_back(pair.if_in() + "=" + pair.if_out());
  }
  if (opts.has_rst_sibling()) {
    settings.restore.sibling = opts.rst_sibling();
  }
  if (opts.has_lsm_profile()) {
    settings.restore.lsm_profile = opts.lsm_profile();
  }
  settings.exec_command.assign(opts.exec_cmd().begin(), opts.exec_cmd().end());
  settings.exec_after_restore = opts.exec_cmd_size() > 0;
  return {};
}

Result<void> apply_dump(Settings& settings, const criu_opts& opts) {
  if (opts.has_pid()) {
    if (opts.pid() <= 0) {
      return fail(Kind::invalid, "RPC option pid: {} is no process id", opts.pid());
    }
    settings.dump.pid = HostPid{opts.pid()};
  }
  if (opts.has_leave_running()) {
    settings.dump.leave_running = opts.leave_running();
  }
  if (opts.has_parent_img()) {
    settings.dump.parent_images = opts.parent_img();
  }
  if (opts.has_track_mem()) {
    settings.dump.track_memory = opts.track_mem();
  }
  if (opts.has_ghost_limit()) {
    settings.dump.ghost_limit = opts.ghost_limit();
  }
  if (opts.has_timeout()) {
    settings.dump.timeout = std::chrono::seconds{opts.timeout()};
  }
  return {};
}

// A lazy dump listens at every address, and pages stay in the tree: that wins over sending them somewhere.
Result<void> apply_page_server(Settings& settings, const criu_opts& opts) {
  settings.lazy_pages = settings.lazy_pages || opts.lazy_pages();
  if (opts.has_tls()) {
    settings.tls = opts.tls();
  }
  engine::TlsFiles& files = settings.tls_files;
  files.authority = opts.has_tls_cacert() ? opts.tls_cacert() : files.authority;
  files.revocations = opts.has_tls_cacrl() ? opts.tls_cacrl() : files.revocations;
  files.certificate = opts.has_tls_cert() ? opts.tls_cert() : files.certificate;
  files.key = opts.has_tls_key() ? opts.tls_key() : files.key;
  files.verify_name = files.verify_name && !opts.tls_no_cn_verify();
  if (opts.has_status_fd() && opts.status_fd() >= 0) {
    settings.status_fd = opts.status_fd();  // a number of the caller's, until the worker has opened it
  }
  if (!opts.has_ps()) {
    return {};
  }
  const rpc::criu_page_server_info& ps = opts.ps();
  if (ps.port() < 0 || ps.port() > UINT16_MAX) {
    return fail(Kind::invalid, "RPC option ps: {} is no port", ps.port());
  }
  settings.port = static_cast<std::uint16_t>(ps.port());
  settings.page_server = !settings.lazy_pages;
  settings.address = settings.lazy_pages ? "" : ps.address();
  settings.ps_socket = ps.has_fd() ? ps.fd() : settings.ps_socket;
  return {};
}

void apply_switches(Settings& settings, const criu_opts& opts) {
  const auto set = [](bool& to, bool has, bool on) {
    if (has) {
      to = on;
    }
  };
  engine::CommonOptions& common = settings.common;
  set(common.tcp_established, opts.has_tcp_established(), opts.tcp_established());
  set(common.tcp_close, opts.has_tcp_close(), opts.tcp_close());
  set(common.evasive_devices, opts.has_evasive_devices(), opts.evasive_devices());
  set(common.shell_job, opts.has_shell_job(), opts.shell_job());
  set(common.file_locks, opts.has_file_locks(), opts.file_locks());
  set(common.link_remap, opts.has_link_remap(), opts.link_remap());
  set(common.orphan_pts_master, opts.has_orphan_pts_master(), opts.orphan_pts_master());
  set(common.leave_stopped, opts.has_leave_stopped(), opts.leave_stopped());
  set(common.skip_file_rwx_check, opts.has_skip_file_rwx_check(), opts.skip_file_rwx_check());
  set(settings.dump.skip_in_flight, opts.has_tcp_skip_in_flight(), opts.tcp_skip_in_flight());
  set(settings.dump.auto_dedup, opts.has_auto_dedup(), opts.auto_dedup());
  set(settings.restore.auto_dedup, opts.has_auto_dedup(), opts.auto_dedup());
  set(settings.notify_scripts, opts.has_notify_scripts(), opts.notify_scripts());
  set(settings.display_stats, opts.has_display_stats(), opts.display_stats());
}

}  // namespace

Result<void> apply_rpc_places(Settings& settings, const criu_opts& opts, HostPid peer) {
  if (opts.has_log_level()) {
    settings.verbosity = opts.log_level();
  }
  if (opts.has_log_to_stderr()) {
    settings.log_to_stderr = opts.log_to_stderr();
  }
  if (opts.images_dir_fd() >= 0) {
    settings.images_dir = fmt::format("/proc/{}/fd/{}", peer, opts.images_dir_fd());
  } else if (opts.has_images_dir()) {
    settings.images_dir = opts.images_dir();
  } else {
    return fail(Kind::invalid, "the request names no images directory: images_dir_fd is {}, images_dir is missing",
                opts.images_dir_fd());
  }
  if (opts.has_work_dir_fd() && opts.work_dir_fd() >= 0) {
    settings.work_dir = fmt::format("/proc/{}/fd/{}", peer, opts.work_dir_fd());
  }
  if (opts.has_log_file()) {
    if (opts.log_file().find('/') != std::string::npos) {
      return fail(Kind::invalid, "RPC option log_file has to be a name inside the work directory, and \"{}\" is a path",
                  opts.log_file());
    }
    settings.log_file = opts.log_file();
  }
  if (settings.log_file.empty()) {
    settings.log_file = "criu.log";
  }
  return {};
}

Result<void> apply_rpc_options(Settings& settings, const criu_opts& opts) {
  for (const RefusedOption& refused : kRefused) {
    if (refused.asked(opts)) {
      return refuse(refused.name, refused.why);
    }
  }
  if (opts.unprivileged()) {
    FERRY_CHECK(check_privileges());
  }
  if (opts.has_root()) {
    settings.common.root = opts.root();
  }
  if (opts.has_cpu_cap()) {
    // The bit for the image goes without saying on this way.
    settings.common.cpu_capability = opts.cpu_cap() | static_cast<std::uint32_t>(engine::CpuCapability::image);
  }
  if (opts.has_empty_ns()) {
    if ((opts.empty_ns() & ~static_cast<std::uint32_t>(CLONE_NEWNET)) != 0) {
      return fail(Kind::invalid, "RPC option empty_ns: only the network namespace can be empty, not {:#x}",
                  opts.empty_ns());
    }
    settings.common.empty_net_namespace = opts.empty_ns() != 0;
  }
  apply_switches(settings, opts);
  apply_network_lock(settings, opts);
  FERRY_CHECK(apply_cgroups(settings, opts));
  FERRY_CHECK(apply_externals(settings, opts));
  FERRY_CHECK(apply_page_server(settings, opts));
  FERRY_CHECK(apply_dump(settings, opts));
  FERRY_CHECK(apply_restore(settings, opts));
  if (!opts.unknown_fields().empty()) {
    log::warning("the request holds options that no release of CRIU up to 4.2 has; they have no effect");
  }
  return {};
}

}  // namespace ferry::criu
