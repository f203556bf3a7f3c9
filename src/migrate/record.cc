#include "migrate/record.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "container/random_id.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

using Json = nlohmann::json;

Result<UniqueFd> open_directory(const std::string& directory) {
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  if (failed) {
    return fail(kind_of_errno(failed.value()), "creating {}: {}", directory, failed.message());
  }
  return sys::open(directory, O_RDONLY | O_DIRECTORY);
}

Result<void> sync(int fd, const std::string& path) {
  if (::fsync(fd) != 0) {
    return sys_fail(fmt::format("fsync({})", path));
  }
  return {};
}

std::string text_of(Decision decision) { return decision == Decision::taken ? "taken\n" : "refused\n"; }

Result<Decision> decision_in(std::string_view text, const std::string& path) {
  for (const Decision decision : {Decision::taken, Decision::refused}) {
    if (text == text_of(decision)) {
      return decision;
    }
  }
  return fail(Kind::corrupt, "{} says neither \"taken\" nor \"refused\"", path);
}

void remove(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    log::warning("{} could not be removed: {}", path, std::error_code(errno, std::generic_category()).message());
  }
}

}  // namespace

Result<Draft> Draft::write(const std::string& directory, std::string name, std::string text) {
  Draft out(directory, std::move(name), std::move(text));
  FERRY_TRY(out.folder_, open_directory(directory));
  auto file = sys::open_at(out.folder_.get(), ".", O_WRONLY | O_TMPFILE, 0600);
  if (!file && (file.error().os_errno == EOPNOTSUPP || file.error().os_errno == EISDIR)) {
    FERRY_TRY(const std::string unique, container::random_id());
    file = sys::open_at(out.folder_.get(), "." + unique, O_WRONLY | O_CREAT | O_EXCL, 0600);
    out.working_name_ = "." + unique;
  }
  FERRY_TRY(out.file_, std::move(file));
  FERRY_CHECK(sys::write_all(out.file_.get(), out.text_.data(), out.text_.size(), out.path()));
  FERRY_CHECK(sync(out.file_.get(), out.path()));
  return out;
}

Draft::~Draft() {
  if (folder_ && !working_name_.empty()) {
    ::unlinkat(folder_.get(), working_name_.c_str(), 0);
  }
}

Result<bool> Draft::publish() {
  // Through /proc, since AT_EMPTY_PATH asks for more privileges (open(2), O_TMPFILE).
  const int linked = working_name_.empty()
                         ? ::linkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", file_.get()).c_str(), folder_.get(),
                                    name_.c_str(), AT_SYMLINK_FOLLOW)
                         : ::linkat(folder_.get(), working_name_.c_str(), folder_.get(), name_.c_str(), 0);
  if (linked != 0) {
    if (errno == EEXIST) {
      return false;
    }
    return sys_fail(fmt::format("linkat({})", path()));
  }
  FERRY_CHECK(sync(folder_.get(), directory_));
  return true;
}

Result<void> check_move_id(std::string_view id) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (id.size() != 32 || !std::all_of(id.begin(), id.end(), is_digit)) {
    return fail(Kind::invalid, "\"{}\" is not the id of a move", id);
  }
  return {};
}

Result<std::optional<Decision>> decision_of(const std::string& id, const std::string& directory) {
  FERRY_CHECK(check_move_id(id));
  const std::string path = directory + "/" + id + ".decided";
  auto text = sys::read_file(path);
  if (!text && text.error().kind == Kind::gone) {
    return std::optional<Decision>();
  }
  FERRY_CHECK(text);
  FERRY_TRY(const Decision decision, decision_in(*text, path));
  return std::optional(decision);
}

Result<Draft> draft_decision(const std::string& id, Decision wanted, const std::string& directory) {
  FERRY_CHECK(check_move_id(id));
  return Draft::write(directory, id + ".decided", text_of(wanted));
}

Result<Decision> decide(Draft& draft) {
  FERRY_TRY(const bool ours, draft.publish());
  if (ours) {
    return decision_in(draft.text(), draft.path());
  }
  auto text = sys::read_file(draft.path());
  if (!text && text.error().kind == Kind::gone) {
    return fail(Kind::gone, "{} was removed while it was decided", draft.path());
  }
  FERRY_CHECK(text);
  return decision_in(*text, draft.path());
}

