"""runc's own checkpoint and restore commands with their options, and ferry's criu behind them."""

import json
import os
import pty
import signal
import subprocess
import tempfile
import termios

import bundles
from ferrylab import wait_until
from support import COUNT, LabCase

LOCKER = """import fcntl, itertools, time
lock = open("/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
for i in itertools.count():
    print(i, flush=True)
    time.sleep(0.05)
"""


class RuncCase(LabCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        self.images = os.path.join(self.scratch, "images")
        self.work = os.path.join(self.scratch, "work")
        self.out = self.new_output()

    def new_output(self):
        out = bundles.Output()
        self.addCleanup(out.close_ours)
        return out

    def runc(self, *arguments, check=True, **streams):
        """Runs runc to its end.  Only `run` and `restore` write to the container's output."""
        with open(os.path.join(self.scratch, "stderr"), "ab") as stderr:
            mine = {"stdout": self.out.fd, "stderr": self.out.fd} if arguments[0] in ("run", "restore") else {
                "stdout": subprocess.DEVNULL, "stderr": stderr}
            return self.run_to_its_end(arguments, check, {**mine, **streams})

    def run_to_its_end(self, arguments, check, streams):
        child = self.h1.popen(["runc", "--root", os.path.join(self.scratch, "state"), "--log",
                               os.path.join(self.scratch, "runc.log"), *arguments], **streams)
        self.addCleanup(child.wait)
        code = child.wait(60)
        if check and code != 0:
            self.fail(f"runc {' '.join(arguments)}: exit code {code}: {self.told()}")
        return code

    def told(self):
        """The end of the logs of runc and criu."""
        text = ""
        for directory, _, names in os.walk(self.scratch):
            for name in names:
                if name in ("runc.log", "dump.log", "restore.log"):
                    with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as f:
                        text += name + ": " + "".join(line for line in f if "rror" in line)
        return text

    def bundle(self, name, argv=None, image="busybox", change=None):
        path = os.path.join(self.scratch, name)
        bundles.make(self.h1, path, image, argv or ["/bin/sh", "-c", COUNT.format(0.05)], change)
        self.addCleanup(self.runc, "delete", "--force", name, check=False)
        return path

    def counting(self, name, **more):
        path = self.bundle(name, **more)
        self.runc("run", "--detach", "--bundle", path, name)
        self.out.wait_for(3)
        return path

    def state(self, name):
        return json.loads(self.h1.run(["runc", "--root", os.path.join(self.scratch, "state"), "state", name]).stdout)

    def exists(self, name):
        return os.path.isdir(os.path.join(self.scratch, "state", name))

    def checkpoint(self, name, *options):
        self.runc("checkpoint", "--image-path", self.images, "--work-path", self.work, *options, name)

    def restore(self, name, *options):
        """Output goes to a new pipe from here on."""
        self.out.close_ours()
        self.out = self.new_output()
        self.runc("restore", "--detach", "--bundle", os.path.join(self.scratch, name), "--image-path", self.images,
                  "--work-path", self.work, *options, name)

    def through(self, name, *options, checkpoint=()):
        """Checkpoint and restore with the same options; the count goes on seamlessly."""
        self.checkpoint(name, *options, *checkpoint)
        self.out.close_ours()
        wait_until(lambda: not self.exists(name), 10, f"runc to forget {name}")
        before = self.out.numbers()
        self.restore(name, *options)
        self.assert_seamless(before + self.out.wait_for(before[-1] + 3), start=before[0])
        self.assertEqual(self.state(name)["status"], "running")


class Options(RuncCase):
    def test_checkpoint_and_restore(self):
        self.counting("r-plain")
        self.through("r-plain", )
        for name in ("dump.log", "stats-dump", "restore.log", "stats-restore"):
            self.assertTrue(os.path.exists(os.path.join(self.work, name)), f"{name} is not in the work directory")
        self.assertTrue(os.path.exists(os.path.join(self.images, "descriptors.json")))

    def test_again_and_again(self):
        self.counting("r-again")
        for i in range(5):
            self.images = os.path.join(self.scratch, f"images{i}")
            self.through("r-again")

    def test_leave_running(self):
        self.counting("r-runs")
        self.checkpoint("r-runs", "--leave-running")
        self.assertEqual(self.state("r-runs")["status"], "running")
        self.assert_seamless(self.out.wait_for(self.out.numbers()[-1] + 3))

    def test_pid_file(self):
        self.counting("r-pid")
        self.checkpoint("r-pid")
        path = os.path.join(self.scratch, "pid")
        self.restore("r-pid", "--pid-file", path)
        with open(path, encoding="ascii") as f:
            self.assertEqual(int(f.read()), self.state("r-pid")["pid"])

    def test_in_the_foreground_it_ends_with_the_containers_status(self):
        script = "i=0; while [ ! -e /end ]; do echo $i; i=$(expr $i + 1); sleep 0.05; done; exit 7"
        path = self.counting("r-front", argv=["/bin/sh", "-c", script])
        self.checkpoint("r-front")
        self.out.close_ours()
        self.out = self.new_output()
        child = self.h1.popen(["runc", "--root", os.path.join(self.scratch, "state"), "restore", "--bundle", path,
                               "--image-path", self.images, "--work-path", self.work, "r-front"],
                              stdout=self.out.fd, stderr=self.out.fd)
        self.lab.children.append(child)
        self.out.wait_for(5)
        with open(os.path.join(path, "rootfs", "end"), "w", encoding="ascii"):
            pass
        self.assertEqual(child.wait(20), 7)

    def test_file_locks(self):
        self.counting("r-locks", image="python", argv=["/usr/bin/python3", "-c", LOCKER])
        code = self.runc("checkpoint", "--image-path", self.images, "--work-path", self.work, "r-locks", check=False)
        self.assertNotEqual(code, 0)
        self.assertIn("file-locks", self.told())
        self.assertEqual(self.state("r-locks")["status"], "running")
        self.through("r-locks", "--file-locks")

    def test_cgroup_modes(self):
        def limited(config):
            # Room for a criu that watches itself (./test asan) as well, which runs in the container's group for a while.
            config["linux"]["resources"]["memory"] = {"limit": 256 << 20}
            config["linux"]["resources"]["pids"] = {"limit": 32}
        for mode in ("soft", "full", "strict"):
            with self.subTest(mode=mode):
                self.images = os.path.join(self.scratch, f"images-{mode}")
                self.out = self.new_output()
                self.counting(f"r-{mode}", change=limited)
                self.through(f"r-{mode}", "--manage-cgroups-mode", mode)
                with open(f"/proc/{self.state(f'r-{mode}')['pid']}/cgroup", encoding="ascii") as f:
                    for line in f:
                        controller, path = line.strip().split(":")[1:]
                        if controller in ("memory", "pids"):
                            self.assertEqual(path, f"{self.h1.cgroup}/r-{mode}")

    def test_empty_network_namespace(self):
        self.counting("r-net")
        self.through("r-net", "--empty-ns", "network")

    def test_switches_that_have_nothing_to_do(self):
        self.counting("r-switch")
        self.through("r-switch", "--tcp-established", "--ext-unix-sk", "--shell-job", "--auto-dedup")

    def test_console(self):
        """A terminal of the container's own: its master is handed out again at the restore."""
        path = self.bundle("r-tty", argv=["/bin/sh"], change=lambda c: c["process"].update(terminal=True))
        console = bundles.ConsoleSocket(os.path.join(self.scratch, "console"))
        self.addCleanup(console.close)
        self.runc("run", "--detach", "--console-socket", console.path, "--bundle", path, "r-tty")
        master = console.take()
        self.assertIn(b"before", self.say(master, "x=kept; stty -echo rows 33 cols 77; echo be''fore\n", b"before\r\n"))
        self.checkpoint("r-tty")
        os.close(master)
        self.runc("restore", "--detach", "--bundle", path, "--image-path", self.images, "--work-path", self.work,
                  "--console-socket", console.path, "r-tty")
        master = console.take()
        self.addCleanup(os.close, master)
        self.assertIn(b"still kept", self.say(master, "echo still $x\n", b"kept\r\n"))
        self.assertIn(b"columns 77", self.say(master, "stty -a\n", b"columns 77"))
        self.assertFalse(termios.tcgetattr(master)[3] & termios.ECHO)

    def say(self, master, text, until):
        os.write(master, text.encode())
        os.set_blocking(master, False)
        heard = b""

        def arrived():
            nonlocal heard
            try:
                heard += os.read(master, 4096)
            except BlockingIOError:
                pass
            return until in heard
        wait_until(arrived, 10, lambda: f"{until!r} on the terminal, it said {heard!r}", 0.02)
        return heard

    def test_hooks_run_at_a_restore(self):
        def hooked(config):
            config["hooks"] = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", f"echo prestart >>{mark}"]}],
                               "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"echo runtime >>{mark}"]}]}
        mark = os.path.join(self.scratch, "mark")
        self.counting("r-hooks", change=hooked)
        os.unlink(mark)
        self.through("r-hooks")
        with open(mark, encoding="ascii") as f:
            self.assertEqual(f.read().split(), ["prestart", "runtime"])

    def test_network_namespace_given_by_path(self):
        """Not the container's own: it is found again by its key, not restored."""
        holder = self.h1.popen(["unshare", "--net", "sleep", "infinity"])
        self.lab.children.append(holder)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        wait_until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != os.readlink(f"/proc/{self.h1.keeper.pid}/ns/net"),
                   5, "a network namespace")
        path = f"/proc/{holder.pid}/ns/net"

        def given(config):
            for namespace in config["linux"]["namespaces"]:
                if namespace["type"] == "network":
                    namespace["path"] = path
        self.counting("r-path", change=given)
        self.through("r-path")
        self.assertEqual(os.readlink(f"/proc/{self.state('r-path')['pid']}/ns/net"), os.readlink(path))

    def test_host_namespaces(self):
        for kind in ("network", "ipc", "uts", "pid"):
            with self.subTest(namespace=kind):
                self.images = os.path.join(self.scratch, f"images-{kind}")
                self.out = self.new_output()
                self.counting(f"r-{kind}", change=lambda c, k=kind: self.of_the_host(c, k))
                self.through(f"r-{kind}")

    @staticmethod
    def of_the_host(config, kind):
        bundles.without_namespace(config, kind)
        if kind == "uts":
            del config["hostname"]
        if kind == "network":
            # Without a network namespace of its own it may not mount sysfs (mount(2)): bind it.
            for mount in config["mounts"]:
                if mount["type"] == "sysfs":
                    mount.update(type="none", source="/sys", options=["rbind", "nosuid", "noexec", "nodev", "ro"])
        if kind == "ipc":
            config["mounts"] = [m for m in config["mounts"] if m["type"] != "mqueue"]


