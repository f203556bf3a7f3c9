// Connections of the page protocol, made and awaited.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/options.h"

namespace ferry::lazy {

using state::PageServerPlace;

// Errors: invalid (an address or port that is none), os.
Result<UniqueFd> connect_to(const PageServerPlace& place);
Result<UniqueFd> listen_at(const PageServerPlace& place);
Result<std::uint16_t> port_of(int listener);
Result<UniqueFd> accept_from(int listener);

}  // namespace ferry::lazy
