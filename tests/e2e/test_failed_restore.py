"""A restore that fails, at whatever step, leaves nothing behind: no process, mount, namespace, cgroup,
file, socket name, System V object or firewall rule.  And the set restores once the cause is gone."""

import os
import shutil
import subprocess
import tempfile
import time

from ferrylab import cgroups, processes, wait_until
from support import SANITIZED, LabCase, deadline
from watching import programs

# Something of every kind that a restore has to create outside of memory.
PROGRAM = """import ctypes, fcntl, mmap, os, signal, socket, sys, time
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
keep = []
def socket_at(name, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_UNIX, kind)
    s.bind(name)
    keep.append(s)
    return s
socket_at("stream.sock").listen(3)
socket_at("datagram.sock", socket.SOCK_DGRAM)
socket_at("deleted.sock", socket.SOCK_DGRAM)
os.unlink("deleted.sock")
socket_at(os.path.abspath("absolute.sock")).listen(3)
os.mkfifo("fifo")
keep.append(os.open("fifo", os.O_RDWR))
os.write(keep[-1], b"in the fifo")
keep.append(open("ghost", "w+b"))
keep[-1].write(b"deleted")
keep[-1].flush()
os.unlink("ghost")
os.mkdir("ghost-directory")
keep.append(os.open("ghost-directory", os.O_RDONLY))
os.rmdir("ghost-directory")
keep.append(open("kept", "w+b"))
fcntl.flock(keep[-1], fcntl.LOCK_EX)
server = socket.create_server(("127.0.0.1", 0))
keep.append(mmap.mmap(-1, 1 << 20))
keep[-1][:4] = b"here"
keep.append(os.memfd_create("memory"))
keep.append(os.openpty())
keep.append(os.pipe())
def child():
    if os.fork() == 0:
        os.setsid()
        while True:
            time.sleep(0.05)
child()
if os.fork() == 0:
    child()
    while True:
        time.sleep(0.05)
print("ready", flush=True)
i = 0
while True:
    i += 1
    print(i, flush=True)
    time.sleep(0.05)
"""

STAGES = ("pre-restore", "post-restore")
OF_NAMESPACES = ("setup-namespaces", "post-setup-namespaces")


