// The side that checkpoints: one test case for each body and flavour.
#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "live/gate.h"
#include "live/live.h"
#include "live/outside.h"
#include "live/program.h"

namespace ferry::live {
namespace {

namespace fs = std::filesystem;
constexpr std::chrono::seconds kCommandTime{60};

enum class Flavour { host, pid_namespace, leave_running, user_namespace };
const char* name_of(Flavour flavour) {
  switch (flavour) {
    case Flavour::host:
      return "host";
    case Flavour::pid_namespace:
      return "pid_namespace";
    case Flavour::leave_running:
      return "leave_running";
    case Flavour::user_namespace:
      return "user_namespace";
  }
  return "?";
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}
std::string tail_of(const std::string& path) {
  const std::string text = read_text(path);
  constexpr std::size_t kTail = 6000;
  return text.size() > kTail ? "[…]" + text.substr(text.size() - kTail) : text;
}

// Bodies give what they make in /tmp their pid as they see it; one that is skipped or fails leaves it behind,
// in the way of the next one that has the same.
void remove_leavings(pid_t inner) {
  const std::string number = "-" + std::to_string(inner);
  for (const fs::directory_entry& entry : fs::directory_iterator("/tmp")) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("ferry-", 0) == 0 && ((name + "-").find(number + "-") != std::string::npos)) {
      std::error_code ignored;
      fs::remove_all(entry.path(), ignored);
    }
  }
}

class Live : public testing::Test {
 public:
  Live(const LiveTest& test, Flavour flavour) : test_(test), flavour_(flavour) {}

  void TestBody() override {
    if (::geteuid() != 0) {
      GTEST_SKIP() << "checkpointing needs root";
    }
    try {
      run();
    } catch (const std::exception& e) {
      ADD_FAILURE_AT(test_.file, test_.line) << e.what() << "\noutput of the body:\n" << tail_of(output_);
    }
  }

 private:
  void run() {
    // Mounts made for the test are nobody else's, and orphans of a killed tree come to us.
    static const bool prepared = [] {
      make_mounts_private();
      return ::prctl(PR_SET_CHILD_SUBREAPER, 1) == 0;
    }();
    if (!prepared) {
      throw std::runtime_error("prctl(PR_SET_CHILD_SUBREAPER) failed");
    }
    const Scratch scratch;
    scratch_ = &scratch;
    output_ = scratch.path("output");
    const std::string name = std::string(test_.suite) + "." + test_.name;
    const bool alone = flavour_ == Flavour::pid_namespace || flavour_ == Flavour::user_namespace;
    if (alone) {
      remove_leavings(1);
    }
    Program program(scratch, name,
                    flavour_ == Flavour::pid_namespace    ? Where::own_namespaces
                    : flavour_ == Flavour::user_namespace ? Where::own_user_namespace
                                                          : Where::our_namespaces);
    const pid_t inner = alone ? 1 : program.pid();
    const std::shared_ptr<void> at_the_end(nullptr, [inner](void*) { remove_leavings(inner); });
    std::uint32_t passed = 0;
    for (; program.wait_for_checkpoint(passed); program.pass(++passed)) {
      program.wants_pre_dump() ? pre_dump(program, passed) : checkpoint(program, passed);
    }
    if (!judge(program.verdict(), passed, flavour_ == Flavour::leave_running ? "the source" : "")) {
      return;
    }
    if (flavour_ == Flavour::leave_running && test_.options.refused.empty()) {
      // Now the copy of the first checkpoint lives through the rest.
      program.kill_tree();
      // A restore wants the files as they were; the source has written more since.
      fs::resize_file(output_, output_size_);
      restore(program, first_dump_.value_or(0));
      for (passed = 0; program.wait_for_checkpoint(passed);) {
        program.pass(++passed);
      }
      judge(program.verdict(), passed, "the restored copy");
    }
  }

  // What differs and stays different.  A thread that was let go inside sigsuspend(2) or the like has
  // another mask for the moment until it is in its call again.
  [[nodiscard]] std::string lasting_difference(const View& before, pid_t pid) const {
    if (test_.options.changes) {
      return {};
    }
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    std::string found = difference(before, look_at(pid));
    while (!found.empty() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
      found = difference(before, look_at(pid));
    }
    return found;
  }

