#include "programs/criu/settings.h"

namespace ferry::criu {

engine::DumpOptions dump_options(const Settings& settings) {
  engine::DumpOptions options = settings.dump;
  static_cast<engine::CommonOptions&>(options) = settings.common;
  return options;
}

engine::RestoreOptions restore_options(const Settings& settings) {
  engine::RestoreOptions options = settings.restore;
  static_cast<engine::CommonOptions&>(options) = settings.common;
  return options;
}

}  // namespace ferry::criu
