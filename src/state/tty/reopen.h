// Restore: terminals by what tty-info.img tells of them.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/tty.pb.h"
#include "state/file_kind.h"

namespace ferry::state::tty {

Result<const pb::TtyInfoEntry*> info_of(std::uint32_t id, const image::Set& set);
// The terminal behind /dev/tty of a session.
Result<const pb::TtyInfoEntry*> session_terminal(std::uint32_t sid, const image::Set& set);

// The multiplexer of the devpts that the terminal of `entry` is in.
Result<std::string> ptmx_of(const pb::TtyFileEntry& entry, RestoreContext& context);

// A slave that has no master any more; of the number that it had, if that is free.
Result<UniqueFd> open_hung_up(const pb::TtyInfoEntry& info, const pb::TtyFileEntry& entry, RestoreContext& context);

// Whose terminal takes the place of one whose master was outside of the tree; none if a master is to be made.
Result<UniqueFd> external_terminal(const pb::TtyInfoEntry& info, const RestoreOptions& options);
// A master that was made ahead of time; none, as a rule.
Result<UniqueFd> prepared_master(std::uint32_t index, const RestoreOptions& options);
// A master with the settings of the terminal and the bytes that were under way.  `prepared`: one to use.
Result<UniqueFd> make_master(const pb::TtyInfoEntry& info, std::uint32_t index, const pb::TtyFileEntry& entry,
                             UniqueFd prepared, RestoreContext& context);

}  // namespace ferry::state::tty
