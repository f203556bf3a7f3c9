#include "programs/criu/option_table.h"

#include <array>

#include "programs/criu/option_value.h"

namespace ferry::criu {
namespace {

using S = Settings;
using V = Value;
using Apply = Result<void> (*)(Settings&, const Value&);

Result<void> done() { return {}; }

// ---- one row of each shape -----------------------------------------------------------------------

constexpr Option flag(const char* name, Apply apply, char letter = 0) {
  return {name, letter, Argument::none, true, apply, nullptr};
}
constexpr Option plain(const char* name, Apply apply, char letter = 0) {
  return {name, letter, Argument::none, false, apply, nullptr};
}
constexpr Option value(const char* name, Apply apply, char letter = 0) {
  return {name, letter, Argument::required, false, apply, nullptr};
}
constexpr Option maybe(const char* name, Apply apply, char letter = 0) {
  return {name, letter, Argument::optional, false, apply, nullptr};
}
constexpr Option refused_flag(const char* name, const char* why) {
  return {name, 0, Argument::none, true, nullptr, why};
}
constexpr Option refused_value(const char* name, const char* why, char letter = 0) {
  return {name, letter, Argument::required, false, nullptr, why};
}

// ---- the table, in the order of criu(8) ----------------------------------------------------------

constexpr std::array kOptions{
    value(
        "tree",
        [](S& s, const V& v) -> Result<void> {
          FERRY_TRY(const pid_t pid, parse_number<pid_t>(v.option, v.text));
          if (pid <= 0) {
            return fail(Kind::invalid, "option --tree takes a process id, and {} is none", pid);
          }
          s.dump.pid = HostPid{pid};
          return {};
        },
        't'),
    plain(
        "leave-stopped",
        [](S& s, const V& v) {
          s.common.leave_stopped = v.on;
          return done();
        },
        's'),
    plain(
        "leave-running",
        [](S& s, const V& v) {
          s.dump.leave_running = v.on;
          return done();
        },
        'R'),
    flag(
        "restore-detached",
        [](S& s, const V& v) {
          s.restore.detached = v.on;
          return done();
        },
        'd'),
    flag("daemon",
         [](S& s, const V& v) {
           s.restore.detached = v.on;
           return done();
         }),
    flag(
        "restore-sibling",
        [](S& s, const V& v) {
          s.restore.sibling = v.on;
          return done();
        },
        'S'),
    value(
        "images-dir",
        [](S& s, const V& v) {
          s.images_dir = v.text;
          return done();
        },
        'D'),
    value(
        "work-dir",
        [](S& s, const V& v) {
          s.work_dir = v.text;
          return done();
        },
        'W'),
    value(
        "log-file",
        [](S& s, const V& v) {
          s.log_file = v.text;
          return done();
        },
        'o'),
    // CRIU's restored processes write to a file each; here one process does their work, and says it in one.
    flag("log-pid", [](S&, const V&) { return done(); }),
    maybe(
        "verbosity",
        [](S& s, const V& v) -> Result<void> {
          // "-v" arrives without a value, "-vvv" with "vv", "-v4" with "4".
          if (v.text.find_first_not_of('v') == std::string_view::npos) {
            s.verbosity += 1 + static_cast<int>(v.text.size());
            return {};
          }
          FERRY_TRY(s.verbosity, parse_number<int>(v.option, v.text));
          return {};
        },
        'v'),
    flag("display-stats",
         [](S& s, const V& v) {
           s.display_stats = v.on;
           return done();
         }),
    value("pidfile",
          [](S& s, const V& v) {
            s.pidfile = v.text;
            return done();
          }),
    value("status-fd",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.status_fd, parse_number<int>(v.option, v.text));
            if (s.status_fd < 0) {
              return fail(Kind::invalid, "option --status-fd: {} is no descriptor", s.status_fd);
            }
            return {};
          }),
    value("config",
          [](S& s, const V& v) {
            s.config_file = v.text;
            return done();
          }),
    plain("no-default-config",
          [](S& s, const V&) {
            s.default_config = false;
            return done();
          }),
    value(
        "root",
        [](S& s, const V& v) {
          s.common.root = v.text;
          return done();
        },
        'r'),
    value(
        "join-ns",
        [](S& s, const V& v) -> Result<void> {
          FERRY_TRY(auto join, parse_join_namespace(v.text));
          s.restore.join_namespaces.push_back(std::move(join));
          return {};
        },
        'J'),
    maybe(
        "ext-unix-sk", [](S& s, const V& v) { return allow_external_unix_sockets(s.common, v.text); }, 'x'),
    flag("tcp-established",
         [](S& s, const V& v) {
           s.common.tcp_established = v.on;
           return done();
         }),
    flag("skip-in-flight",
         [](S& s, const V& v) {
           s.dump.skip_in_flight = v.on;
           return done();
         }),
    flag("tcp-close",
         [](S& s, const V& v) {
           s.common.tcp_close = v.on;
           return done();
         }),
    value("close",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(const int fd, parse_number<int>(v.option, v.text));
            s.close_fds.push_back(fd);
            return {};
          }),
    flag("evasive-devices",
         [](S& s, const V& v) {
           s.common.evasive_devices = v.on;
           return done();
         }),
    value("veth-pair",
          [](S& s, const V& v) -> Result<void> {
            const std::size_t equals = v.text.find('=');
            if (equals == std::string_view::npos || equals == 0 || equals + 1 == v.text.size()) {
              return fail(Kind::invalid, "option --veth-pair takes INSIDE=OUTSIDE, not \"{}\"", v.text);
            }
            s.restore.veth_pairs.emplace_back(v.text);
            return {};
          }),
    value("action-script",
          [](S& s, const V& v) {
            s.action_scripts.emplace_back(v.text);
            return done();
          }),
    flag("link-remap",
         [](S& s, const V& v) {
           s.common.link_remap = v.on;
           return done();
         }),
    flag(
        "shell-job",
        [](S& s, const V& v) {
          s.common.shell_job = v.on;
          return done();
        },
        'j'),
    flag(
        "file-locks",
        [](S& s, const V& v) {
          s.common.file_locks = v.on;
          return done();
        },
        'l'),
    flag("page-server",
         [](S& s, const V& v) {
           s.page_server = v.on;
           return done();
         }),
    value("address",
          [](S& s, const V& v) {
            s.address = v.text;
            return done();
          }),
    value("port",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.port, parse_number<std::uint16_t>(v.option, v.text));
            if (s.port == 0) {
              return fail(Kind::invalid, "option --port takes a port, and 0 is none");
            }
            return {};
          }),
    value("ps-socket",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.ps_socket, parse_number<int>(v.option, v.text));
            return {};
          }),
    value("prev-images-dir",
          [](S& s, const V& v) {
            s.dump.parent_images = v.text;
            return done();
          }),
    flag("track-mem",
         [](S& s, const V& v) {
           s.dump.track_memory = v.on;
           return done();
         }),
    flag("auto-dedup",
         [](S& s, const V& v) {
           s.dump.auto_dedup = s.restore.auto_dedup = v.on;
           return done();
         }),
    value("pre-dump-mode",
          [](S&, const V& v) -> Result<void> {
            // Both names are known; there is one way to read, which needs no pipes in the program.
            if (v.text != "splice" && v.text != "read") {
              return fail(Kind::invalid, "option --pre-dump-mode takes splice or read, not \"{}\"", v.text);
            }
            return {};
          }),
    plain("lazy-pages",
          [](S& s, const V& v) {
            s.lazy_pages = v.on;
            return done();
          }),
    refused_flag("stream", "images go into a directory, not to an image streamer"),
    value(
        "libdir", [](S&, const V& v) { return check_plugin_directory(v.text); }, 'L'),
    maybe("cpu-cap",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.common.cpu_capability, parse_cpu_capability(v.text));
            return {};
          }),
    // A watched file is found by its handle, or else by a search of the whole filesystem that it is on.
    flag("force-irmap", [](S&, const V&) { return done(); }),
    value("irmap-scan-path", [](S&, const V&) { return done(); }),
    value(
        "ext-mount-map", [](S& s, const V& v) { return add_external_mount(s.common, v.text); }, 'M'),
    value("external", [](S& s, const V& v) { return add_external(s.common, v.text); }),
    value("inherit-fd",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(auto inherit, parse_inherit_fd(v.text));
            s.restore.inherit_fds.push_back(std::move(inherit));
            return {};
          }),
    plain("exec-cmd",
          [](S& s, const V& v) {
            s.exec_after_restore = v.on;
            return done();
          }),
    maybe("manage-cgroups",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.common.cgroup_mode, parse_cgroup_mode(v.text));
            return {};
          }),
    value("cgroup-root",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(auto root, parse_cgroup_root(v.text));
            s.common.cgroup_roots.push_back(std::move(root));
            return {};
          }),
    value("cgroup-props", [](S& s, const V& v) { return add_cgroup_properties(s.common, v.text); }),
    value("cgroup-props-file", [](S& s, const V& v) { return add_cgroup_property_file(s.common, v.text); }),
    value("cgroup-dump-controller", [](S& s, const V& v) { return add_words(s.common.cgroup_controllers, v.text); }),
    value("cgroup-yard",
          [](S& s, const V& v) {
            s.common.cgroup_yard = v.text;
            return done();
          }),
    value("freeze-cgroup",
          [](S& s, const V& v) {
            s.dump.freeze_cgroup = v.text;
            return done();
          }),
    value("feature",
          [](S& s, const V& v) {
            s.check_feature = v.text;
            return done();
          }),
    flag("extra",
         [](S& s, const V& v) {
           s.check_extra = v.on;
           return done();
         }),
    flag("experimental",
         [](S& s, const V& v) {
           s.check_extra = v.on;
           return done();
         }),
    plain("all",
          [](S& s, const V& v) {
            s.check_extra = v.on;
            return done();
          }),
    value("skip-mnt",
          [](S& s, const V& v) {
            s.common.skip_mounts.emplace_back(v.text);
            return done();
          }),
    value("enable-fs", [](S& s, const V& v) { return add_words(s.common.enable_fs, v.text); }),
    // Mounts that are peers or slaves of mounts outside become that again, asked for or not.
    plain("enable-external-sharing", [](S&, const V&) { return done(); }),
    plain("enable-external-masters", [](S&, const V&) { return done(); }),
    value("ghost-limit",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.dump.ghost_limit, parse_size(v.option, v.text));
            return {};
          }),
    // Another way to the same holes; SEEK_HOLE finds them on every file system.
    flag("ghost-fiemap", [](S&, const V&) { return done(); }),
    value("lsm-profile",
          [](S& s, const V& v) {
            s.restore.lsm_profile = v.text;
            return done();
          }),
    refused_value("lsm-mount-context", "SELinux mount contexts are not changed"),
    value("timeout",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(const std::uint32_t seconds, parse_number<std::uint32_t>(v.option, v.text));
            s.dump.timeout = std::chrono::seconds{seconds};
            return {};
          }),
    value("empty-ns",
          [](S& s, const V& v) -> Result<void> {
            if (v.text != "net") {
              return fail(Kind::invalid, "option --empty-ns takes net, not \"{}\"", v.text);
            }
            s.common.empty_net_namespace = true;
            return {};
          }),
    value("network-lock",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.common.network_lock, parse_network_lock(v.text));
            return {};
          }),
    flag("weak-sysctls",
         [](S& s, const V& v) {
           s.common.weak_sysctls = v.on;
           return done();
         }),
    value("file-validation",
          [](S& s, const V& v) -> Result<void> {
            FERRY_TRY(s.common.file_validation, parse_file_validation(v.text));
            return {};
          }),
    flag("skip-file-rwx-check",
         [](S& s, const V& v) {
           s.common.skip_file_rwx_check = v.on;
           return done();
         }),
    // There is one way to restore mounts, and it restores what the older one of CRIU does.
    flag("mntns-compat-mode", [](S&, const V&) { return done(); }),
    flag("unprivileged", [](S&, const V& v) { return v.on ? check_privileges() : done(); }),
    flag("allow-uprobes",
         [](S& s, const V& v) {
           s.common.allow_uprobes = v.on;
           return done();
         }),
    // They let CRIU use what it has given up, and check pass over what no kernel has yet; there is neither here.
    flag("deprecated", [](S&, const V&) { return done(); }),
    value("tls-cacert",
          [](S& s, const V& v) {
            s.tls_files.authority = v.text;
            return done();
          }),
    value("tls-cacrl",
          [](S& s, const V& v) {
            s.tls_files.revocations = v.text;
            return done();
          }),
    value("tls-cert",
          [](S& s, const V& v) {
            s.tls_files.certificate = v.text;
            return done();
          }),
    value("tls-key",
          [](S& s, const V& v) {
            s.tls_files.key = v.text;
            return done();
          }),
    flag("tls",
         [](S& s, const V& v) {
           s.tls = v.on;
           return done();
         }),
    plain("tls-no-cn-verify",
          [](S& s, const V&) {
            s.tls_files.verify_name = false;
            return done();
          }),
    plain("ms", [](S&, const V&) { return done(); }),
};

}  // namespace

std::span<const Option> options() { return kOptions; }

const Option* find_option(std::string_view name, bool& negated) {
  constexpr std::string_view kNo = "no-";
  for (const Option& option : kOptions) {
    if (name == option.name) {
      negated = false;
      return &option;
    }
    if (option.negatable && name.starts_with(kNo) && name.substr(kNo.size()) == option.name) {
      negated = true;
      return &option;
    }
  }
  return nullptr;
}

Result<void> apply_option(Settings& settings, const Option& option, bool negated, std::string_view text) {
  if (option.apply == nullptr) {
    if (negated) {
      return {};
    }
    return tl::unexpected<Error>(not_supported(fmt::format("option --{}", option.name), option.refusal));
  }
  return option.apply(settings, Value{option.name, text, !negated});
}

Error not_supported(std::string_view name, std::string_view reason, const char* file, int line) {
  return Error{.kind = Kind::unsupported,
               .os_errno = 0,
               .what = fmt::format("{} is not supported by this version of ferry: {}", name, reason),
               .during = {},
               .file = file,
               .line = line};
}

}  // namespace ferry::criu
