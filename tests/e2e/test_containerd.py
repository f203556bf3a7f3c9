"""containerd's own client, ctr: checkpoints of tasks and containers, and what comes of them."""

import os
import tempfile

from ferrylab import wait_until
from support import LabCase

# Counts in a file of the root filesystem, because ctr gives a restored task no log.
COUNT = "i=0; while true; do i=$(expr $i + 1); echo $i >/count.new; mv /count.new /count; sleep 0.05; done"
IMAGE = "docker.io/library/busybox:latest"


class Containerd(LabCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        if IMAGE not in self.ctr("images", "ls", "--quiet"):
            self.h1.image("busybox")
            archive = os.path.join(self.scratch, "busybox.tar")
            self.h1.docker("save", "--output", archive, "busybox")
            self.ctr("images", "import", archive)

    def ctr(self, *arguments, check=True):
        done = self.h1.run(["ctr", "--address", "/run/docker/containerd/containerd.sock", "--namespace", "ferry", *arguments],
                           check=check, timeout=50)
        return done.stdout if check else done

    def start(self, name, *options):
        self.addCleanup(self.remove, name)
        self.ctr("run", "--detach", "--cgroup", f"{self.h1.cgroup}/{name}", *options, IMAGE, name, "/bin/sh", "-c", COUNT)
        self.wait_for_count(name, 5)

    def remove(self, name):
        self.ctr("tasks", "kill", "--signal", "SIGKILL", name, check=False)
        wait_until(lambda: name not in self.ctr("tasks", "ls") or self.ctr("tasks", "rm", name, check=False).returncode == 0,
                   15, f"task {name} to be removable", 0.1)
        self.ctr("containers", "rm", name, check=False)

    def count(self, name):
        done = self.ctr("tasks", "exec", "--exec-id", f"look{os.urandom(4).hex()}", name, "cat", "/count", check=False)
        return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else -1

    def wait_for_count(self, name, at_least):
        return wait_until(lambda: (n := self.count(name)) >= at_least and n, 20, f"{name} to count to {at_least}", 0.1)

    def status(self, name):
        for line in self.ctr("tasks", "ls").splitlines():
            if line.split()[0] == name:
                return line.split()[2]
        return None

    def test_container_checkpoint_and_restore(self):
        self.start("c-plain")
        self.ctr("containers", "checkpoint", "--task", "--rw", "--image", "c-plain", "ferry/c-plain:1")
        self.addCleanup(self.ctr, "images", "rm", "ferry/c-plain:1", check=False)
        kept = self.count("c-plain")
        self.remove("c-plain")
        self.ctr("containers", "restore", "--live", "--rw", "c-plain", "ferry/c-plain:1")
        self.assertEqual(self.status("c-plain"), "RUNNING")
        # A loop that began anew would be far below what was counted before it was saved.
        self.assertGreaterEqual(self.wait_for_count("c-plain", 2), 3)
        self.wait_for_count("c-plain", kept + 3)

    def test_a_second_container_from_the_same_checkpoint(self):
        self.start("c-parent")
        self.ctr("containers", "checkpoint", "--task", "--rw", "--image", "c-parent", "ferry/c-parent:1")
        self.addCleanup(self.ctr, "images", "rm", "ferry/c-parent:1", check=False)
        self.remove("c-parent")
        for name in ("c-twin1", "c-twin2"):
            self.addCleanup(self.remove, name)
            self.ctr("containers", "restore", "--live", "--rw", name, "ferry/c-parent:1")
            self.wait_for_count(name, 5)
            self.remove(name)

    def test_task_checkpoint_that_ends_it(self):
        self.start("c-exit")
        images = os.path.join(self.scratch, "images")
        self.ctr("tasks", "checkpoint", "--exit", "--image-path", images, "--work-path", self.scratch, "c-exit")
        wait_until(lambda: self.status("c-exit") == "STOPPED", 10, "the task to end")
        self.assertTrue(os.path.exists(os.path.join(images, "inventory.img")))
        self.assertIn("complete", self.h1.run(["ferry", "image", "verify", images]).stdout)

    def test_task_checkpoint_that_lets_it_run(self):
        self.start("c-runs")
        images = os.path.join(self.scratch, "images")
        self.ctr("tasks", "checkpoint", "--image-path", images, "--work-path", self.scratch, "c-runs")
        self.assertEqual(self.status("c-runs"), "RUNNING")
        self.wait_for_count("c-runs", self.count("c-runs") + 3)