Result<Decision> decide(const std::string& id, Decision wanted, const std::string& directory) {
  FERRY_TRY(Draft draft, draft_decision(id, wanted, directory));
  return decide(draft);
}

void forget_decision(const std::string& id, const std::string& directory) {
  if (check_move_id(id)) {
    remove(directory + "/" + id + ".decided");
  }
}

std::string encode_given(const GivenRecord& record) {
  // Who does not know of post-copy would kill the tree before its memory has been fetched.
  const Json out = {{"version", record.post_copy ? 2 : 1},
                    {"post_copy", record.post_copy},
                    {"move", record.move},
                    {"container", record.container_id},
                    {"name", record.container_name},
                    {"destination", record.destination},
                    {"rsh", record.rsh},
                    {"docker_host", record.docker_host},
                    {"freeze_cgroup", record.freeze_cgroup},
                    {"restart_policy", record.restart_policy},
                    {"restart_retries", record.restart_retries},
                    {"keep_source", record.keep_source}};
  return out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<GivenRecord> decode_given(std::string_view json) {
  const Json root = Json::parse(json, nullptr, false);
  const Json version = root.is_object() ? root.value("version", Json()) : Json();
  if (version != 1 && version != 2) {
    return fail(Kind::corrupt, "the record of the move is damaged, or from another version of ferry");
  }
  GivenRecord out;
  for (const auto& [key, field] :
       {std::pair{"move", &out.move}, std::pair{"container", &out.container_id}, std::pair{"name", &out.container_name},
        std::pair{"destination", &out.destination}, std::pair{"rsh", &out.rsh},
        std::pair{"docker_host", &out.docker_host}, std::pair{"freeze_cgroup", &out.freeze_cgroup},
        std::pair{"restart_policy", &out.restart_policy}}) {
    const Json value = root.value(key, Json());
    if (!value.is_string()) {
      // Not a const char*: clang could take that for fail()'s own last parameter.
      return fail(Kind::corrupt, "the record of the move lacks \"{}\"", std::string_view(key));
    }
    *field = value.get<std::string>();
  }
  const Json retries = root.value("restart_retries", Json());
  const Json keep = root.value("keep_source", Json());
  if (!retries.is_number_integer() || !keep.is_boolean()) {
    return fail(Kind::corrupt, "the record of the move is incomplete");
  }
  out.restart_retries = retries.get<long>();
  out.keep_source = keep.get<bool>();
  if (version == 2) {
    const Json late = root.value("post_copy", Json());
    if (!late.is_boolean()) {
      return fail(Kind::corrupt, "the record of the move does not say whether its memory was fetched");
    }
    out.post_copy = late.get<bool>();
  }
  return out;
}

Result<void> write_given(const GivenRecord& record, const std::string& directory) {
  FERRY_CHECK(check_move_id(record.move));
  FERRY_TRY(Draft draft, Draft::write(directory, record.move + ".given", encode_given(record)));
  FERRY_TRY(const bool ours, draft.publish());
  if (!ours) {
    return fail(Kind::invalid, "move {} was given away already", record.move);
  }
  return {};
}

Result<GivenRecord> read_given(const std::string& id, const std::string& directory) {
  FERRY_CHECK(check_move_id(id));
  auto text = sys::read_file(directory + "/" + id + ".given");
  if (!text && text.error().kind == Kind::gone) {
    return fail(Kind::gone, "no move {} is waiting on this host", id);
  }
  FERRY_CHECK(text);
  return decode_given(*text).during("reading {}/{}.given", directory, id);
}

Result<std::vector<std::string>> given_moves(const std::string& directory) {
  FERRY_TRY(const UniqueFd folder, open_directory(directory));
  FERRY_TRY(const auto names, sys::list_directory(folder.get(), "."));
  std::vector<std::string> out;
  for (const std::string& name : names) {
    if (name.ends_with(".given") && check_move_id(name.substr(0, name.size() - 6))) {
      out.push_back(name.substr(0, name.size() - 6));
    }
  }
  return out;
}

void forget_given(const std::string& id, const std::string& directory) {
  if (check_move_id(id)) {
    remove(directory + "/" + id + ".given");
  }
}

}  // namespace ferry::migrate
