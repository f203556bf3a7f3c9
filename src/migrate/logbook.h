// What every move on this host has come to, on either side: for whoever wants to know, and for whoever has to
// put right what a ferry left behind that was killed.
//
// An entry is a file, /var/lib/ferry/moves/ID.source or ID.destination, which is replaced as a whole.  What can
// only be undone with the help of an entry is in it, synced, before it is done.  Who has the container is not
// decided here: record.h has the two files that do.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "migrate/record.h"
#include "migrate/step.h"

namespace ferry::migrate {

enum class Outcome : std::uint8_t { moved, stayed };

struct Entry {
  std::string move;
  Role role = Role::source;
  std::string container_id;  // of the container on this host; empty while there is no twin
  std::string container_name;
  std::string peer;              // the other host
  std::string rsh;               // by which it was reached; source only
  std::string docker_host;       // DOCKER_HOST
  pid_t pid = 0;                 // of ferry
  std::uint64_t start_time = 0;  // of that process, as /proc/PID/stat has it
  std::int64_t began = 0;        // seconds since 1970
  std::int64_t changed = 0;
  Step step = Step::look;
  int round = 0;
  std::uint64_t pages_left = 0;  // written during that round
  // Post-copy: the destination took the tree, or is about to, and part of its memory is on the source only.
  bool pages_due = false;
  bool disconnected = false;  // nothing is fetched at the moment
  bool in_doubt = false;      // the source was told to ask, and nobody answers
  // To undo, or to do in the place of the ferry that is gone:
  bool restarts_suspended = false;
  std::string restart_policy = "no";
  std::int64_t restart_retries = 0;
  bool keep_source = false;
  std::string processor_quota;  // as Throttle::undo() has it; empty: it was not touched
  std::string freeze_cgroup;
  std::vector<std::string> volumes_made;  // for the twin
  std::vector<std::string> put_aside;     // directories of volumes whose content made room
  pid_t root = 0;                         // of the twin
  pid_t shim = 0;
  // Who has the container, once that is known, and since when there is nothing left to do.
  std::optional<Outcome> outcome;
  std::string reason;
  std::int64_t ended = 0;
};

std::string encode_entry(const Entry& entry);
Result<Entry> decode_entry(std::string_view json);
// `sync`: it is on the disk when this returns.
Result<void> save_entry(const Entry& entry, bool sync, const std::string& directory = kMovesDirectory);
// Errors: gone, if there is none.
Result<Entry> read_entry(const std::string& move, Role role, const std::string& directory = kMovesDirectory);
// Oldest first.  One that cannot be read is passed over with a warning.
Result<std::vector<Entry>> entries(const std::string& directory = kMovesDirectory);
// Removes what ended long ago.
void forget_old_entries(const std::string& directory = kMovesDirectory);

// Whether the ferry that has the move in hand still lives.
bool is_at_work(const Entry& entry);

// Held by whoever puts a move right, so that a guard and a user do not do it at the same time.
Result<UniqueFd> lock_move(const std::string& move, const std::string& directory = kMovesDirectory);

// The entry of a move that this process has in hand.
class Logbook {
 public:
  // Fills in process and time.
  static Result<Logbook> open(Entry entry);
  [[nodiscard]] const Entry& entry() const { return entry_; }
  // What only informs is written when it can be.
  void step(Step step);
  void round(int number, std::uint64_t pages_left);
  void doubt();
  // Post-copy: how much is missing, and whether it is being fetched.
  void fetching(std::uint64_t pages_left, bool connected);
  // Synced: what follows relies on it.
  Result<void> change(const std::function<void(Entry&)>& by);
  // Who has it.  Once known it stays.
  Result<void> decide(Outcome outcome);
  // There is nothing left to do.
  void close(Outcome outcome, const std::string& reason = {});

 private:
  explicit Logbook(Entry entry) : entry_(std::move(entry)) {}
  void note();
  Entry entry_;
};

}  // namespace ferry::migrate
