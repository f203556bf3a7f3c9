// The options and the listener are defined with the state they speak of; programs know them by the
// engine's name.
#pragma once

#include "state/options.h"

namespace ferry::engine {

using state::Answer;
using state::CgroupMode;
using state::CgroupRoot;
using state::CommonOptions;
using state::CpuCapability;
using state::DumpOptions;
using state::DumpReport;
using state::ExternalMount;
using state::FileValidation;
using state::InheritFd;
using state::JoinNamespace;
using state::Listener;
using state::NetworkLock;
using state::Notice;
using state::RestoreOptions;
using state::RestoreReport;
using state::Stage;
using state::stage_name;
using state::TlsFiles;

}  // namespace ferry::engine
