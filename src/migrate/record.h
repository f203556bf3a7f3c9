// What must survive: who has the container.
//
// Both sides keep a file per move under /var/lib/ferry/moves, not under /run: a destination that took
// the tree and was restarted afterwards has to go on saying that it took it, since what the tree did
// there was seen by others, and a source that thawed would do it again.
//   ID.given    on the source, from before it lets the destination take the tree until it knows
//   ID.decided  on the destination: "taken" or "refused", made once and never changed
// All are written, fsync'ed, and only then given their names by linkat(2), which fails if there is one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

inline constexpr const char* kMovesDirectory = "/var/lib/ferry/moves";

// Only what random_id() makes; an id is part of a path.
Result<void> check_move_id(std::string_view id);

// A record that lies on the disk without its name yet, so that little is left to do when it comes to hold.
class Draft {
 public:
  // Errors: os, with the disk's reason.
  static Result<Draft> write(const std::string& directory, std::string name, std::string text);
  Draft(Draft&& other) noexcept = default;
  Draft& operator=(Draft&& other) noexcept = default;
  ~Draft();
  // It is on the disk by that name afterwards: true.  False if there was one.
  Result<bool> publish();
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] std::string path() const { return directory_ + "/" + name_; }

 private:
  Draft(std::string directory, std::string name, std::string text)
      : directory_(std::move(directory)), name_(std::move(name)), text_(std::move(text)) {}
  std::string directory_, name_, text_;
  std::string working_name_;  // where a file without a name cannot be had
  UniqueFd folder_, file_;
};

enum class Decision { taken, refused };
// Decides, unless it was decided already; the value is what holds.
Result<Decision> decide(const std::string& id, Decision wanted, const std::string& directory = kMovesDirectory);
// The same in two steps; the second one takes less time.
Result<Draft> draft_decision(const std::string& id, Decision wanted, const std::string& directory = kMovesDirectory);
Result<Decision> decide(Draft& draft);
// Only looks.
Result<std::optional<Decision>> decision_of(const std::string& id, const std::string& directory = kMovesDirectory);
// When the source knows and nobody will ask again.
void forget_decision(const std::string& id, const std::string& directory = kMovesDirectory);

// Everything that is needed to bring a move to its end without the process that began it.
struct GivenRecord {
  std::string move;
  std::string container_id;
  std::string container_name;
  std::string destination;
  std::string rsh;
  std::string docker_host;    // DOCKER_HOST of the source; empty: the default
  std::string freeze_cgroup;  // frozen until it is decided
  std::string restart_policy;
  long restart_retries = 0;
  bool keep_source = false;
  bool post_copy = false;  // a destination that took the tree still fetches its memory from the frozen one
};
std::string encode_given(const GivenRecord& record);
Result<GivenRecord> decode_given(std::string_view json);
Result<void> write_given(const GivenRecord& record, const std::string& directory = kMovesDirectory);
// Errors: gone, if there is none.
Result<GivenRecord> read_given(const std::string& id, const std::string& directory = kMovesDirectory);
Result<std::vector<std::string>> given_moves(const std::string& directory = kMovesDirectory);
void forget_given(const std::string& id, const std::string& directory = kMovesDirectory);

}  // namespace ferry::migrate