  void pre_dump(Program& program, std::uint32_t number) {
    const View before = look_at(program.pid());
    const std::string images = directory(number);
    fs::create_directory(images);
    std::vector<std::string> words = {criu(), "pre-dump",     "-t", std::to_string(program.pid()), "-D", images,
                                      "-o",   "pre-dump.log", "-v4"};
    add_parent(words, number);
    const int status = run_command(words, images + "/pre-dump.out", kCommandTime);
    if (status != 0) {
      throw std::runtime_error("criu pre-dump ended with status " + std::to_string(status) + ":\n" +
                               tail_of(images + "/pre-dump.log") + tail_of(images + "/pre-dump.out"));
    }
    EXPECT_EQ(lasting_difference(before, program.pid()), "") << "a pre-dump changed the process";
    pre_dumped_ = true;
  }

  void add_parent(std::vector<std::string>& words, std::uint32_t number) const {
    if (pre_dumped_) {
      words.insert(words.end(), {"--prev-images-dir", "../" + fs::path(directory(number - 1)).filename().string()});
    }
  }

  void checkpoint(Program& program, std::uint32_t number) {
    const View before = look_at(program.pid());
    const bool first = !first_dump_.has_value();
    if (first) {
      first_dump_ = number;
    }
    output_size_ = first ? fs::file_size(output_) : output_size_;
    const bool kills = flavour_ != Flavour::leave_running;
    const std::string images = directory(number);
    fs::create_directory(images);
    std::vector<std::string> words = {criu(), "dump",     "-t", std::to_string(program.pid()), "-D", images,
                                      "-o",   "dump.log", "-v4"};
    if (!kills) {
      words.push_back("--leave-running");
    }
    words.insert(words.end(), test_.options.dump.begin(), test_.options.dump.end());
    add_parent(words, number);
    const int status = run_command(words, images + "/dump.out", kCommandTime);
    const std::string said = tail_of(images + "/dump.log") + tail_of(images + "/dump.out");
    if (!test_.options.refused.empty()) {
      EXPECT_NE(status, 0) << "criu dump succeeded, but it should have refused: " << test_.options.refused;
      EXPECT_NE(said.find(test_.options.refused), std::string::npos)
          << "criu dump refused without saying \"" << test_.options.refused << "\":\n"
          << said;
      if (status != 0) {
        EXPECT_EQ(lasting_difference(before, program.pid()), "") << "a refused dump changed the process";
        return;
      }
    }
    if (status != 0) {
      throw std::runtime_error("criu dump ended with status " + std::to_string(status) + ":\n" + said);
    }
    if (!kills) {
      EXPECT_EQ(lasting_difference(before, program.pid()), "") << "a dump that leaves it running changed the process";
      before_ = first ? before : before_;
      return;
    }
    if (pre_dumped_) {
      pre_dumped_ = false;  // the restored process is another one
      EXPECT_EQ(said.find("all memory is saved"), std::string::npos) << "the pre-dumps were for nothing:\n" << said;
      EXPECT_EQ(said.find("all pages of"), std::string::npos) << "the pre-dumps were for nothing:\n" << said;
    }
    program.wait_for_death();
    before_ = before;
    restore(program, number);
  }

  void restore(Program& program, std::uint32_t number) {
    const std::string images = directory(number);
    std::vector<std::string> words = {criu(), "restore",     "-d",  "-D",        images,
                                      "-o",   "restore.log", "-v4", "--pidfile", images + "/pid"};
    if (flavour_ == Flavour::pid_namespace || flavour_ == Flavour::user_namespace) {
      words.insert(words.end(), {"--root", scratch_->root()});
    }
    words.insert(words.end(), test_.options.restore.begin(), test_.options.restore.end());
    if (test_.options.lazy || std::getenv("FERRY_LIVE_LAZY") != nullptr) {
      start_lazy_pages(images);
      words.emplace_back("--lazy-pages");
    }
    const int status = run_command(words, images + "/restore.out", kCommandTime);
    if (status != 0) {
      throw std::runtime_error("criu restore ended with status " + std::to_string(status) + ":\n" +
                               tail_of(images + "/restore.log") + tail_of(images + "/restore.out"));
    }
    const pid_t pid = std::atoi(read_text(images + "/pid").c_str());
    if (pid <= 0) {
      throw std::runtime_error("criu restore wrote no pid into its --pidfile");
    }
    program.become(pid);
    EXPECT_EQ(lasting_difference(before_, pid), "") << "/proc does not show the restored tree as it was";
  }

