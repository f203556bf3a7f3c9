#include "migrate/logbook.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <tuple>

#include "base/log.h"
#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::migrate {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kRemembered = 24 * 3600;  // seconds after its end
constexpr std::size_t kMostEnded = 50;

std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string path_of(const std::string& directory, const std::string& move, Role role) {
  return fmt::format("{}/{}.{}", directory, move, name_of(role));
}

Result<std::uint64_t> start_time_of(pid_t pid) {
  FERRY_TRY(const std::string text, sys::read_file(fmt::format("/proc/{}/stat", pid)));
  FERRY_TRY(const sys::Stat stat, sys::parse_stat(text));
  if (stat.state == 'Z' || stat.state == 'X') {
    return fail(Kind::gone, "process {} has ended", pid);
  }
  return stat.start_time;
}

constexpr std::string_view name_of(Outcome outcome) { return outcome == Outcome::moved ? "moved" : "stayed"; }

}  // namespace

std::string encode_entry(const Entry& e) {
  Json out = {{"version", 1},
              {"move", e.move},
              {"role", migrate::name_of(e.role)},
              {"container", e.container_id},
              {"name", e.container_name},
              {"peer", e.peer},
              {"rsh", e.rsh},
              {"docker_host", e.docker_host},
              {"pid", e.pid},
              {"start_time", e.start_time},
              {"began", e.began},
              {"changed", e.changed},
              {"step", info_of(e.step).name},
              {"round", e.round},
              {"pages_left", e.pages_left},
              {"pages_due", e.pages_due},
              {"disconnected", e.disconnected},
              {"in_doubt", e.in_doubt},
              {"restarts_suspended", e.restarts_suspended},
              {"restart_policy", e.restart_policy},
              {"restart_retries", e.restart_retries},
              {"keep_source", e.keep_source},
              {"processor_quota", e.processor_quota},
              {"freeze_cgroup", e.freeze_cgroup},
              {"volumes_made", e.volumes_made},
              {"put_aside", e.put_aside},
              {"root", e.root},
              {"shim", e.shim},
              {"reason", e.reason},
              {"ended", e.ended}};
  if (e.outcome.has_value()) {
    out["outcome"] = name_of(*e.outcome);
  }
  return out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<Entry> decode_entry(std::string_view json) {
  const Json root = Json::parse(json, nullptr, false);
  if (!root.is_object() || root.value("version", Json()) != 1) {
    return fail(Kind::corrupt, "the entry is damaged, or from another version of ferry");
  }
  try {
    Entry e;
    e.move = root.at("move").get<std::string>();
    FERRY_CHECK(check_move_id(e.move));
    e.role = root.at("role").get<std::string>() == migrate::name_of(Role::source) ? Role::source : Role::destination;
    e.container_id = root.at("container").get<std::string>();
    e.container_name = root.at("name").get<std::string>();
    e.peer = root.at("peer").get<std::string>();
    e.rsh = root.at("rsh").get<std::string>();
    e.docker_host = root.at("docker_host").get<std::string>();
    e.pid = root.at("pid").get<pid_t>();
    e.start_time = root.at("start_time").get<std::uint64_t>();
    e.began = root.at("began").get<std::int64_t>();
    e.changed = root.at("changed").get<std::int64_t>();
    const auto step = step_named(root.at("step").get<std::string>());
    if (!step.has_value()) {
      return fail(Kind::corrupt, "the entry names a step that this ferry does not know");
    }
    e.step = *step;
    e.round = root.at("round").get<int>();
    e.pages_left = root.at("pages_left").get<std::uint64_t>();
    e.pages_due = root.value("pages_due", false);
    e.disconnected = root.value("disconnected", false);
    e.in_doubt = root.at("in_doubt").get<bool>();
    e.restarts_suspended = root.at("restarts_suspended").get<bool>();
    e.restart_policy = root.at("restart_policy").get<std::string>();
    e.restart_retries = root.at("restart_retries").get<std::int64_t>();
    e.keep_source = root.at("keep_source").get<bool>();
    e.processor_quota = root.value("processor_quota", "");
    e.freeze_cgroup = root.at("freeze_cgroup").get<std::string>();
    e.volumes_made = root.value("volumes_made", std::vector<std::string>());
    e.put_aside = root.value("put_aside", std::vector<std::string>());
    e.root = root.at("root").get<pid_t>();
    e.shim = root.at("shim").get<pid_t>();
    e.reason = root.at("reason").get<std::string>();
    e.ended = root.at("ended").get<std::int64_t>();
    if (const auto outcome = root.find("outcome"); outcome != root.end()) {
      e.outcome = outcome->get<std::string>() == name_of(Outcome::moved) ? Outcome::moved : Outcome::stayed;
    }
    return e;
  } catch (const Json::exception& problem) {
    return fail(Kind::corrupt, "the entry is incomplete: {}", std::string_view(problem.what()));
  }
}

Result<void> save_entry(const Entry& entry, bool sync, const std::string& directory) {
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  if (failed) {
    return fail(kind_of_errno(failed.value()), "creating {}: {}", directory, failed.message());
  }
  const std::string path = path_of(directory, entry.move, entry.role);
  const std::string draft = path + ".new";
  FERRY_TRY(const UniqueFd file, sys::open(draft, O_WRONLY | O_CREAT | O_TRUNC, 0600));
  const std::string text = encode_entry(entry);
  FERRY_CHECK(sys::write_all(file.get(), text.data(), text.size(), draft));
  if (sync && ::fsync(file.get()) != 0) {
    return sys_fail(fmt::format("fsync({})", draft));
  }
  if (::rename(draft.c_str(), path.c_str()) != 0) {
    return sys_fail(fmt::format("rename({})", draft));
  }
  if (sync) {
    FERRY_TRY(const UniqueFd folder, sys::open(directory, O_RDONLY | O_DIRECTORY));
    if (::fsync(folder.get()) != 0) {
      return sys_fail(fmt::format("fsync({})", directory));
    }
  }
  return {};
}

Result<Entry> read_entry(const std::string& move, Role role, const std::string& directory) {
  FERRY_CHECK(check_move_id(move));
  const std::string path = path_of(directory, move, role);
  FERRY_TRY(const std::string text, sys::read_file(path));
  return decode_entry(text).during("reading {}", path);
}

Result<std::vector<Entry>> entries(const std::string& directory) {
  std::vector<Entry> out;
  auto folder = sys::open(directory, O_RDONLY | O_DIRECTORY);
  if (!folder && folder.error().kind == Kind::gone) {
    return out;
  }
  FERRY_TRY(const UniqueFd open_folder, std::move(folder));
  FERRY_TRY(const auto names, sys::list_directory(open_folder.get(), "."));
  for (const std::string& name : names) {
    for (const Role role : {Role::source, Role::destination}) {
      const std::string suffix = "." + std::string(migrate::name_of(role));
      if (!name.ends_with(suffix)) {
        continue;
      }
      auto entry = read_entry(name.substr(0, name.size() - suffix.size()), role, directory);
      if (entry.has_value()) {
        out.push_back(std::move(*entry));
      } else if (entry.error().kind != Kind::gone) {
        log::warning("{}", entry.error().message());
      }
    }
  }
  std::sort(out.begin(), out.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.began, a.move, a.role) < std::tie(b.began, b.move, b.role);
  });
  return out;
}

