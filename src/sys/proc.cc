#include "sys/proc.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <charconv>

#include "sys/file.h"

namespace ferry::sys {
namespace {

// Cuts the next word off `text`.
std::string_view next_word(std::string_view& text) {
  const auto begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) {
    text = {};
    return {};
  }
  const auto end = std::min(text.find_first_of(" \t", begin), text.size());
  const auto word = text.substr(begin, end - begin);
  text.remove_prefix(end);
  return word;
}

std::string_view next_line(std::string_view& text) {
  const auto end = text.find('\n');
  const auto line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return line;
}

std::string_view trimmed(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t");
  return begin == std::string_view::npos ? std::string_view{} : text.substr(begin);
}

template <class T>
std::vector<T> numbers(std::string_view text) {
  std::vector<T> out;
  for (auto word = next_word(text); !word.empty(); word = next_word(text)) {
    out.push_back(static_cast<T>(parse_number(word).value_or(0)));
  }
  return out;
}

}  // namespace

std::optional<std::uint64_t> parse_number(std::string_view text, int base) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty()) {
    return std::nullopt;
  }
  return value;
}

Result<UniqueFd> open_proc(HostPid pid) { return open(fmt::format("/proc/{}", pid), O_PATH | O_DIRECTORY); }

Result<UniqueFd> open_proc_task(HostPid pid, HostPid tid) {
  return open(fmt::format("/proc/{}/task/{}", pid, tid), O_PATH | O_DIRECTORY);
}

Result<Stat> parse_stat(std::string_view text) {
  // The name stands in parentheses and may itself hold blanks and parentheses: the last one closes it.
  const auto open = text.find('(');
  const auto close = text.rfind(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) {
    return fail(Kind::corrupt, "/proc/PID/stat without a name: \"{}\"", text);
  }
  Stat s;
  s.pid = static_cast<pid_t>(parse_number(text.substr(0, open - 1)).value_or(0));
  s.comm = std::string(text.substr(open + 1, close - open - 1));
  std::string_view rest = text.substr(close + 1);
  if (!rest.empty() && rest.back() == '\n') {
    rest.remove_suffix(1);
  }
  std::vector<std::string_view> fields;  // fields[0] is field 3 of proc(5)
  for (auto word = next_word(rest); !word.empty(); word = next_word(rest)) {
    fields.push_back(word);
  }
  if (fields.size() < 50) {
    return fail(Kind::corrupt, "/proc/PID/stat has {} fields", fields.size() + 2);
  }
  const auto number = [&](std::size_t field) {
    const auto word = fields[field - 3];
    if (!word.empty() && word.front() == '-') {
      return static_cast<std::uint64_t>(-static_cast<std::int64_t>(parse_number(word.substr(1)).value_or(0)));
    }
    return parse_number(word).value_or(0);
  };
  s.state = fields[0].front();
  s.ppid = static_cast<pid_t>(number(4));
  s.pgrp = static_cast<pid_t>(number(5));
  s.session = static_cast<pid_t>(number(6));
  s.tty_nr = static_cast<std::int32_t>(number(7));
  s.flags = static_cast<std::uint32_t>(number(9));
  s.nice = static_cast<std::int64_t>(number(19));
  s.start_time = number(22);
  s.start_code = number(26);
  s.end_code = number(27);
  s.start_stack = number(28);
  s.exit_signal = static_cast<int>(number(38));
  s.start_data = number(45);
  s.end_data = number(46);
  s.start_brk = number(47);
  s.arg_start = number(48);
  s.arg_end = number(49);
  s.env_start = number(50);
  s.env_end = number(51);
  s.exit_code = static_cast<int>(number(52));
  return s;
}

Result<Status> parse_status(std::string_view text) {
  Status s;
  bool seen_tgid = false;
  while (!text.empty()) {
    const auto line = next_line(text);
    const auto colon = line.find(':');
    if (colon == std::string_view::npos) {
      continue;
    }
    const auto key = line.substr(0, colon);
    const auto value = trimmed(line.substr(colon + 1));
    const auto hex = [&] { return parse_number(value, 16).value_or(0); };
    const auto four = [&](std::array<std::uint32_t, 4>& out) {
      const auto list = numbers<std::uint32_t>(value);
      for (std::size_t i = 0; i < 4 && i < list.size(); ++i) {
        out[i] = list[i];
      }
    };
    if (key == "Umask") {
      s.umask = static_cast<std::uint32_t>(parse_number(value, 8).value_or(0));
    } else if (key == "Tgid") {
      s.tgid = static_cast<pid_t>(parse_number(value).value_or(0));
      seen_tgid = true;
    } else if (key == "TracerPid") {
      s.tracer = static_cast<pid_t>(parse_number(value).value_or(0));
    } else if (key == "Uid") {
      four(s.uid);
    } else if (key == "Gid") {
      four(s.gid);
    } else if (key == "Groups") {
      s.groups = numbers<std::uint32_t>(value);
    } else if (key == "NStgid") {
      s.ns_tgid = numbers<pid_t>(value);
    } else if (key == "NSpid") {
      s.ns_pid = numbers<pid_t>(value);
    } else if (key == "NSpgid") {
      s.ns_pgid = numbers<pid_t>(value);
    } else if (key == "NSsid") {
      s.ns_sid = numbers<pid_t>(value);
    } else if (key == "SigPnd") {
      s.sig_pending = hex();
    } else if (key == "ShdPnd") {
      s.shared_pending = hex();
    } else if (key == "SigBlk") {
      s.sig_blocked = hex();
    } else if (key == "SigIgn") {
      s.sig_ignored = hex();
    } else if (key == "SigCgt") {
      s.sig_caught = hex();
    } else if (key == "CapInh") {
      s.cap_inh = hex();
    } else if (key == "CapPrm") {
      s.cap_prm = hex();
    } else if (key == "CapEff") {
      s.cap_eff = hex();
    } else if (key == "CapBnd") {
      s.cap_bnd = hex();
    } else if (key == "CapAmb") {
      s.cap_amb = hex();
    } else if (key == "NoNewPrivs") {
      s.no_new_privs = value == "1";
    } else if (key == "Seccomp") {
      s.seccomp = static_cast<int>(parse_number(value).value_or(0));
    } else if (key == "Seccomp_filters") {
      s.seccomp_filters = static_cast<int>(parse_number(value).value_or(0));
    } else if (key == "THP_enabled") {
      s.thp_enabled = value == "1";
    } else if (key == "Threads") {
      s.threads = static_cast<int>(parse_number(value).value_or(0));
    }
  }
  if (!seen_tgid) {
    return fail(Kind::corrupt, "/proc/PID/status without Tgid");
  }
  return s;
}