class Incremental(RuncCase):
    def test_pre_dumps_and_the_rest(self):
        if self.h1.run(["criu", "check", "--feature", "mem_dirty_track"], check=False).returncode != 0:
            self.skipTest("criu check --feature mem_dirty_track: changed memory cannot be told apart")
        self.counting("r-pre")
        for i in range(2):
            parent = ["--parent-path", f"../pre{i - 1}"] if i else []
            self.runc("checkpoint", "--pre-dump", "--image-path", os.path.join(self.scratch, f"pre{i}"), "--work-path", self.work,
                      *parent, "r-pre")
            self.assertEqual(self.state("r-pre")["status"], "running")
            self.assert_seamless(self.out.wait_for(self.out.numbers()[-1] + 3))
        self.checkpoint("r-pre", "--parent-path", "../pre1")
        self.out.close_ours()
        before = self.out.numbers()
        self.restore("r-pre")
        self.assert_seamless(before + self.out.wait_for(before[-1] + 3), start=before[0])


class Refusals(RuncCase):
    def test_restore_of_a_running_container(self):
        path = self.counting("r-twice")
        self.checkpoint("r-twice", "--leave-running")
        code = self.runc("restore", "--detach", "--bundle", path, "--image-path", self.images, "r-twice", check=False,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.assertNotEqual(code, 0)
        self.assert_seamless(self.out.wait_for(self.out.numbers()[-1] + 3))

    def test_restore_that_fails_leaves_nothing(self):
        path = self.counting("r-broken")
        self.checkpoint("r-broken")
        good = self.images + ".good"
        os.rename(self.images, good)
        for missing in ("pstree.img", "core-1.img", "pages-1.img", "mountpoints-"):
            with self.subTest(missing=missing):
                self.h1.run(["cp", "-r", good, self.images])
                for name in os.listdir(self.images):
                    if name.startswith(missing):
                        os.unlink(os.path.join(self.images, name))
                code = self.runc("restore", "--detach", "--bundle", path, "--image-path", self.images, "--work-path",
                                 self.work, "r-broken", check=False)
                self.assertNotEqual(code, 0)
                self.assertFalse(self.exists("r-broken"))
                self.assertFalse(os.path.isdir(f"/sys/fs/cgroup/memory{self.h1.cgroup}/r-broken"))
                self.h1.run(["rm", "-r", self.images])
        os.rename(good, self.images)
        self.restore("r-broken")
        self.out.wait_for(3)

    def test_lazy_pages(self):
        """The container goes on under another name while its memory is with the first one."""
        self.counting("r-lazy")
        port = "7474"
        status, told = os.pipe()
        self.addCleanup(os.close, status)
        checkpoint = self.h1.popen(["runc", "--root", os.path.join(self.scratch, "state"), "--log",
                                    os.path.join(self.scratch, "runc.log"), "checkpoint", "--image-path", self.images,
                                    "--work-path", self.work, "--lazy-pages", "--page-server", f"127.0.0.1:{port}",
                                    "--status-fd", str(told), "r-lazy"], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, pass_fds=[told])
        self.addCleanup(checkpoint.wait)
        self.addCleanup(checkpoint.kill)
        os.close(told)
        self.assertEqual(os.read(status, 1), b"\0", self.told())
        before = self.out.numbers()
        self.out.close_ours()
        there = os.path.join(self.scratch, "there")
        os.mkdir(there)
        self.h1.run(["criu", "lazy-pages", "--daemon", "--page-server", "--address", "127.0.0.1", "--port", port, "-D",
                     self.images, "-W", there, "-o", "lazy.log", "-v4"])
        self.bundle("r-lazy2")
        self.work, work = there, self.work
        self.restore("r-lazy2", "--lazy-pages")
        self.assert_seamless(before + self.out.wait_for(before[-1] + 3), start=before[0])
        self.assertEqual(checkpoint.wait(30), 0, self.told())
        self.assertTrue(os.path.exists(os.path.join(work, "dump.log")))

    def test_a_page_server(self):
        """One that is there, and one that is not: then the container runs on."""
        self.counting("r-pages")
        code = self.runc("checkpoint", "--image-path", self.images, "--work-path", self.work, "--page-server",
                         "127.0.0.1:9", "r-pages", check=False)
        self.assertNotEqual(code, 0)
        self.assertIn("page server", self.told())
        self.assertEqual(self.state("r-pages")["status"], "running")
        self.h1.run(["criu", "page-server", "--daemon", "--port", "7475", "-D", self.images, "-o", "ps.log"])
        self.through("r-pages", checkpoint=["--page-server", "127.0.0.1:7475"])

    def test_a_file_of_the_host_as_output(self):
        """Its path means nothing inside: refused, by name, before anything is lost."""
        path = self.bundle("r-file")
        log = os.path.join(self.h1.tmp, "output")
        with open(log, "wb") as f:
            self.runc("run", "--detach", "--bundle", path, "r-file", stdout=f)
        code = self.runc("checkpoint", "--image-path", self.images, "--work-path", self.work, "r-file", check=False)
        self.assertNotEqual(code, 0)
        self.assertIn(f"fd 1 ({log})", self.told())
        self.assertEqual(self.state("r-file")["status"], "running")

    def test_terminal_of_the_host_as_output(self):
        path = self.bundle("r-job")
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        name = os.ttyname(slave)
        self.runc("run", "--detach", "--bundle", path, "r-job", stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        code = self.runc("checkpoint", "--image-path", self.images, "--work-path", self.work, "--shell-job", "r-job", check=False)
        self.assertNotEqual(code, 0)
        self.assertIn(f"fd 0: {name} is on a mount that the tree does not have", self.told())
        self.assertEqual(self.state("r-job")["status"], "running")

    def test_killed_runc_leaves_nothing(self):
        """Its criu is told by the end of the socket."""
        path = self.counting("r-killed")
        self.checkpoint("r-killed")
        child = self.h1.popen(["runc", "--root", os.path.join(self.scratch, "state"), "restore", "--detach", "--bundle", path,
                               "--image-path", self.images, "--work-path", self.work, "r-killed"])
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        cgroup = f"{self.h1.cgroup}/r-killed"

        def nobody():
            try:
                with open(f"/sys/fs/cgroup/memory{cgroup}/cgroup.procs", encoding="ascii") as f:
                    return not f.read()
            except FileNotFoundError:
                return True
        wait_until(nobody, 10, "the half restored tree to be gone")
