"""Memory saved ahead of time: criu pre-dump, and the dumps that build upon it."""

import os
import re
import shutil
import signal
import subprocess
import tempfile

from ferrylab import wait_until
from support import LabCase

# Keeps pages whose content follows from their number and generation; each line on stdin is a page to write
# anew, "check" says how many are wrong.
PROGRAM = r"""
import hashlib, mmap, sys
pages = 4096
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
generation = [0] * pages
content = lambda p: hashlib.sha256(f"{p} {generation[p]}".encode()).digest() * 128
def write(p):
    generation[p] += 1
    memory[p * 4096:(p + 1) * 4096] = content(p)
for p in range(pages):
    write(p)
requests = open(sys.argv[1])
answers = open(sys.argv[2], "w")
print("ready", file=answers, flush=True)
while True:
    line = requests.readline()
    if line.strip() == "check":
        print("wrong", sum(memory[p * 4096:(p + 1) * 4096] != content(p) for p in range(pages)), file=answers, flush=True)
    elif line:
        write(int(line))
        print("wrote", line.strip(), file=answers, flush=True)
    else:
        import time
        time.sleep(0.01)
"""


def keepers(host):
    return [int(n) for n in os.listdir("/proc") if n.isdigit() and is_keeper(n) and host.owns(int(n))]


