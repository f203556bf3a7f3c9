// The steps of a move, in order, as both sides keep them in the logbook; docs/migration.md tells what happens in
// each.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ferry::migrate {

enum class Role : std::uint8_t { source, destination };

enum class Step : std::uint8_t {
  look,
  reach,
  offer,
  image,
  twin,
  files,
  start,
  rounds,
  freeze,
  grow,
  record,
  given,
  hold,
  taken,
  resumed,
  decided,
  pages,
  finish,
};

struct StepInfo {
  Step step;
  std::string_view name;
  bool source;
  bool destination;
  bool frozen;  // the container stands still: nothing is written to the logbook
};

inline constexpr std::array<StepInfo, 18> kSteps{{
    {Step::look, "look", true, false, false},       // what Docker knows of the container
    {Step::reach, "reach", true, false, false},     // the remote shell and the greeting
    {Step::offer, "offer", true, true, false},      // what is in the way
    {Step::image, "image", true, true, false},      // missing layers
    {Step::twin, "twin", true, true, false},        // from here on there is something to undo
    {Step::files, "files", true, true, false},      // writable layer, log
    {Step::start, "start", true, true, false},      // the look at the tree; the runtime starts the twin
    {Step::rounds, "rounds", true, true, false},    // memory, while the container runs
    {Step::freeze, "freeze", true, false, false},   // entered before the tree is stopped
    {Step::grow, "grow", false, true, true},        // the tree is complete on the destination
    {Step::record, "record", true, false, true},    // GIVEN is written, and not sent
    {Step::given, "given", true, false, true},      // it was sent
    {Step::hold, "hold", false, true, true},        // the twin's tree no longer needs the receiver
    {Step::taken, "taken", false, true, true},      // TAKEN is written, the tree is still held
    {Step::resumed, "resumed", false, true, true},  // it runs, and the source does not know yet
    {Step::decided, "decided", true, false, true},  // the source knows, and has not acted
    {Step::pages, "pages", true, true, false},      // post-copy: it runs there, and its memory follows
    {Step::finish, "finish", true, true, false},    // the log's last lines, the restart policy, the source's end
}};

constexpr const StepInfo& info_of(Step step) { return kSteps[static_cast<std::size_t>(step)]; }
constexpr std::optional<Step> step_named(std::string_view name) {
  for (const StepInfo& info : kSteps) {
    if (info.name == name) {
      return info.step;
    }
  }
  return std::nullopt;
}

constexpr std::string_view name_of(Role role) { return role == Role::source ? "source" : "destination"; }

// A test names the place where a side of a move is to stand still, in the environment: FERRY_STOP_AT is
// "source:given", say.  The process stops itself there with SIGSTOP, so that it can be killed, or let go on.
void stop_if_asked(Role role, Step step);

}  // namespace ferry::migrate