class FailedRestore(LabCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        self.place = os.path.join(self.scratch, "place")
        os.mkdir(self.place)
        self.images = os.path.join(self.scratch, "images")
        self.good = os.path.join(self.scratch, "good")
        os.mkdir(self.good)
        self.work = os.path.join(self.scratch, "work")
        os.mkdir(self.work)
        self.log = os.path.join(self.scratch, "output")
        self.before = []
        self.before = self.ours()

    # ---- the tree ----

    def start(self, *before):
        # unshare(1) has something to say when its child is killed: that belongs into no file of the tree.
        with open(self.log, "wb") as log:
            child = self.h1.popen([*before, "/usr/bin/python3", "-c", PROGRAM, self.place], stdout=log,
                                  stderr=subprocess.DEVNULL, start_new_session=True)
        self.addCleanup(child.wait)
        self.addCleanup(self.end_tree)
        self.lab.children.append(child)
        wait_until(lambda: self.lines() > 3, 10, lambda: f"the program to be ready: {self.output()}")
        return child

    def output(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    def lines(self):
        return self.output().count("\n")

    def end_tree(self):
        for process in self.ours():
            process.kill()

    def ours(self):
        """What lives in this host apart from its daemons and from what was there at the start."""
        self.lab.reap()
        mounts = processes.namespace(self.h1.keeper.pid, "mnt")
        known = {self.h1.keeper, *self.h1.daemons.values()}
        found = [p for p in processes.belonging(self.h1.mark, self.h1.cgroup, mounts) if p not in known]
        return [p for p in found if p not in self.before]

    def dumped(self, child, pid, *options):
        self.criu("dump", "--tree", str(pid), "--images-dir", self.good, "--file-locks", *options)
        child.wait(10)
        for name in os.listdir(self.place):
            if name.endswith(".sock"):
                os.unlink(os.path.join(self.place, name))

    def criu(self, *arguments, check=True, prefix=()):
        done = self.h1.run([*prefix, "criu", *arguments], check=False, timeout=40)
        if check:
            self.assertEqual(done.returncode, 0, done.stdout)
        return done

    # ---- what may be left ----

    def traces(self):
        """Everything that a restore could leave, as the machine shows it."""
        with open(f"/proc/{self.h1.keeper.pid}/mountinfo", encoding="utf-8") as f:
            mounts = sorted(line.split(" ", 3)[-1].strip() for line in f)
        files = sorted(os.path.join(directory, name) for directory, names, others in os.walk(self.place)
                       for name in names + others)
        groups = sorted(directory for root in cgroups.roots() for directory, _, _ in os.walk(root + self.h1.cgroup))
        ipc = []
        for kind in ("shm", "sem", "msg"):
            with open(f"/proc/{self.h1.keeper.pid}/root/proc/sysvipc/{kind}", encoding="ascii") as f:
                ipc += f.read().splitlines()[1:]
        rules = self.h1.run(["nft", "list", "tables"], check=False).stdout
        links = self.h1.run(["ip", "-o", "link"]).stdout
        living = sorted((p.pid, self.command_of(p.pid)) for p in self.ours())
        return {"processes": living, "mounts": mounts, "files": files, "cgroups": groups, "ipc": ipc, "nft": rules, "links": links}

    @staticmethod
    def command_of(pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                return f.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return "?"

    def fails(self, what, *options, prefix=(), criu="criu"):
        """Restores from self.images with something broken, and compares before and after."""
        before = self.traces()
        self.size = os.path.getsize(self.log)
        done = self.h1.run([*prefix, criu, "restore", "--images-dir", self.images, "--work-dir", self.work, "--restore-detached",
                            "--file-locks", "--pidfile", "pid", *options], check=False, timeout=40)
        with self.subTest(what=what):
            self.assertNotEqual(done.returncode, 0, "it restored")
            self.assertIn("Error", done.stdout)
            after = self.traces()
            for kind in before:
                self.assertEqual(before[kind], after[kind], f"{kind} after: {done.stdout}")
            if not before["processes"]:
                self.assertEqual(self.size, os.path.getsize(self.log), "the tree has run for a while")
            self.assertFalse(os.path.exists(os.path.join(self.work, "pid")), "a pid file of a tree that is not there")

    def found_beforehand(self, what):
        """`ferry image verify` says so before anyone depends on the set."""
        with self.subTest(verify=what):
            done = self.h1.run(["ferry", "image", "verify", self.images], check=False)
            self.assertEqual(done.returncode, 1, done.stdout)

    def fresh(self):
        shutil.rmtree(self.images, ignore_errors=True)
        shutil.copytree(self.good, self.images, symlinks=True)

    def every_way_to_fail(self, *options, stages):
        needless = {"seccomp.img", "timens-0.img", "stats-dump"}  # a set without them restores
        for name in sorted(os.listdir(self.good)):
            if name in needless or not name.endswith(".img") or os.path.getsize(os.path.join(self.good, name)) == 0:
                continue
            self.fresh()
            os.unlink(os.path.join(self.images, name))
            if not self.may_be_missing(name):
                self.fails(f"{name} missing", *options)
                self.found_beforehand(f"{name} missing")
            self.fresh()
            os.truncate(os.path.join(self.images, name), os.path.getsize(os.path.join(self.images, name)) - 1)
            if not name.startswith("pages-"):
                self.fails(f"{name} cut", *options)
            self.found_beforehand(f"{name} cut")
        self.fresh()
        for stage in stages:
            script = os.path.join(self.scratch, "script")
            with open(script, "w", encoding="ascii") as f:
                f.write(f"#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != {stage} ]\n")
            os.chmod(script, 0o755)
            self.fails(f"a script says no at {stage}", "--action-script", script, *options)
        self.fails("few descriptors", *options, prefix=["prlimit", "--nofile=20:20"])
        if not SANITIZED:
            self.fails("little address space", *options, prefix=["prlimit", "--as=150000000:150000000"])
        self.fails("little file size", *options, prefix=["prlimit", "--fsize=0:0"])

    @staticmethod
    def may_be_missing(name):
        """CRIU writes no image that has no entry, so these just say "none" by being absent."""
        return name.startswith(("fdinfo-", "filelocks", "fifo-data", "pipes-data", "tty-data", "sk-queues", "remap-fpath", "cgroup",
                                "netdev-", "ifaddr-", "route", "rule-", "iptables", "ip6tables", "nftables", "netns-", "tmpfs-"))

    def works_in_the_end(self, *options):
        self.fresh()
        lines = self.lines()
        self.criu("restore", "--images-dir", self.images, "--restore-detached", "--file-locks", *options)
        wait_until(lambda: self.lines() > lines + 3, 10, "the program to go on")

    # ---- tests ----

    @deadline(150)
    def test_tree_of_the_host(self):
        child = self.start()
        self.dumped(child, child.pid)
        self.every_way_to_fail(stages=STAGES)
        self.fresh()
        os.rename(os.path.join(self.place, "kept"), os.path.join(self.scratch, "kept"))
        self.fails("a file is gone")
        os.rename(os.path.join(self.scratch, "kept"), os.path.join(self.place, "kept"))
        self.works_in_the_end()

    @deadline(60)
    def test_process_id_taken(self):
        child = self.start()
        self.criu("dump", "--tree", str(child.pid), "--images-dir", self.good, "--file-locks", "--leave-running")
        self.fresh()
        self.fails("the tree still runs")
        lines = self.lines()
        wait_until(lambda: self.lines() > lines + 3, 10, "the original to go on")

    @deadline(150)
    def test_tree_with_namespaces_of_its_own(self):
        child = self.start("unshare", "--pid", "--net", "--uts", "--ipc", "--fork", "setsid")
        with open(f"/proc/{child.pid}/task/{child.pid}/children", encoding="ascii") as f:
            root = int(f.read().split()[0])
        self.dumped(child, root)
        self.every_way_to_fail(stages=STAGES + OF_NAMESPACES)
        self.works_in_the_end()

    @deadline(120)
    def test_killed_engine(self):
        """Whenever it dies, the tree that it was building dies with it."""
        child = self.start()
        self.dumped(child, child.pid)
        self.fresh()
        engine = os.path.realpath(os.path.join(self.bin, "criu"))
        shots = 0
        for stage in ("pre-restore", "post-restore"):
            # The script kills the engine that waits for it; between the two lies most of the work.
            script = os.path.join(self.scratch, "script")
            with open(script, "w", encoding="ascii") as f:
                f.write(f"#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = {stage} ] && kill -9 $PPID\n")
            os.chmod(script, 0o755)
            done = self.h1.run(["criu", "restore", "--images-dir", self.images, "--restore-detached", "--file-locks",
                                "--action-script", script], check=False)
            self.assertNotEqual(done.returncode, 0)
            wait_until(lambda: not self.ours(), 10, lambda: f"{[self.command_of(p.pid) for p in self.ours()]} to die with criu")
            shots += 1
        for delay in range(12):
            restore = self.h1.popen(["criu", "restore", "--images-dir", self.images, "--restore-detached", "--file-locks"])
            wait_until(lambda: programs(self.h1, engine, "restore") or restore.poll() is not None, 10, "criu to start", 0.0005)
            deadline_ns = time.monotonic_ns() + delay * 2_000_000
            while time.monotonic_ns() < deadline_ns and restore.poll() is None:
                pass
            for process in programs(self.h1, engine, "restore"):
                process.kill()
            if restore.wait(20) == 0:
                self.end_tree()
            else:
                shots += 1
            wait_until(lambda: not self.ours(), 10, lambda: f"{[self.command_of(p.pid) for p in self.ours()]} to die with criu")
        self.assertGreater(shots, 2)
        self.works_in_the_end()
