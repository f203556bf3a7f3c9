// Connections of the page protocol, made and awaited.
#pragma once

#include <cstdint>
#include <optional>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/options.h"

namespace ferry::lazy {

using state::PageServerPlace;

// Errors: invalid (an address or port that is none), os.
Result<UniqueFd> connect_to(const PageServerPlace& place);
Result<UniqueFd> listen_at(const PageServerPlace& place);
Result<std::uint16_t> port_of(int listener);
// With `tls`: errors also if the handshake fails, with what OpenSSL says of it.
Result<UniqueFd> accept_from(int listener, const std::optional<state::TlsFiles>& tls = std::nullopt);
// The connected socket that a server was given in place of one to listen at.
Result<UniqueFd> take_client(const PageServerPlace& place);

}  // namespace ferry::lazy