def is_keeper(pid):
    """Not one that has ended and waits for its parent to notice."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return re.match(r"\d+ \(ferry-tracker\) [^ZX]", f.read()) is not None
    except OSError:
        return False


class PreDump(LabCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        self.asked = os.path.join(self.scratch, "asked")
        self.told = os.path.join(self.scratch, "told")
        for path in (self.asked, self.told):
            with open(path, "w", encoding="ascii"):
                pass
        self.known_keepers = set(keepers(self.h1))

    def new_keepers(self):
        return [pid for pid in keepers(self.h1) if pid not in self.known_keepers]

    def start(self):
        child = self.h1.popen(["/usr/bin/python3", "-c", PROGRAM, self.asked, self.told], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/")
        self.addCleanup(self.kill, child.pid)
        self.lab.children.append(child)
        self.wait_for_answer("ready")
        return child.pid

    def kill(self, pid):
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

    def answers(self):
        with open(self.told, encoding="ascii") as f:
            return f.read().splitlines()

    def wait_for_answer(self, answer):
        wait_until(lambda: answer in self.answers(), 20, lambda: f"the program to say {answer}; it said {self.answers()[-3:]}")

    def write(self, *numbers):
        before = len(self.answers())
        with open(self.asked, "a", encoding="ascii") as f:
            for number in numbers:
                print(number, file=f)
        wait_until(lambda: len(self.answers()) == before + len(numbers), 20, "the program to write its pages")

    def assert_right(self):
        with open(self.asked, "a", encoding="ascii") as f:
            print("check", file=f)
        wait_until(lambda: self.answers()[-1].startswith("wrong"), 20, "the program to check its memory")
        self.assertEqual(self.answers()[-1], "wrong 0")

    def images(self, name):
        path = os.path.join(self.scratch, name)
        os.makedirs(path, exist_ok=True)
        return path

    def criu(self, command, name, *options, check=True):
        done = self.h1.run(["criu", command, "--images-dir", self.images(name), "-v3", "-o", f"{command}.log", *options],
                           check=False, timeout=40)
        if check:
            self.assertEqual(done.returncode, 0, f"criu {command}: {done.stdout}{self.log(command, name)}")
        return done

    def log(self, command, name):
        try:
            with open(os.path.join(self.images(name), f"{command}.log"), encoding="utf-8") as f:
                return f.read()
        except OSError:
            return ""

    def pre_dump(self, pid, name, *options, **more):
        self.criu("pre-dump", name, "--tree", str(pid), *options, **more)
        return self.counts("pre-dump", name)

    def dump(self, pid, name, *options):
        """Saves and ends it; how many pages were written."""
        self.criu("dump", name, "--tree", str(pid), *options)
        os.waitpid(pid, 0)
        return int(re.search(r"(\d+) pages written", self.log("dump", name)).group(1))

    def counts(self, command, name):
        """Pages written, and pages left to the parent."""
        found = re.search(r"(\d+) pages written, (\d+) are in the parent set", self.log(command, name))
        return int(found.group(1)), int(found.group(2))

    def restore(self, name, *options):
        pidfile = os.path.join(self.images(name), "pid")
        self.criu("restore", name, "--restore-detached", "--pidfile", pidfile, *options)
        with open(pidfile, encoding="ascii") as f:
            pid = int(f.read())
        self.addCleanup(self.kill, pid)
        return pid

    # ---- good ----

    def test_each_set_holds_what_was_written_since(self):
        pid = self.start()
        written, left = self.pre_dump(pid, "1")
        self.assertGreater(written, 4096)
        self.assertEqual(left, 0)
        self.write(5, 77, 4095)
        written, left = self.pre_dump(pid, "2", "--prev-images-dir", "../1")
        self.assertLess(written, 1500)
        self.assertGreater(left, 4000)
        self.write(77, 100)
        written = self.dump(pid, "3", "--prev-images-dir", "../2", "--track-mem")
        self.assertLess(written, 1500)
        self.assertEqual(self.new_keepers(), [], "the tracker outlived the dump")
        self.restore("3")
        self.assert_right()
        self.write(1, 77)
        self.assert_right()

    def test_dumps_that_leave_it_running_follow_each_other(self):
        pid = self.start()
        self.criu("dump", "1", "--tree", str(pid), "--leave-running", "--track-mem")
        self.write(3)
        self.criu("dump", "2", "--tree", str(pid), "--leave-running", "--track-mem", "--prev-images-dir", "../1")
        self.assertLess(int(re.search(r"(\d+) pages written", self.log("dump", "2")).group(1)), 1500)
        self.write(4)
        self.assertLess(self.dump(pid, "3", "--prev-images-dir", "../2"), 1500)
        self.restore("3")
        self.assert_right()

    def test_dedup_takes_out_what_is_there_twice(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        self.write(*range(1000))
        before = os.stat(os.path.join(self.images("1"), "pages-1.img")).st_blocks
        self.dump(pid, "2", "--prev-images-dir", "../1")
        self.criu("dedup", "2")
        after = os.stat(os.path.join(self.images("1"), "pages-1.img")).st_blocks
        self.assertLess(after, before - 1000 * 7)
        self.restore("2")
        self.assert_right()

    def test_auto_dedup(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        before = os.stat(os.path.join(self.images("1"), "pages-1.img")).st_blocks
        self.write(*range(1000))
        self.dump(pid, "2", "--prev-images-dir", "../1", "--auto-dedup")
        self.assertLess(os.stat(os.path.join(self.images("1"), "pages-1.img")).st_blocks, before - 1000 * 7)
        self.restore("2", "--auto-dedup")
        self.assertLess(os.stat(os.path.join(self.images("1"), "pages-1.img")).st_blocks, 64)
        self.assert_right()

    def test_a_process_ends_and_so_does_its_tracker(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        self.assertEqual(len(self.new_keepers()), 1)
        self.kill(pid)
        wait_until(lambda: not self.new_keepers(), 10, "the tracker of a process that has ended to end as well")

    # ---- bad luck ----

    def test_a_tracker_that_was_killed_costs_room_and_no_page(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        self.write(9)
        for keeper in self.new_keepers():
            os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not self.new_keepers(), 10, "the killed tracker to be gone")
        self.assertGreater(self.dump(pid, "2", "--prev-images-dir", "../1"), 4096)
        self.assertIn("all memory is saved: nobody has tracked", self.log("dump", "2"))
        shutil.rmtree(self.images("1"))
        self.restore("2")
        self.assert_right()

    def test_an_older_parent_than_the_last_is_not_built_upon(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        self.write(9)
        self.pre_dump(pid, "2", "--prev-images-dir", "../1")
        self.assertGreater(self.dump(pid, "3", "--prev-images-dir", "../1"), 4096)
        self.assertIn("all memory is saved", self.log("dump", "3"))
        self.restore("3")
        self.assert_right()

    def test_a_damaged_parent_is_not_built_upon(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        pages = os.path.join(self.images("1"), "pages-1.img")
        os.truncate(pages, os.path.getsize(pages) - 4096)
        self.write(9)
        self.assertGreater(self.dump(pid, "2", "--prev-images-dir", "../1"), 4096)
        self.assertIn("the parent set is damaged", self.log("dump", "2"))
        self.restore("2")
        self.assert_right()

    def test_a_parent_that_is_missing_is_named(self):
        pid = self.start()
        for command in ("pre-dump", "dump"):
            done = self.criu(command, "2", "--tree", str(pid), "--prev-images-dir", "../nowhere", check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("--prev-images-dir ../nowhere", self.log(command, "2"))
        self.assert_right()

    def test_a_parent_that_went_missing_is_named_by_the_restore(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        self.dump(pid, "2", "--prev-images-dir", "../1")
        os.rename(self.images("1"), os.path.join(self.scratch, "elsewhere"))
        done = self.criu("restore", "2", "--restore-detached", check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("parent/pagemap-", self.log("restore", "2"))

    def test_a_dump_that_fails_leaves_the_tracking_as_it_was(self):
        pid = self.start()
        self.pre_dump(pid, "1")
        self.write(9)
        done = self.criu("dump", "2", "--tree", str(pid), "--prev-images-dir", "../1", "--action-script", "/bin/false",
                         check=False)
        self.assertNotEqual(done.returncode, 0)
        self.write(10)
        self.assertLess(self.dump(pid, "3", "--prev-images-dir", "../1"), 1500)
        self.restore("3")
        self.assert_right()

    def test_features_are_told(self):
        self.assertEqual(self.h1.run(["criu", "check", "--feature", "mem_dirty_track"], check=False).returncode, 0)
