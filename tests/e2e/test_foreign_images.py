"""The image sets that CRIU 4.2 wrote (tests/fixtures): ferry restores them, and what was saved in
them goes on.  A pid namespace of the test's own has all their process ids free."""

import json
import os
import shutil
import signal
import subprocess
import tempfile

import shape
from ferrylab import wait_until
from support import LabCase

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
PLACE = "/tmp/ferry-fixture"  # where the programs of the sets had their files

# What of `zoo` CRIU itself did not save: a descriptor in flight behind plain bytes (tests/fixtures/README.md).
LOST_BY_CRIU = {"fd_in_flight"}

# Fields that CRIU always wrote in these sets and that are right to be absent from ours, and why.
NOT_IN_OURS = {
    "core.tc.sigactions.compat_sigaction",  # absent means false: not a 32-bit task, and those are refused
    "files<INETSK>.isk.tcp_opts",  # only TCP sockets have such options
}


class ForeignImages(LabCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        self.images = os.path.join(self.scratch, "images")
        self.world = None

    def bring(self, name):
        """The set in a directory of its own, its files in place, and a world where its pids are free."""
        shutil.copytree(os.path.join(FIXTURES, name), self.images)
        self.world = self.h1.popen(
            ["unshare", "--pid", "--net", "--ipc", "--mount", "--propagation", "private", "--mount-proc", "--fork",
             "--kill-child", "busybox", "sh", "-c",
             f"ip link set lo up && mkdir -p {PLACE} && mount -t tmpfs -o mode=755 tmpfs {PLACE} && mkdir {PLACE}/bin && "
             "echo ready && while :; do sleep 1000; done"],
            stdout=subprocess.PIPE, start_new_session=True)
        self.lab.children.append(self.world)
        self.addCleanup(self.end_world)
        self.assertEqual(self.world.stdout.readline(), b"ready\n")
        archive = os.path.join(FIXTURES, name, "files.tar")
        if os.path.exists(archive):
            self.inside("tar", "--extract", "--preserve-permissions", "--same-owner", "--file", archive, "--directory", "/")

    def end_world(self):
        self.world.stdout.close()
        os.killpg(self.world.pid, signal.SIGKILL)
        self.world.wait(20)

    def inside(self, *argv, check=True):
        """Runs a program in the world; its first process is the child of unshare."""
        with open(f"/proc/{self.world.pid}/task/{self.world.pid}/children", encoding="ascii") as f:
            first = f.read().split()[0]
        return self.h1.run(["nsenter", "--target", first, "--pid", "--net", "--ipc", "--mount", "--", *argv], check=check)

    def restore(self, *options):
        done = self.inside("criu", "restore", "--images-dir", self.images, "--work-dir", self.scratch, "--restore-detached",
                           "--log-file", "restore.log", "-v4", *options, check=False)
        if done.returncode != 0:
            with open(os.path.join(self.scratch, "restore.log"), encoding="utf-8", errors="replace") as log:
                self.fail(done.stdout + "".join(line for line in log if "Error" in line))

    def read(self, path):
        return self.inside("cat", path).stdout

    def alive(self, pid):
        return self.inside("test", "-d", f"/proc/{pid}", check=False).returncode == 0

    def needs_the_same(self, path, size):
        """The sets remember the sizes and build ids of the programs they were made with."""
        if not os.path.exists(path) or os.path.getsize(path) != size:
            self.skipTest(f"{path} is not the one that the set was made with")

    def saved_again(self, root, *options):
        """What ferry writes of a tree that CRIU wrote: the same images, and every field that CRIU always writes."""
        again = os.path.join(self.scratch, "again")
        os.mkdir(again)
        done = self.inside("criu", "dump", "--tree", str(root), "--images-dir", again, "--leave-running", *options, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("complete", self.h1.run(["ferry", "image", "verify", again]).stdout)
        ours = json.loads(self.h1.run(["ferry", "image", "show", again]).stdout)
        theirs = []
        for name in os.listdir(FIXTURES):
            path = os.path.join(FIXTURES, name, "decoded.json")
            if os.path.exists(path):
                with open(path, encoding="utf-8") as f:
                    theirs.append(json.load(f))
        self.assertEqual(shape.missing(ours, shape.always(theirs), NOT_IN_OURS), [])
        with open(os.path.join(self.images, "decoded.json"), encoding="utf-8") as f:
            kinds = {shape.kind_of(n) for n in json.load(f) if n.endswith(".img")}
        self.assertEqual(kinds - {shape.kind_of(n) for n in os.listdir(again)}, set(), "kinds of images that CRIU wrote")

    def test_threads(self):
        self.bring("threads")
        self.inside("install", "--mode=755", os.path.join(self.images, "gap.bin"), f"{PLACE}/bin/gap")
        # Its output goes to /dev/null; --inherit-fd gives it a file.
        told = f"{PLACE}/told"
        self.inside("busybox", "sh", "-c", f"exec 9>{told}; exec criu restore --images-dir {self.images} --work-dir "
                    f"{self.scratch} --restore-detached --leave-stopped --log-file restore.log -v4 --inherit-fd fd[9]:dev/null")
        self.assertEqual(len(self.inside("ls", "/proc/25161/task").stdout.split()), 9)
        self.saved_again(25161)
        # It tells when it is asked, and at its end; it was to run for a day or so from when the set was made.
        self.inside("kill", "-USR1", "25161")
        self.inside("kill", "-CONT", "25161")
        reports = wait_until(lambda: self.read(told).splitlines(), 20, "gap to verify its memory")
        self.assertEqual(json.loads(reports[0])["bad_pages"], 0)

    def test_pipeline(self):
        self.needs_the_same("/bin/busybox", 1982256)
        self.bring("pipeline")
        self.restore()
        tree = {pid: self.read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split() for pid in (25061, 25064, 25065, 25066, 25067)}
        self.assertEqual({pid: int(f[1]) for pid, f in tree.items() if pid != 25061},
                         {25064: 25061, 25065: 25061, 25066: 25064, 25067: 25064})
        self.assertEqual({(f[2], f[3]) for f in tree.values()}, {("25061", "25061")})
        self.assertEqual(self.read("/proc/25061/fd/3"), "kept\n", "the deleted file")
        self.assertIn("(deleted)", self.inside("readlink", "/proc/25061/fd/3").stdout)
        self.assertEqual(self.inside("busybox", "head", "-c", "7", "/proc/25061/fd/5").stdout, "queued\n")
        count = int(self.read(f"{PLACE}/counter"))
        self.inside("kill", "-USR1", "25061")
        wait_until(lambda: self.read(f"{PLACE}/append.log") == "line\nusr1\n", 10, "the signal handler to append its line")
        wait_until(lambda: int(self.read(f"{PLACE}/counter") or 0) > count + 1, 10, "the counter to go on")
        self.saved_again(25061)

    def test_zoo(self):
        self.needs_the_same("/usr/bin/python3.11", 6831736)
        self.bring("zoo")
        self.restore("--file-locks")
        self.saved_again(25262, "--file-locks")  # before zoo.result is made, which its inotify watch would tell of
        self.inside("kill", "-USR1", "25262")
        told = wait_until(lambda: self.inside("cat", f"{PLACE}/zoo.result", check=False).stdout.splitlines()
                          if self.inside("test", "-s", f"{PLACE}/zoo.result", check=False).returncode == 0 else None,
                          20, "zoo.py to verify what it holds")
        self.assertGreaterEqual(len(told), 18)
        bad = {line.split()[0] for line in told if not line.endswith(" ok")}
        self.assertLessEqual(bad, LOST_BY_CRIU, told)
        self.assertTrue(self.alive(25262))

    def test_docker_looper(self):
        """A container made anew, started from the checkpoint that Docker and CRIU made of another."""
        self.needs_the_same("/bin/busybox", 1982256)
        self.h1.image("busybox")
        name = "foreign-looper"
        self.container(name, "--security-opt", "seccomp:unconfined", command="create",
                       argv=["/bin/sh", "-c", "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 1; done"])
        shutil.copytree(os.path.join(FIXTURES, "docker-looper"), self.checkpoint_directory(name, "cp"),
                        ignore=shutil.ignore_patterns("decoded.json"))
        self.start_from(name, "cp")
        numbers = self.wait_for_count(name, 6)
        self.assertGreater(numbers[0], 2, "it began to count anew")
        self.assert_seamless(numbers, start=numbers[0])

    def test_commands_that_look_into_a_set(self):
        """What `show` prints of each message is compared in src/image/json_test.cc."""
        for name in sorted(os.listdir(FIXTURES)):
            directory = os.path.join(FIXTURES, name)
            if os.path.isdir(directory):
                with self.subTest(set=name):
                    shown = json.loads(self.h1.run(["ferry", "image", "show", directory]).stdout)
                    images = {n for n in os.listdir(directory) if n.endswith(".img") and not n.startswith("pages-")}
                    self.assertEqual(set(shown), images)
                    self.assertIn("complete", self.h1.run(["ferry", "image", "verify", directory]).stdout)
