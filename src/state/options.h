// What the programs ask of the engine.  Names and defaults are CRIU's (criu(8)); the command line,
// configuration files and RPC all fill these structures, and the engine reads nothing else.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace ferry::state {

// Moments at which the caller may act, in CRIU's words (criu(8), ACTION SCRIPTS; RPC notifications).
enum class Stage {
  pre_dump,
  network_lock,
  query_ext_files,
  post_dump,
  network_unlock,
  pre_restore,
  setup_namespaces,
  post_setup_namespaces,
  orphan_pts_master,
  post_restore,
  pre_resume,
  post_resume,
  status_ready,  // a server listens
};
// "pre-dump", "network-lock", …
std::string_view stage_name(Stage stage);

struct Notice {
  Stage stage;
  std::optional<HostPid> pid;  // the root task, in setup_namespaces and post_restore
  int fd = -1;                 // orphan_pts_master: the master; the engine keeps ownership
};
struct Answer {
  std::vector<std::string> external;  // query_ext_files: further external resources
};

// Who is told.  An error aborts the operation, except in network_unlock, pre_resume and post_resume.
class Listener {
 public:
  virtual ~Listener() = default;
  virtual Result<Answer> on(const Notice& notice) = 0;
};

enum class CgroupMode { ignore, none, props, soft, full, strict };
enum class CpuCapability : std::uint32_t { none = 0, fpu = 1, cpu = 2, instructions = 4, image = 8, all = 0xffffffff };

// How packets of saved connections are kept away while nobody can answer them (criu(8), --network-lock).
enum class NetworkLock { iptables, nftables, skip };

struct ExternalMount {
  std::string key;    // dump: path in the container; restore: the key kept in the image
  std::string value;  // dump: the key to keep; restore: path on the host
  bool operator==(const ExternalMount&) const = default;
};
struct CgroupRoot {
  std::string controller;  // empty: all that are not named otherwise
  std::string path;
  bool operator==(const CgroupRoot&) const = default;
};
struct InheritFd {
  std::string key;  // "pipe:[123]", "socket:[5]", "tty[8800:3]", a path without its leading slash, or an external key
  int fd = -1;      // in this process's table; not owned
  bool operator==(const InheritFd&) const = default;
};
struct JoinNamespace {
  std::string kind;   // pid, net, ipc, uts, mnt, user, time
  std::string file;   // path, or a pid in decimal
  std::string extra;  // user: "UID,GID"
  bool operator==(const JoinNamespace&) const = default;
};

// How a restore tells whether a file is the one of the checkpoint (criu(8), --file-validation).  A build-id is read
// from every program and library while the tree is stopped, a size costs nothing.
enum class FileValidation { size, build_id };

// Certificates of a page server's connection and of who connects to it (criu(8), --tls).
struct TlsFiles {
  std::string authority;    // certificates of who has signed the peer's
  std::string revocations;  // empty: none
  std::string certificate;
  std::string key;
  bool verify_name = true;  // the server's certificate has to be for its address
  bool operator==(const TlsFiles&) const = default;
};

// A page server (criu(8), --page-server, --lazy-pages): where to reach it, or where to listen.
struct PageServerPlace {
  std::string address;     // empty: this host's loopback address to reach, every address to listen
  std::uint16_t port = 0;  // 0, to listen: any free one
  int socket = -1;         // a connected socket in place of both; not owned
  std::optional<TlsFiles> tls = std::nullopt;
  bool operator==(const PageServerPlace&) const = default;
};

// Options that dump and restore share.
struct CommonOptions {
  int images_dir = -1;  // open directory; not owned
  int work_dir = -1;    // open directory for logs and statistics; not owned
  std::string root;     // root of the mount namespace: bundle's rootfs on dump, new root on restore
  std::vector<ExternalMount> external_mounts;
  std::vector<std::string> external;  // "KIND[ID]:KEY" strings, criu(8) --external
  std::vector<std::string> skip_mounts;
  std::vector<std::string> enable_fs;  // further file system types that may be mounted anew; "all"
  bool empty_net_namespace = false;
  bool shell_job = false;
  bool tcp_established = false;
  bool tcp_close = false;
  NetworkLock network_lock = NetworkLock::nftables;
  bool external_unix_sockets = false;
  bool evasive_devices = false;
  bool file_locks = false;
  bool link_remap = false;
  bool orphan_pts_master = false;
  bool leave_stopped = false;
  bool weak_sysctls = false;
  bool skip_file_rwx_check = false;
  FileValidation file_validation = FileValidation::size;
  bool allow_uprobes = false;
  CgroupMode cgroup_mode = CgroupMode::soft;
  // The group that `freeze_cgroup` names is made and set up on the other side by a runtime, in every hierarchy: of it
  // only the groups below are kept, whose hundred files are not read while the tree is frozen then.
  bool cgroup_by_runtime = false;
  std::vector<CgroupRoot> cgroup_roots;
  std::string cgroup_yard;                      // where the hierarchies are mounted; empty: where they are found
  std::vector<std::string> cgroup_controllers;  // whose properties are saved; empty: all
  std::vector<std::string> cgroup_properties;   // saved beside those that are known
  std::uint32_t cpu_capability = 5;             // fpu and instructions, for a set that says what its processor had
  bool operator==(const CommonOptions&) const = default;
};

struct DumpOptions : CommonOptions {
  HostPid pid;
  bool leave_running = false;
  bool skip_in_flight = false;           // connections that wait for accept(2) are left out
  bool skip_memory = false;              // a look at the tree: no page is read, so the set cannot be restored
  std::string freeze_cgroup;             // directory of the freezer cgroup, v1 or v2; empty: by ptrace alone
  std::uint64_t ghost_limit = 1U << 20;  // bytes
  std::chrono::seconds timeout{10};      // to stop the tree
  std::string parent_images;             // relative to images_dir
  bool track_memory = false;
  bool auto_dedup = false;
  // Pages go there instead of into images_dir; with lazy_pages, where the stopped tree's pages are to be had.
  std::optional<PageServerPlace> page_server;
  bool lazy_pages = false;  // private anonymous memory stays in the tree, which waits until all was fetched
  // Inode of the Unix socket by which a process of the tree asked for its own checkpoint; 0: none.  After the
  // restore it holds the answer (docs/criu.md).
  std::uint32_t caller_socket = 0;
  bool operator==(const DumpOptions&) const = default;
};

struct DumpReport {  // all times in µs, as stats_entry has them
  std::uint64_t freezing_us = 0, frozen_us = 0, memdump_us = 0, memwrite_us = 0;
  std::uint64_t pages_scanned = 0, pages_written = 0, pages_skipped_parent = 0, pages_lazy = 0;
};

struct RestoreOptions : CommonOptions {
  bool detached = false;  // return as soon as the tree runs
  bool sibling = false;   // the root task becomes a child of our parent (clone(2) CLONE_PARENT)
  std::vector<InheritFd> inherit_fds;
  std::vector<JoinNamespace> join_namespaces;
  std::vector<std::string> veth_pairs;
  std::string lsm_profile;
  bool auto_dedup = false;
  // Private anonymous memory is left to who listens at this socket, a lazy-pages daemon: a path, relative to the
  // work directory.  Empty: everything is there when the tree starts.
  std::string lazy_pages_socket;
  bool operator==(const RestoreOptions&) const = default;
};

struct RestoreReport {
  HostPid root;
  std::uint64_t forking_us = 0, restore_us = 0, pages_restored = 0;
};

}  // namespace ferry::state
