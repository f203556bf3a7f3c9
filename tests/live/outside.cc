#include "live/outside.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

namespace ferry::live {
namespace {

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

std::string link(const std::string& path) {
  std::array<char, 4096> text{};
  const ssize_t size = ::readlink(path.c_str(), text.data(), text.size());
  return size < 0 ? "?" : std::string(text.data(), static_cast<std::size_t>(size));
}

std::vector<long> numbers_in(const std::string& directory) {
  std::vector<long> out;
  if (DIR* dir = ::opendir(directory.c_str()); dir != nullptr) {
    while (const dirent* entry = ::readdir(dir)) {
      if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') {
        out.push_back(std::strtol(entry->d_name, nullptr, 10));
      }
    }
    ::closedir(dir);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    out.push_back(line);
  }
  return out;
}

// Inode numbers of pipes, sockets and namespaces, renamed in the order in which they are met, so that
// what was shared has to be shared again.
class Renamer {
 public:
  std::string operator()(const std::string& text) {
    // open(2), O_TMPFILE: an unnamed file is called by its inode number.
    if (const std::size_t hash = text.rfind("/#");
        hash != std::string::npos && text.find(" (deleted)", hash) != std::string::npos) {
      return text.substr(0, hash) + "/#unnamed (deleted)";
    }
    const std::size_t open = text.find(":[");
    if (open == std::string::npos || text.back() != ']') {
      return text;
    }
    return text.substr(0, open) + ":[" + std::to_string(names_.emplace(text, names_.size()).first->second) + "]";
  }

 private:
  std::map<std::string, std::size_t> names_;
};

// Range, protection, offset and name of each mapping, with its flags.
std::string mappings(const std::string& smaps, Renamer& rename) {
  struct Mapping {
    std::string start, end, rest, flags;
    bool anonymous = false;
  };
  std::vector<Mapping> all;
  for (const std::string& line : lines_of(smaps)) {
    if (line.rfind("VmFlags:", 0) == 0) {
      std::istringstream words(line.substr(8));
      for (std::string flag; words >> flag;) {
        // The first two track writes, which is not state.  The third one only says that somewhere in the mapping there
        // may be guard pages, and stays when neighbours are joined; where they are is seen from inside.
        if (flag != "sd" && flag != "uw" && flag != "gu") {
          all.back().flags += " " + flag;
        }
      }
      // Neighbours are one to a program; that one of them grew while writes were tracked keeps them apart.
      if (Mapping& last = all.back(); all.size() > 1) {
        Mapping& before = all[all.size() - 2];
        if (before.end == last.start && before.rest == last.rest && before.flags == last.flags && last.anonymous) {
          before.end = last.end;
          all.pop_back();
        }
      }
      continue;
    }
    std::istringstream words(line);
    std::string range, perms, offset, device, inode, name;
    words >> range >> perms >> offset >> device >> inode;
    if (range.find('-') == std::string::npos || perms.size() != 4) {
      continue;
    }
    std::getline(words >> std::ws, name);
    const std::size_t dash = range.find('-');
    all.push_back(
        {range.substr(0, dash), range.substr(dash + 1), perms + " " + offset + " " + rename(name), "", inode == "0"});
  }
  std::string out;
  for (const Mapping& m : all) {
    out.append(m.start).append("-").append(m.end).append(" ").append(m.rest).append(m.flags).append("\n");
  }
  return out;
}

std::string status_lines(const std::string& status, std::string& ns_pid) {
  const bool zombie = status.find("State:\tZ") != std::string::npos;  // it will not handle a signal any more
  static constexpr std::array kKept = {"Name",    "Umask",           "Uid",         "Gid",     "Groups",
                                       "NStgid",  "NSpid",           "NSpgid",      "NSsid",   "SigPnd",
                                       "ShdPnd",  "SigBlk",          "SigIgn",      "SigCgt",  "CapInh",
                                       "CapPrm",  "CapEff",          "CapBnd",      "CapAmb",  "NoNewPrivs",
                                       "Seccomp", "Seccomp_filters", "THP_enabled", "Threads", "Cpus_allowed"};
  std::string out;
  for (const std::string& line : lines_of(status)) {
    const std::string key = line.substr(0, line.find(':'));
    if (std::find(kKept.begin(), kKept.end(), key) == kKept.end() ||
        (zombie && (key.rfind("Sig", 0) == 0 || key == "ShdPnd"))) {
      continue;
    }
    if (key.rfind("NS", 0) == 0) {
      const std::string inner = line.substr(line.find_last_of('\t') + 1);
      if (key == "NSpid") {
        ns_pid = inner;
      }
      out += key + ": " + inner + "\n";
      continue;
    }
    out += line + "\n";
  }
  return out;
}

// Fields of /proc/PID/stat by their number in proc(5): priority, nice, threads, start_code, end_code,
// start_stack, exit_signal, rt_priority, policy, start_data … env_end.
std::string stat_fields(const std::string& stat) {
  static const std::set<int> kKept = {18, 19, 20, 26, 27, 28, 38, 40, 41, 45, 46, 47, 48, 49, 50, 51};
  std::istringstream words(stat.substr(std::min(stat.rfind(')'), stat.size() - 1) + 1));
  std::string out, word;
  for (int field = 3; words >> word; ++field) {
    if (kKept.count(field) != 0) {
      out += std::to_string(field) + "=" + word + "\n";
    }
  }
  return out;
}

std::string descriptors(const std::string& proc, Renamer& rename) {
  std::string out;
  for (const long fd : numbers_in(proc + "/fd")) {
    out += std::to_string(fd) + " -> " + rename(link(proc + "/fd/" + std::to_string(fd)));
    for (const std::string& line : lines_of(read(proc + "/fdinfo/" + std::to_string(fd)))) {
      if (line.rfind("pos:", 0) == 0 || line.rfind("flags:", 0) == 0) {
        out += " " + line;
      }
    }
    out += "\n";
  }
  return out;
}

// Sorted: their order is that of making, which a restore need not repeat.
std::string mounts(const std::string& mountinfo) {
  std::set<std::string> sorted;
  for (const std::string& line : lines_of(mountinfo)) {
    std::istringstream words(line);
    std::string out, id, parent, device, word;
    words >> id >> parent >> device;
    while (words >> word) {
      const std::size_t colon = word.find(':');
      const bool peer = word.rfind("shared:", 0) == 0 || word.rfind("master:", 0) == 0;
      const bool bound_namespace = colon != std::string::npos && word.find('[', colon) == colon + 1;  // uts:[402653…]
      out += " " + (peer || bound_namespace ? word.substr(0, colon) : word);
    }
    sorted.insert(out);
  }
  std::string all;
  for (const std::string& line : sorted) {
    all += line + "\n";
  }
  return all;
}

std::string namespaces(const std::string& proc) {
  std::string out;
  for (const char* kind : {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}) {
    const bool ours = link(proc + "/ns/" + kind) == link(std::string("/proc/self/ns/") + kind);
    out += std::string(kind) + (ours ? " ours\n" : " its own\n");
  }
  return out;
}

// proc(5) /proc/PID/timers, without the host's number of the notified task; one that has ended is not told.
std::string posix_timers(const std::string& proc) {
  std::string out;
  for (std::string line : lines_of(read(proc + "/timers"))) {
    if (line.rfind("notify:", 0) == 0) {
      const std::string number = line.substr(line.rfind('.') + 1);
      const bool dead =
          line.find("/tid.") != std::string::npos && ::access((proc + "/task/" + number).c_str(), F_OK) != 0;
      line = dead || line.find("none/") != std::string::npos ? "notify: none" : line.substr(0, line.rfind('.'));
    }
    out += line + "\n";
  }
  return out;
}

std::string in_hex(const std::string& bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto b = static_cast<unsigned char>(bytes[i]);
    out += kDigits[b >> 4];
    out += kDigits[b & 15];
    out += i % 16 == 15 ? "\n" : "";
  }
  return out;
}

