// Everything that a run of criu was asked for, whichever way it was asked: command line,
// configuration files and RPC requests fill this one structure, later ones over earlier ones.
#pragma once

#include <string>
#include <vector>

#include "engine/options.h"

namespace ferry::criu {

// What CRIU's command does where nothing else is said.
inline engine::CommonOptions default_options() {
  engine::CommonOptions options;
  options.file_validation = engine::FileValidation::build_id;
  return options;
}

struct Settings {
  engine::CommonOptions common = default_options();  // the shared part of both operations
  engine::DumpOptions dump;                          // only its own fields are used here
  engine::RestoreOptions restore;

  std::string images_dir;  // empty: not given
  std::string work_dir;    // empty: the images directory
  std::string log_file;    // inside the work directory; empty: stderr
  bool log_to_stderr = false;
  int verbosity = 2;  // a log::Level; 0 is silence

  // service: the path of its socket; empty: criu_service.socket in the work directory.  Otherwise a page server's.
  std::string address;
  std::uint16_t port = 0;
  int ps_socket = -1;  // a connection to or from a page server, in place of address and port
  bool tls = false;    // page server and lazy-pages: connections are encrypted
  // What CRIU takes where nothing else is said; its list of revoked certificates only if it is there.
  engine::TlsFiles tls_files{"/etc/pki/CA/cacert.pem", "", "/etc/pki/criu/cert.pem", "/etc/pki/criu/private/key.pem"};
  bool page_server = false;  // dump, pre-dump: pages go to one.  lazy-pages: they come from one
  bool lazy_pages = false;
  int status_fd = -1;       // gets a zero byte when a server listens
  bool in_service = false;  // the request came over a named socket, not over an inherited one
  std::string pidfile;
  std::vector<std::string> action_scripts;
  std::vector<int> close_fds;
  std::vector<std::string> exec_command;
  bool exec_after_restore = false;
  bool display_stats = false;
  bool notify_scripts = false;  // RPC: the caller wants to hear of the stages

  std::string check_feature;  // empty: the features that ferry needs
  bool check_extra = false;

  bool default_config = true;
  std::string config_file;
  bool operator==(const Settings&) const = default;
};

// The engine's view of the settings.  The directories are the caller's to fill in.
engine::DumpOptions dump_options(const Settings& settings);
engine::RestoreOptions restore_options(const Settings& settings);
state::PageServerPlace page_server_place(const Settings& settings);

}  // namespace ferry::criu
