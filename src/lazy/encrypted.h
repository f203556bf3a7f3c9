// A connection of the page protocol inside TLS, as CRIU has it: from the first byte on, with certificates of both ends.
#pragma once

#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/options.h"

namespace ferry::lazy {

using state::TlsFiles;

// The plain end of the connection: what is written there goes to the peer, which has shown a certificate that
// files.authority vouches for.  A process of its own stands between; it ends with either side.
// `address`: what the server's certificate has to be for, unless files.verify_name is false or it is empty.
// Errors: invalid (a file that is none), denied (a handshake that failed), os.
Result<UniqueFd> encrypt_as_client(UniqueFd socket, const TlsFiles& files, const std::string& address);
Result<UniqueFd> encrypt_as_server(UniqueFd socket, const TlsFiles& files);

}  // namespace ferry::lazy
