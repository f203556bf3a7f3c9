#include "state/options.h"

namespace ferry::state {

std::string_view stage_name(Stage stage) {
  switch (stage) {
    case Stage::pre_dump:
      return "pre-dump";
    case Stage::network_lock:
      return "network-lock";
    case Stage::query_ext_files:
      return "query-ext-files";
    case Stage::post_dump:
      return "post-dump";
    case Stage::network_unlock:
      return "network-unlock";
    case Stage::pre_restore:
      return "pre-restore";
    case Stage::setup_namespaces:
      return "setup-namespaces";
    case Stage::post_setup_namespaces:
      return "post-setup-namespaces";
    case Stage::orphan_pts_master:
      return "orphan-pts-master";
    case Stage::post_restore:
      return "post-restore";
    case Stage::pre_resume:
      return "pre-resume";
    case Stage::post_resume:
      return "post-resume";
    case Stage::status_ready:
      return "status-ready";
  }
  return "";
}

}  // namespace ferry::state
