#include "live/program.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/mount.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <tuple>

#include "live/gate.h"

namespace ferry::live {
namespace {

namespace fs = std::filesystem;
// By number: <sys/mount.h> would be found as ferry's own header of that name.
int sys_mount(const char* source, const char* target, const char* type, unsigned long flags, const char* data) {
  return static_cast<int>(::syscall(SYS_mount, source, target, type, flags, data));
}
int sys_umount(const char* target) {
  constexpr int kDetach = 2;  // MNT_DETACH, umount(2)
  return static_cast<int>(::syscall(SYS_umount2, target, kDetach));
}

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{60};

[[noreturn]] void give_up(const std::string& what) { throw std::runtime_error(what); }
void check(bool good, const std::string& call) {
  if (!good) {
    give_up(call + ": " + std::strerror(errno));
  }
}

dev_t device_of(const char* path) {
  struct stat s {};
  return ::stat(path, &s) == 0 ? s.st_dev : 0;
}

// --- between clone and exec

void must(bool good, const char* what) {
  if (!good) {
    ::dprintf(2, "%s: %s\n", what, std::strerror(errno));
    ::_exit(2);
  }
}

void make_device(const char* path, unsigned minor_number, unsigned major_number = 1) {
  must(::mknod(path, S_IFCHR | 0666, makedev(major_number, minor_number)) == 0 && ::chmod(path, 0666) == 0, path);
}

constexpr char kUidMap[] = "0 100000 1000000\n";

// Where mknod(2) is forbidden, devices are bound from a directory that was made outside.
void bind_device(const std::string& devices, const char* path) {
  const int fd = ::open(path, O_CREAT | O_WRONLY, 0666);
  must(fd >= 0 && ::close(fd) == 0, path);
  const std::string source = devices + std::string(path).substr(3);  // without "dev"
  must(sys_mount(source.c_str(), path, nullptr, MS_BIND, nullptr) == 0, source.c_str());
}

// The mounts of a small container: "/" bound, proc, and a /dev as runc makes it.
void enter_own_root(const std::string& root, const std::string& devices) {
  must(sys_mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "making / private");
  // In a user namespace the mounts that came along are locked, but not one that is bound anew.
  must(devices.empty() || sys_mount(root.c_str(), root.c_str(), nullptr, MS_BIND, nullptr) == 0, "binding the root");
  must(::chdir(root.c_str()) == 0, root.c_str());
  must(sys_mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) == 0, "mounting proc");
  must(sys_mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k") == 0, "mounting tmpfs on dev");
  const auto device = [&](const char* path, unsigned minor_number, unsigned major_number = 1) {
    if (devices.empty()) {
      make_device(path, minor_number, major_number);
    } else {
      bind_device(devices, path);
    }
  };
  device("dev/null", 3);
  device("dev/zero", 5);
  device("dev/full", 7);
  device("dev/random", 8);
  device("dev/urandom", 9);
  device("dev/tty", 0, 5);
  must(::mkdir("dev/pts", 0755) == 0 && ::mkdir("dev/shm", 01777) == 0, "mkdir in dev");
  must(sys_mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620") == 0,
       "mounting devpts");
  must(sys_mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k") == 0,
       "mounting tmpfs on dev/shm");
  must(::symlink("pts/ptmx", "dev/ptmx") == 0, "symlink dev/ptmx");
  must(::syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
  must(sys_umount(".") == 0 && ::chdir("/") == 0, "leaving the old root");
}

}  // namespace

Scratch::Scratch() {
  std::string pattern;
  for (const char* place : {"/tmp", "/var/tmp", "/root", "/"}) {
    if (device_of(place) == device_of("/")) {
      pattern = std::string(place) + "/ferry-live-XXXXXX";
      break;
    }
  }
  check(::mkdtemp(pattern.data()) != nullptr, "mkdtemp(" + pattern + ")");
  path_ = pattern;
  check(::chmod(path_.c_str(), 0755) == 0, "chmod(" + path_ + ")");
  fs::create_directory(root());
  check(sys_mount("/", root().c_str(), nullptr, MS_BIND, nullptr) == 0, "binding / to " + root());
  fs::copy_file("/proc/self/exe", path("body"));
  check(::chmod(path("body").c_str(), 0755) == 0, "chmod(body)");
}

void make_mounts_private() {
  check(::unshare(CLONE_NEWNS) == 0, "unshare(CLONE_NEWNS)");
  check(sys_mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0, "making / a slave");
}

Scratch::~Scratch() {
  sys_umount(root().c_str());
  // Not a recursive remove of the root: if it is still "/", that would be the machine.
  if (::rmdir(root().c_str()) == 0) {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
}

Program::Program(const Scratch& scratch, const std::string& test, Where where) : scratch_(scratch) {
  int ends[2];
  check(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const std::string exe = scratch.path("body"), output = scratch.path("output"), root = scratch.root();
  const std::string body = "--live-body=" + test, announce = "--live-announce=9";
  const bool user = where == Where::own_user_namespace;
  const auto flags = static_cast<unsigned long>(where == Where::our_namespaces ? 0
                                                : user ? CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS
                                                       : CLONE_NEWPID | CLONE_NEWNS);
  const std::string devices = user ? scratch.path("devices") : "";
  int mapped[2];
  check(::pipe2(mapped, O_CLOEXEC) == 0, "pipe2");
  const UniqueFd is_mapped(mapped[0]);
  UniqueFd tell_mapped(mapped[1]);
  if (user) {
    fs::create_directory(devices);
    for (const auto& [name, major_number, minor_number] :
         std::initializer_list<std::tuple<const char*, unsigned, unsigned>>{
             {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}) {
      make_device((devices + "/" + name).c_str(), minor_number, major_number);
    }
    std::ofstream(output).flush();
    check(::chmod(output.c_str(), 0666) == 0, "chmod(" + output + ")");
  }
  pid_ = static_cast<pid_t>(::syscall(SYS_clone, flags | SIGCHLD, nullptr, nullptr, nullptr, 0UL));
  check(pid_ >= 0, "clone");
  if (pid_ == 0) {
    must(::setsid() >= 0, "setsid");
    must(::dup3(write_end.get(), 9, 0) == 9, "dup3");
    if (user) {
      char byte = 0;
      must(::read(is_mapped.get(), &byte, 1) == 1, "waiting for the map of ids");
      must(::setgroups(0, nullptr) == 0 && ::setresgid(0, 0, 0) == 0 && ::setresuid(0, 0, 0) == 0, "becoming root");
      must(::prctl(PR_SET_DUMPABLE, 1) == 0, "prctl(PR_SET_DUMPABLE)");
    }
    if (where != Where::our_namespaces) {
      enter_own_root(root, devices);
    } else {
      must(::chdir("/") == 0, "chdir");
    }
    const int in = ::open("/dev/null", O_RDONLY);
    const int out = ::open(output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    must(in >= 0 && out >= 0, "opening /dev/null and the output");
    must(::dup2(in, 0) == 0 && ::dup2(out, 1) == 1 && ::dup2(out, 2) == 2, "dup2");
    // The rest is a copy of the harness's table; only the announcing end stays.
    must(::syscall(SYS_close_range, 3U, 8U, 0) == 0 && ::syscall(SYS_close_range, 10U, ~0U, 0) == 0, "close_range");
    char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    char* environment[] = {path, nullptr};
    char* arguments[] = {const_cast<char*>(exe.c_str()), const_cast<char*>(body.c_str()),
                         const_cast<char*>(announce.c_str()), nullptr};
    ::execve(exe.c_str(), arguments, environment);
    must(false, "execve of the body");
  }
  write_end.reset();
  if (user) {
    const std::string proc = "/proc/" + std::to_string(pid_);
    std::ofstream(proc + "/gid_map") << kUidMap;
    std::ofstream(proc + "/uid_map") << kUidMap;
    check(::write(tell_mapped.get(), "m", 1) == 1, "telling that ids are mapped");
  }
  watch();
  pollfd waiting{read_end.get(), POLLIN, 0};
  if (::poll(&waiting, 1, 20'000) != 1 || ::read(read_end.get(), &gate_, sizeof gate_) != sizeof gate_) {
    std::ifstream log(output);
    std::string text((std::istreambuf_iterator<char>(log)), {});
    kill_tree();
    give_up("the body of " + test + " did not start within 20 s: " + text);
  }
}

Program::~Program() { kill_tree(); }

void Program::watch() {
  pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  check(static_cast<bool>(pidfd_), "pidfd_open(" + std::to_string(pid_) + ")");
}

template <class T>
T Program::get(std::size_t offset) const {
  T value{};
  iovec local{&value, sizeof value}, remote{reinterpret_cast<void*>(gate_ + offset), sizeof value};
  check(::process_vm_readv(pid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(sizeof value),
        "reading the gate of pid " + std::to_string(pid_));
  return value;
}

bool Program::wait_for_checkpoint(std::uint32_t passed) {
  const auto deadline = Clock::now() + kPatience;
  for (;;) {
    pollfd end{pidfd_.get(), POLLIN, 0};
    if (::poll(&end, 1, 1) == 1) {
      int status = 0;
      ::waitpid(pid_, &status, 0);
      pid_ = -1;
      give_up(std::string("the body ended, ") + (WIFSIGNALED(status)
                                                     ? "killed by signal " + std::to_string(WTERMSIG(status))
                                                     : "with status " + std::to_string(WEXITSTATUS(status))));
    }
    if (get<std::uint32_t>(offsetof(Gate, finished)) != 0) {
      return false;
    }
    if (get<std::uint32_t>(offsetof(Gate, arrived)) > passed) {
      return true;
    }
    if (Clock::now() > deadline) {
      give_up("60 s passed and the body neither came to checkpoint " + std::to_string(passed + 1) + " nor finished");
    }
  }
}

bool Program::wants_pre_dump() const { return get<std::uint32_t>(offsetof(Gate, pre_dump)) != 0; }

void Program::pass(std::uint32_t passed) {
  iovec local{&passed, sizeof passed};
  iovec remote{reinterpret_cast<void*>(gate_ + offsetof(Gate, passed)), sizeof passed};
  check(::process_vm_writev(pid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(sizeof passed),
        "writing the gate of pid " + std::to_string(pid_));
}

void Program::wait_for_death() {
  pollfd end{pidfd_.get(), POLLIN, 0};
  if (::poll(&end, 1, 20'000) != 1) {
    give_up("20 s after the dump pid " + std::to_string(pid_) + " was still there");
  }
  // Everything of the tree has come to us: this process is the subreaper.
  while (::waitpid(-1, nullptr, WNOHANG | __WALL) > 0) {
  }
  pid_ = -1;
}

void Program::become(pid_t pid) {
  pid_ = pid;
  watch();
}

void Program::kill_tree() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, __WALL);
    pid_ = -1;
  }
  // What the body left behind has become ours.
  for (bool any = true; any;) {
    any = false;
    std::ifstream children("/proc/self/task/" + std::to_string(::getpid()) + "/children");
    for (pid_t child = 0; children >> child;) {
      any = true;
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, __WALL);
    }
  }
}

Program::Verdict Program::verdict() const {
  Verdict out;
  out.skipped = get<std::uint32_t>(offsetof(Gate, skipped)) != 0;
  out.failures = get<std::uint32_t>(offsetof(Gate, failures));
  out.text.resize(std::min<std::size_t>(get<std::uint32_t>(offsetof(Gate, text_size)), sizeof Gate::text));
  iovec local{out.text.data(), out.text.size()};
  iovec remote{reinterpret_cast<void*>(gate_ + offsetof(Gate, text)), out.text.size()};
  check(::process_vm_readv(pid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(out.text.size()),
        "reading the verdict");
  return out;
}

int run_command(const std::vector<std::string>& words, const std::string& output, std::chrono::seconds limit) {
  const pid_t pid = ::fork();
  check(pid >= 0, "fork");
  if (pid == 0) {
    const int in = ::open("/dev/null", O_RDONLY);
    const int out = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    must(in >= 0 && out >= 0, "opening the output of a command");
    must(::dup2(in, 0) == 0 && ::dup2(out, 1) == 1 && ::dup2(out, 2) == 2, "dup2");
    std::vector<char*> arguments;
    for (const std::string& word : words) {
      arguments.push_back(const_cast<char*>(word.c_str()));
    }
    arguments.push_back(nullptr);
    ::execv(arguments[0], arguments.data());
    must(false, words[0].c_str());
  }
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  check(static_cast<bool>(pidfd), "pidfd_open");
  pollfd end{pidfd.get(), POLLIN, 0};
  const int ended = ::poll(&end, 1, static_cast<int>(std::chrono::milliseconds(limit).count()));
  if (ended != 1) {
    ::kill(pid, SIGKILL);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  if (ended != 1) {
    give_up(words[0] + " " + words[1] + " did not end within " + std::to_string(limit.count()) + " s");
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace ferry::live