void look(pid_t pid, const std::string& parent, Renamer& rename, View& view) {
  const std::string proc = "/proc/" + std::to_string(pid);
  std::string ns_pid;
  (void)status_lines(read(proc + "/status"), ns_pid);
  const std::string me = "pid " + ns_pid + " ";
  view[me + "parent"] = parent;
  view[me + "mappings"] = mappings(read(proc + "/smaps"), rename);
  view[me + "descriptors"] = descriptors(proc, rename);
  view[me + "namespaces"] = namespaces(proc);
  if (link(proc + "/ns/mnt") != link("/proc/self/ns/mnt")) {
    view[me + "mounts"] = mounts(read(proc + "/mountinfo"));
  }
  for (const char* name : {"exe", "cwd", "root"}) {
    view[me + name] = link(proc + "/" + name);
  }
  view[me + "auxv"] = in_hex(read(proc + "/auxv"));
  for (const char* name :
       {"cmdline", "environ", "limits", "oom_score_adj", "personality", "loginuid", "cgroup", "coredump_filter"}) {
    view[me + name] = read(proc + "/" + name);
  }
  view[me + "timers"] = posix_timers(proc);
  for (const long tid : numbers_in(proc + "/task")) {
    const std::string task = proc + "/task/" + std::to_string(tid);
    std::string ns_tid;
    const std::string status = status_lines(read(task + "/status"), ns_tid);
    view[me + "tid " + ns_tid + " status"] = status;
    view[me + "tid " + ns_tid + " stat"] = stat_fields(read(task + "/stat"));
    view[me + "tid " + ns_tid + " timer slack"] = read("/proc/" + std::to_string(tid) + "/timerslack_ns");
    std::istringstream children(read(task + "/children"));
    for (pid_t child = 0; children >> child;) {
      look(child, ns_pid, rename, view);
    }
  }
}

}  // namespace

View look_at(pid_t root) {
  View view;
  Renamer rename;
  look(root, "", rename, view);
  return view;
}

std::string difference(const View& before, const View& after) {
  std::set<std::string> keys;
  for (const View* view : {&before, &after}) {
    for (const auto& [key, text] : *view) {
      keys.insert(key);
    }
  }
  std::string out;
  for (const std::string& key : keys) {
    const auto text_of = [&](const View& view) {
      const auto found = view.find(key);
      return found == view.end() ? std::string() : found->second;
    };
    const std::vector<std::string> a = lines_of(text_of(before)), b = lines_of(text_of(after));
    const auto only_in = [&](const std::vector<std::string>& these, const std::vector<std::string>& those,
                             const char* when) {
      for (const std::string& line : these) {
        if (std::find(those.begin(), those.end(), line) == those.end()) {
          out.append(key).append(", only ").append(when).append(": ").append(line).append("\n");
        }
      }
    };
    only_in(a, b, "before");
    only_in(b, a, "after");
    if (text_of(before) != text_of(after) && out.find(key) == std::string::npos) {
      out += key + ": the same lines in another order or number\n";
    }
  }
  return out;
}

}  // namespace ferry::live