  // It is ready when the command returns, and ends by itself.
  static void start_lazy_pages(const std::string& images) {
    const std::vector<std::string> words = {criu(), "lazy-pages", "--daemon", "-D", images, "-o", "lazy.log", "-v4"};
    if (const int status = run_command(words, images + "/lazy.out", kCommandTime); status != 0) {
      throw std::runtime_error("criu lazy-pages ended with status " + std::to_string(status) + ":\n" +
                               tail_of(images + "/lazy.log") + tail_of(images + "/lazy.out"));
    }
  }

  bool judge(const Program::Verdict& verdict, std::uint32_t checkpoints, const std::string& who) {
    if (verdict.skipped) {
      skip(verdict.text);
      return false;
    }
    if (verdict.failures != 0 && checkpoints == 0 && flavour_ == Flavour::user_namespace) {
      skip("cannot be set up by the root of a user namespace: " + verdict.text);
      return false;
    }
    if (verdict.failures != 0) {
      ADD_FAILURE_AT(test_.file, test_.line)
          << who << (who.empty() ? "" : ": ") << verdict.text << "\noutput of the body:\n"
          << tail_of(output_);
      return false;
    }
    if (checkpoints == 0) {
      ADD_FAILURE_AT(test_.file, test_.line) << "the body never came to checkpoint_here()";
      return false;
    }
    return true;
  }
  static void skip(const std::string& why) { GTEST_SKIP() << why; }

  // The one built beside this program; FERRY_LIVE_CRIU names another one to be judged by the same tests.
  static std::string criu() {
    if (const char* other = std::getenv("FERRY_LIVE_CRIU"); other != nullptr) {
      return other;
    }
    return (fs::read_symlink("/proc/self/exe").parent_path() / "criu").string();
  }
  [[nodiscard]] std::string directory(std::uint32_t number) const {
    return scratch_->path("images-" + std::to_string(number));
  }

  const LiveTest& test_;
  const Flavour flavour_;
  const Scratch* scratch_ = nullptr;
  std::string output_;
  std::uintmax_t output_size_ = 0;  // at the first checkpoint
  std::optional<std::uint32_t> first_dump_;
  bool pre_dumped_ = false;  // the last step was one
  View before_;
};

void register_all() {
  for (const LiveTest& test : all()) {
    const auto add = [&](bool wanted, Flavour flavour) {
      if (wanted) {
        const std::string name = std::string(test.name) + "/" + name_of(flavour);
        testing::RegisterTest(test.suite, name.c_str(), nullptr, nullptr, test.file, test.line,
                              [&test, flavour]() -> testing::Test* { return new Live(test, flavour); });
      }
    };
    add(test.options.host, Flavour::host);
    add(test.options.pid_namespace, Flavour::pid_namespace);
    add(test.options.leave_running, Flavour::leave_running);
    add(test.options.user_namespace && test.options.pid_namespace, Flavour::user_namespace);
  }
}

std::deque<LiveTest>& tests() {
  static std::deque<LiveTest> list;
  return list;
}

}  // namespace

bool list(LiveTest test) {
  tests().push_back(std::move(test));
  return true;
}
const std::deque<LiveTest>& all() { return tests(); }

}  // namespace ferry::live

int main(int argc, char** argv) {
  constexpr char kBody[] = "--live-body=";
  if (argc == 3 && std::strncmp(argv[1], kBody, sizeof kBody - 1) == 0) {
    ferry::live::run_body(argv[1] + sizeof kBody - 1, std::atoi(std::strchr(argv[2], '=') + 1));
  }
  testing::InitGoogleTest(&argc, argv);
  ferry::live::register_all();
  return RUN_ALL_TESTS();
}
