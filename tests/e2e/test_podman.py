"""Podman's own checkpoint and restore commands, and nothing else, with ferry's criu on the PATH."""

import json
import os
import shutil
import tarfile
import tempfile

from ferrylab import wait_until
from podman import Podman
from support import COUNT, LabCase, deadline

SERVER = """import socket, threading
server = socket.create_server(("", 80))
def serve(connection):
    count = 0
    while connection.recv(1):
        count += 1
        connection.sendall(b"%d\\n" % count)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


LOCKER = """import fcntl, itertools, time
lock = open("/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
for i in itertools.count():
    print(i, flush=True)
    time.sleep(0.05)
"""
ASK_FOR_LOCK = """import fcntl
try:
    fcntl.flock(open("/lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free")
except BlockingIOError:
    print("held")
"""


class PodmanCase(LabCase):
    def setUp(self):
        super().setUp()
        if shutil.which("podman") is None:
            self.skipTest("podman is not installed")
        self.podman = Podman.of(self.h1)
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        self.archive = os.path.join(self.scratch, "checkpoint.tar.gz")

    def container_of(self, podman, name, *options, argv=None, image="busybox", network=("--network", "none")):
        self.addCleanup(podman.remove, name)
        podman("run", "--detach", "--name", name, "--cgroup-parent", self.h1.cgroup, *network, *options,
               podman.image(image), *(argv or ["/bin/sh", "-c", COUNT.format(0.05)]))
        return name

    def counting(self, name, *options, **more):  # pylint: disable=arguments-differ
        self.container_of(self.podman, name, *options, **more)
        self.podman.wait_for_count(name, 3)
        return name

    def goes_on(self, name, podman=None, after=0):
        """The count of this container goes on with no number missing or told twice."""
        podman = podman or self.podman
        numbers = podman.counted(name)
        numbers = podman.wait_for_count(name, (numbers[-1] if numbers else after) + 3)
        self.assert_seamless(numbers, start=numbers[0])
        return numbers

    def state(self, name, podman=None):
        return (podman or self.podman).inspect(name)["State"]


class InPlace(PodmanCase):
    def test_checkpoint_and_restore(self):
        self.counting("p-plain")
        self.podman("container", "checkpoint", "p-plain")
        self.assertEqual((self.state("p-plain")["Status"], self.state("p-plain")["Checkpointed"]), ("exited", True))
        self.podman("container", "restore", "p-plain")
        self.assertTrue(self.state("p-plain")["Running"])
        self.assertEqual(self.goes_on("p-plain")[0], 0)
        self.assertEqual(self.podman("exec", "p-plain", "echo", "inside"), "inside")

    def test_leave_running(self):
        self.counting("p-runs")
        self.podman("container", "checkpoint", "--leave-running", "p-runs")
        self.assertTrue(self.state("p-runs")["Running"])
        self.goes_on("p-runs")

    def test_statistics(self):
        self.counting("p-stats")
        dumped = json.loads(self.podman("container", "checkpoint", "--print-stats", "p-stats"))
        told = dumped["container_statistics"][0]["criu_statistics"]
        self.assertGreater(told["frozen_time"], 0)
        self.assertGreater(told["pages_written"], 0)
        restored = json.loads(self.podman("container", "restore", "--print-stats", "p-stats"))
        told = restored["container_statistics"][0]["criu_statistics"]
        self.assertGreater(told["restore_time"], 0)
        self.assertGreater(told["pages_restored"], 0)

    def test_keep(self):
        """With --keep logs and images stay, and the same checkpoint can be restored again and again."""
        self.counting("p-keep")
        self.podman("container", "checkpoint", "--keep", "p-keep")
        known = self.state("p-keep")
        self.assertTrue(os.path.exists(known["CheckpointLog"]))
        self.assertTrue(os.path.exists(os.path.join(known["CheckpointPath"], "inventory.img")))
        last = self.podman.counted("p-keep")[-1]
        for _ in range(3):
            self.podman("container", "restore", "--keep", "p-keep")
            self.assertTrue(os.path.exists(self.state("p-keep")["RestoreLog"]))
            self.podman.wait_for_count("p-keep", last + 2)
            self.podman("stop", "--time", "0", "p-keep")

    def test_all_and_several(self):
        names = [self.counting(f"p-many{i}") for i in range(3)]
        self.podman("container", "checkpoint", *names[:2])
        self.assertEqual([self.state(n)["Running"] for n in names], [False, False, True])
        self.podman("container", "restore", *names[:2])
        self.podman("container", "checkpoint", "--all")
        self.assertEqual([self.state(n)["Running"] for n in names], [False, False, False])
        self.podman("container", "restore", "--all")
        for name in names:
            self.goes_on(name)

    def test_variants(self):
        for name, options in {"tty": ["--tty"], "interactive": ["--interactive"], "read-only": ["--read-only"],
                              "tmpfs": ["--read-only", "--tmpfs", "/tmp:rw,size=4m"], "user": ["--user", "65534:65534"],
                              "memory": ["--memory", "64m", "--cpus", "0.5"], "pid": ["--pid", "host"],
                              "ipc": ["--ipc", "host"], "uts": ["--uts", "host"], "privileged": ["--privileged"],
                              "shm": ["--shm-size", "8m"], "caps": ["--cap-add", "SYS_PTRACE", "--cap-drop", "CHOWN"],
                              "seccomp": ["--security-opt", "seccomp=unconfined"], "cgroupns": ["--cgroupns", "private"],
                              "privileges": ["--security-opt", "no-new-privileges"]}.items():
            with self.subTest(variant=name):
                self.counting(f"p-{name}", *options)
                self.podman("container", "checkpoint", f"p-{name}")
                self.podman("container", "restore", f"p-{name}")
                self.goes_on(f"p-{name}")
                self.podman.remove(f"p-{name}")

    def test_file_locks(self):
        self.counting("p-locks", image="python", argv=["/usr/bin/python3", "-c", LOCKER])
        refused = self.podman.run("container", "checkpoint", "p-locks", check=False)
        self.assertNotEqual(refused.returncode, 0, "a lock is lost without --file-locks and nobody said so")
        self.assertTrue(self.state("p-locks")["Running"])
        self.goes_on("p-locks")
        self.podman("container", "checkpoint", "--file-locks", "p-locks")
        self.podman("container", "restore", "--file-locks", "p-locks")
        self.goes_on("p-locks")
        self.assertEqual(self.podman("exec", "p-locks", "/usr/bin/python3", "-c", ASK_FOR_LOCK), "held")

    def test_pod(self):
        """Containers of a pod share network, IPC and host name with one that is not checkpointed."""
        infra = ["--infra-image", self.podman.image("busybox"), "--infra-command", "/bin/sleep 100000"]
        pod = self.podman("pod", "create", "--name", "p-pod", "--cgroup-parent", self.h1.cgroup, *infra)
        self.addCleanup(self.podman.run, "pod", "rm", "--force", "--time", "0", "p-pod", check=False)
        for name in ("p-in-pod1", "p-in-pod2"):
            self.addCleanup(self.podman.remove, name)
            self.podman("run", "--detach", "--pod", "p-pod", "--name", name, self.podman.image("busybox"),
                        "/bin/sh", "-c", COUNT.format(0.05))
            self.podman.wait_for_count(name, 3)
        self.podman("container", "checkpoint", "p-in-pod1")
        self.podman("container", "restore", "p-in-pod1")
        self.goes_on("p-in-pod1")
        self.podman("container", "checkpoint", "--export", self.archive, "p-in-pod1")
        self.podman.remove("p-in-pod1")
        self.podman("container", "restore", "--import", self.archive, "--pod", pod)
        self.goes_on("p-in-pod1")
        self.goes_on("p-in-pod2")
        same = [self.podman("exec", name, "readlink", "/proc/self/ns/net") for name in ("p-in-pod1", "p-in-pod2")]
        self.assertEqual(same[0], same[1])


class Archives(PodmanCase):
    def test_export_and_import_on_another_host(self):
        self.counting("p-moves", argv=["/bin/sh", "-c", "echo kept >/note; " + COUNT.format(0.05)])
        self.podman("container", "checkpoint", "--export", self.archive, "p-moves")
        before = self.podman.counted("p-moves")
        there = Podman.of(self.h2)
        there.image("busybox")
        self.addCleanup(there.remove, "p-moves")
        there("container", "restore", "--import", self.archive)
        numbers = self.goes_on("p-moves", there)  # the log moves along
        self.assertEqual(numbers[:len(before)], before)
        self.assertEqual(there("exec", "p-moves", "cat", "/note"), "kept")

    def test_leave_running_and_clones_with_names_of_their_own(self):
        self.counting("p-parent")
        self.podman("container", "checkpoint", "--leave-running", "--export", self.archive, "p-parent")
        for name in ("p-clone1", "p-clone2"):
            self.addCleanup(self.podman.remove, name)
            self.podman("container", "restore", "--import", self.archive, "--name", name)
            numbers = self.podman.counted(name)
            self.podman.wait_for_count(name, numbers[-1] + 3)
        self.goes_on("p-parent")
        self.assertEqual(len({self.podman.inspect(n)["Id"] for n in ("p-parent", "p-clone1", "p-clone2")}), 3)

    def test_without_the_root_filesystem(self):
        self.counting("p-rootless", argv=["/bin/sh", "-c", "echo lost >/note; " + COUNT.format(0.05)])
        self.podman("container", "checkpoint", "--ignore-rootfs", "--compress", "none", "--export", self.archive, "p-rootless")
        with tarfile.open(self.archive) as tar:
            self.assertNotIn("rootfs-diff.tar", tar.getnames())
        self.podman.remove("p-rootless")
        self.podman("container", "restore", "--import", self.archive)
        self.goes_on("p-rootless")
        self.assertNotEqual(self.podman.run("exec", "p-rootless", "cat", "/note", check=False).returncode, 0)

    def test_volumes(self):
        argv = ["/bin/sh", "-c", "exec 3>>/data/log; " + COUNT.format(0.05).replace("echo $i;", "echo $i; echo $i >&3;")]
        self.counting("p-volume", "--volume", "p-data:/data", argv=argv)
        self.addCleanup(self.podman.run, "volume", "rm", "--force", "p-data", check=False)
        self.podman("container", "checkpoint", "--export", self.archive, "p-volume")
        self.podman.remove("p-volume")
        self.podman("volume", "rm", "p-data")
        self.podman("container", "restore", "--import", self.archive)
        self.goes_on("p-volume")
        kept = [int(n) for n in self.podman("exec", "p-volume", "cat", "/data/log").split()]
        self.assert_seamless(kept)

    def test_ignore_volumes(self):
        self.counting("p-novolume", "--volume", "p-other:/data", argv=["/bin/sh", "-c", "echo x >/data/x; " + COUNT.format(0.05)])
        self.addCleanup(self.podman.run, "volume", "rm", "--force", "p-other", check=False)
        self.podman("container", "checkpoint", "--ignore-volumes", "--export", self.archive, "p-novolume")
        self.podman.remove("p-novolume")
        self.podman("volume", "rm", "p-other")
        self.podman("container", "restore", "--import", self.archive, "--ignore-volumes")
        self.goes_on("p-novolume")
        self.assertEqual(self.podman("exec", "p-novolume", "ls", "/data"), "")

    def test_restore_twice_is_refused(self):
        self.counting("p-twice")
        self.podman("container", "checkpoint", "--leave-running", "--export", self.archive, "p-twice")
        refused = self.podman.run("container", "restore", "--import", self.archive, check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.goes_on("p-twice")

    def test_published_port(self):
        """The bridge network: another published port, and the listening program answers on it."""
        self.container_of(self.podman, "p-port", "--publish", "8091:80", image="python", network=(),
                          argv=["/usr/bin/python3", "-c", SERVER])
        self.assertEqual(self.ask(8091), b"1\n")
        self.podman("container", "checkpoint", "--export", self.archive, "p-port")
        self.podman.remove("p-port")
        self.podman("container", "restore", "--import", self.archive, "--publish", "8092:80")
        self.assertEqual(self.ask(8092), b"1\n")

    def ask(self, port):
        address = self.podman.inspect("p-port")["NetworkSettings"]["IPAddress"]
        self.assertTrue(address)

        def answer():
            try:
                with self.h1.connect(self.h1.address, port, timeout=5) as s:
                    s.sendall(b"x")
                    return s.recv(10)
            except OSError:
                return None
        return wait_until(answer, 15, f"the server behind port {port} to answer", 0.1)


class Incremental(PodmanCase):
    def setUp(self):
        super().setUp()
        if self.h1.run(["criu", "check", "--feature", "mem_dirty_track"], check=False).returncode != 0:
            self.skipTest("criu check --feature mem_dirty_track: changed memory cannot be told apart")

    def test_pre_checkpoint_and_the_rest(self):
        self.counting("p-pre")
        first = os.path.join(self.scratch, "first.tar.gz")
        self.podman("container", "checkpoint", "--pre-checkpoint", "--export", first, "p-pre")
        self.assertTrue(self.state("p-pre")["Running"])
        self.goes_on("p-pre")
        self.podman("container", "checkpoint", "--with-previous", "--export", self.archive, "p-pre")
        self.podman.remove("p-pre")
        self.podman("container", "restore", "--import-previous", first, "--import", self.archive)
        self.goes_on("p-pre")


class Broken(PodmanCase):
    @deadline(90)
    def test_an_archive_without_its_tree_is_refused_and_leaves_nothing(self):
        self.counting("p-broken")
        self.podman("container", "checkpoint", "--compress", "none", "--export", self.archive, "p-broken")
        self.podman.remove("p-broken")
        broken = os.path.join(self.scratch, "broken.tar")
        with tarfile.open(self.archive) as whole, tarfile.open(broken, "w") as part:
            for member in whole:
                if member.name != "checkpoint/pstree.img":
                    part.addfile(member, whole.extractfile(member) if member.isfile() else None)
        refused = self.podman.run("container", "restore", "--import", broken, check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertEqual(self.podman("ps", "--quiet"), "")
        self.podman.remove("p-broken")
        self.podman("container", "restore", "--import", self.archive)
        self.goes_on("p-broken")