void forget_old_entries(const std::string& directory) {
  auto all = entries(directory);
  if (!all) {
    return;
  }
  std::erase_if(*all, [](const Entry& e) { return e.ended == 0; });
  std::sort(all->begin(), all->end(), [](const Entry& a, const Entry& b) { return a.ended > b.ended; });
  for (std::size_t i = 0; i < all->size(); ++i) {
    const Entry& entry = (*all)[i];
    if (i >= kMostEnded || entry.ended + kRemembered < now()) {
      ::unlink(path_of(directory, entry.move, entry.role).c_str());
    }
  }
}

bool is_at_work(const Entry& entry) {
  if (entry.pid <= 0) {
    return false;
  }
  const auto start_time = start_time_of(entry.pid);
  return start_time.has_value() && *start_time == entry.start_time;
}

Result<UniqueFd> lock_move(const std::string& move, const std::string& directory) {
  FERRY_CHECK(check_move_id(move));
  const std::string path = fmt::format("{}/{}.lock", directory, move);
  for (;;) {
    FERRY_TRY(UniqueFd fd, sys::open(path, O_RDWR | O_CREAT, 0600));
    while (::flock(fd.get(), LOCK_EX) != 0) {
      if (errno != EINTR) {
        return sys_fail(fmt::format("flock({})", path));
      }
    }
    // Whoever had it before us has removed it if there is nothing left to put right.
    struct stat info {};
    if (::fstat(fd.get(), &info) == 0 && info.st_nlink > 0) {
      return fd;
    }
  }
}

Result<Logbook> Logbook::open(Entry entry) {
  entry.pid = ::getpid();
  FERRY_TRY(entry.start_time, start_time_of(entry.pid));
  entry.began = entry.changed = now();
  const char* const docker_host = ::getenv("DOCKER_HOST");
  entry.docker_host = docker_host == nullptr ? "" : docker_host;
  forget_old_entries();
  FERRY_CHECK(save_entry(entry, false).during("noting the move"));
  return Logbook(std::move(entry));
}

void Logbook::note() {
  entry_.changed = now();
  if (auto saved = save_entry(entry_, false); !saved) {
    log::debug("{}", saved.error().message());
  }
}

void Logbook::step(Step step) {
  entry_.step = step;
  if (!info_of(step).frozen) {
    note();
  }
  stop_if_asked(entry_.role, step);
}

void Logbook::round(int number, std::uint64_t pages_left) {
  entry_.round = number;
  entry_.pages_left = pages_left;
  note();
}

void Logbook::doubt() {
  entry_.in_doubt = true;
  note();
}

void Logbook::fetching(std::uint64_t pages_left, bool connected) {
  if (entry_.pages_left != pages_left || entry_.disconnected == connected) {
    entry_.pages_left = pages_left;
    entry_.disconnected = !connected;
    note();
  }
}

Result<void> Logbook::change(const std::function<void(Entry&)>& by) {
  by(entry_);
  entry_.changed = now();
  return save_entry(entry_, true);
}

Result<void> Logbook::decide(Outcome outcome) {
  entry_.outcome = outcome;
  entry_.in_doubt = false;
  entry_.changed = now();
  return save_entry(entry_, false);
}

void Logbook::close(Outcome outcome, const std::string& reason) {
  entry_.outcome = entry_.outcome.value_or(outcome);
  entry_.in_doubt = false;
  entry_.reason = reason;
  entry_.ended = now();
  note();
}

}  // namespace ferry::migrate