Result<std::vector<Mapping>> parse_maps(std::string_view text) {
  std::vector<Mapping> out;
  while (!text.empty()) {
    const auto line = next_line(text);
    if (line.empty()) {
      continue;
    }
    std::string_view rest = line;
    const auto range = next_word(rest);
    if (range.back() == ':') {  // a "Key: value" line of smaps
      if (range == "VmFlags:" && !out.empty()) {
        out.back().vm_flags = " " + std::string(trimmed(rest));
        if (out.back().vm_flags.back() != ' ') {
          out.back().vm_flags += ' ';
        }
      } else if (range == "Size:") {
        // The first of some twenty lines of which only the last is wanted (show_smap in fs/proc/task_mmu.c).
        const std::size_t flags = text.find("\nVmFlags:");
        text.remove_prefix(flags == std::string_view::npos ? 0 : flags + 1);
      }
      continue;
    }
    const auto dash = range.find('-');
    const auto perms = next_word(rest);
    const auto offset = parse_number(next_word(rest), 16);
    const auto device = next_word(rest);
    const auto inode = parse_number(next_word(rest));
    const auto colon = device.find(':');
    if (dash == std::string_view::npos || perms.size() != 4 || !offset || !inode || colon == std::string_view::npos) {
      return fail(Kind::corrupt, "a line of maps cannot be read: \"{}\"", line);
    }
    const auto start = parse_number(range.substr(0, dash), 16);
    const auto end = parse_number(range.substr(dash + 1), 16);
    const auto major = parse_number(device.substr(0, colon), 16);
    const auto minor = parse_number(device.substr(colon + 1), 16);
    if (!start || !end || !major || !minor || *end <= *start) {
      return fail(Kind::corrupt, "a line of maps cannot be read: \"{}\"", line);
    }
    Mapping m;
    m.start = *start;
    m.end = *end;
    m.prot = (perms[0] == 'r' ? PROT_READ : 0) | (perms[1] == 'w' ? PROT_WRITE : 0) | (perms[2] == 'x' ? PROT_EXEC : 0);
    m.shared = perms[3] == 's' || perms[3] == 'S';
    m.offset = *offset;
    m.dev = *major << 20 | *minor;
    m.inode = *inode;
    auto name = trimmed(rest);
    constexpr std::string_view kDeleted = " (deleted)";
    if (name.size() > kDeleted.size() && name.substr(name.size() - kDeleted.size()) == kDeleted) {
      name.remove_suffix(kDeleted.size());
      m.deleted = true;
    }
    m.name = std::string(name);
    out.push_back(std::move(m));
  }
  return out;
}

Result<std::vector<HostPid>> parse_children(std::string_view text) {
  std::vector<HostPid> out;
  if (!text.empty() && text.back() == '\n') {
    text.remove_suffix(1);
  }
  for (auto word = next_word(text); !word.empty(); word = next_word(text)) {
    const auto pid = parse_number(word);
    if (!pid) {
      return fail(Kind::corrupt, "/proc/PID/task/TID/children holds \"{}\"", word);
    }
    out.emplace_back(static_cast<pid_t>(*pid));
  }
  return out;
}

Result<std::vector<int>> numeric_entries(int directory, const std::string& path) {
  FERRY_TRY(const auto names, list_directory(directory, path));
  std::vector<int> out;
  for (const auto& name : names) {
    if (const auto n = parse_number(name)) {
      out.push_back(static_cast<int>(*n));
    }
  }
  return out;
}

std::optional<std::string> FdInfo::get(std::string_view key) const {
  for (const auto& [k, v] : rest) {
    if (k == key) {
      return v;
    }
  }
  return std::nullopt;
}

Result<FdInfo> parse_fdinfo(std::string_view text) {
  FdInfo out;
  bool seen_flags = false;
  while (!text.empty()) {
    const auto line = next_line(text);
    const auto colon = line.find(':');
    if (colon == std::string_view::npos) {
      // inotify and fanotify lines: "inotify wd:1 ino:…" always hold a colon; anything else is new to us.
      continue;
    }
    const auto key = line.substr(0, colon);
    const auto value = trimmed(line.substr(colon + 1));
    if (key == "pos") {
      out.pos = parse_number(value).value_or(0);
    } else if (key == "flags") {
      out.flags = static_cast<std::uint32_t>(parse_number(value, 8).value_or(0));
      seen_flags = true;
    } else if (key == "mnt_id") {
      out.mnt_id = static_cast<int>(parse_number(value).value_or(0));
    } else if (key == "ino") {
      out.ino = parse_number(value).value_or(0);
    } else {
      out.rest.emplace_back(key, value);
    }
  }
  if (!seen_flags) {
    return fail(Kind::corrupt, "fdinfo without flags");
  }
  return out;
}

}  // namespace ferry::sys
