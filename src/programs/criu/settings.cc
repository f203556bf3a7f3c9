#include "programs/criu/settings.h"

#include <unistd.h>

#include "lazy/hand_over.h"

namespace ferry::criu {

engine::DumpOptions dump_options(const Settings& settings) {
  engine::DumpOptions options = settings.dump;
  static_cast<engine::CommonOptions&>(options) = settings.common;
  options.lazy_pages = settings.lazy_pages;
  if (settings.page_server || settings.lazy_pages) {
    options.page_server = page_server_place(settings);
  }
  return options;
}

state::PageServerPlace page_server_place(const Settings& settings) {
  state::PageServerPlace place{settings.address, settings.port, settings.ps_socket};
  if (settings.tls) {
    constexpr const char* kRevocations = "/etc/pki/CA/cacrl.pem";
    place.tls = settings.tls_files;
    if (place.tls->revocations.empty() && ::access(kRevocations, F_OK) == 0) {
      place.tls->revocations = kRevocations;
    }
  }
  return place;
}

engine::RestoreOptions restore_options(const Settings& settings) {
  engine::RestoreOptions options = settings.restore;
  static_cast<engine::CommonOptions&>(options) = settings.common;
  if (settings.lazy_pages) {
    options.lazy_pages_socket = lazy::kSocketName;
  }
  return options;
}

}  // namespace ferry::criu
