"""Docker with an engine that is killed, a full disk, and checkpoints that were damaged."""

import contextlib
import os
import shutil
import time

from ferrylab import WaitedTooLong, processes, wait_until
from support import LabCase, deadline
from watching import is_held, programs, untouched


class DamagedCheckpoint(LabCase):
    """Damaged images are refused; the container stays stopped, whole, and can be started afresh."""

    def refused(self, name, damage):
        self.counting(name)
        self.wait_for_count(name, 3)
        self.checkpoint(name, "good")
        directory = self.checkpoint_directory(name, "good")
        damaged = self.checkpoint_directory(name, "damaged")
        shutil.copytree(directory, damaged)
        damage(damaged)
        before = self.counted(name)
        done = self.h1.try_docker("start", "--checkpoint", "damaged", name)
        self.assertNotEqual(done.returncode, 0, "a damaged checkpoint was started")
        self.assertRegex(done.stdout, "criu|descriptors.json")  # the latter is runc's own look at the directory
        state = self.h1.inspect(name)["State"]
        self.assertFalse(state["Running"])
        group = f"{self.h1.cgroup}/{self.h1.inspect(name)['Id']}"
        wait_until(lambda: not processes.belonging("nobody/nobody", group, None), 10,
                   "all processes of the failed start to be gone")
        self.assertEqual(self.counted(name), before)
        # The container itself has taken no harm: the good checkpoint still starts.
        self.start_from(name, "good")
        self.assert_seamless(self.wait_for_count(name, before[-1] + 3))

    def some(self, directory, prefix):
        names = sorted(n for n in os.listdir(directory) if n.startswith(prefix) and n.endswith(".img"))
        self.assertTrue(names, f"no {prefix}*.img in the checkpoint")
        return os.path.join(directory, names[0])

    def test_missing_image(self):
        self.refused("no-core", lambda d: os.unlink(self.some(d, "core-")))

    def test_missing_inventory(self):
        self.refused("no-inventory", lambda d: os.unlink(self.some(d, "inventory")))

    def test_truncated_image(self):
        self.refused("short-mm", lambda d: os.truncate(self.some(d, "mm-"), 11))

    def test_truncated_pages(self):
        self.refused("short-pages", lambda d: os.truncate(self.some(d, "pages-"), 4096))

    def test_corrupt_image(self):
        def garble(directory):
            path = self.some(directory, "pstree")
            with open(path, "r+b") as f:
                f.seek(8)
                f.write(b"\xff" * 16)
        self.refused("garbled", garble)

    def test_empty_directory(self):
        def empty(directory):
            for name in os.listdir(directory):
                os.unlink(os.path.join(directory, name))
        self.refused("empty", empty)


class Interrupted(LabCase):
    def gap(self, name, mebibytes):
        self.container(name, image="gap", argv=["/usr/bin/gap", str(mebibytes), "0", "600", "4"])
        wait_until(lambda: "ready" in self.h1.docker("logs", name), 30, "gap to fill its memory")
        return self.h1.inspect(name)["State"]["Pid"]

    def assert_memory_intact(self, name):
        reports = self.h1.docker("logs", name).count("max_gap_ms")
        self.h1.docker("kill", "--signal", "USR1", name)
        wait_until(lambda: self.h1.docker("logs", name).count("max_gap_ms") > reports, 20, "gap to verify its memory")
        self.assertIn('"bad_pages":0', self.h1.docker("logs", name).splitlines()[-1])

    def assert_untouched(self, pid, before):
        # Thawing is the work of whoever outlives the killed engine, so it may take a moment.
        wait_until(lambda: not is_held(pid), 5, f"process {pid} to be thawed and let go")
        # What was lent to it at that moment is taken back by them too.
        with contextlib.suppress(WaitedTooLong):
            wait_until(lambda: untouched(pid).items() >= before.items(), 5, "everything of ours to be taken out again")
        after = untouched(pid)
        for what, was in before.items():
            self.assertEqual(after[what], was, f"{what} of the container's process changed")

    @deadline(180)
    def test_criu_killed_in_the_middle_of_a_dump(self):
        engine = os.path.realpath(os.path.join(self.bin, "criu"))
        pid = self.gap("killed", 512)
        before = untouched(pid)
        for attempt in range(1, 6):
            dump = self.h1.popen(["docker", "checkpoint", "create", "killed", f"cp{attempt}"])
            shot = False
            while dump.poll() is None and not shot:
                if is_held(pid):
                    for process in programs(self.h1, engine, "swrk"):
                        process.kill()
                        shot = True
                time.sleep(0.001)
            failed = dump.wait(60) != 0
            if shot and failed:
                break
            # The engine was through before it could be shot, so what it wrote has to be good; begin again with a new
            # container.
            self.assertFalse(failed)
            self.wait_until_stopped("killed")
            self.start_from("killed", f"cp{attempt}")
            self.assert_memory_intact("killed")
            self.h1.docker("rm", "--force", "killed")
            pid = self.gap("killed", 512)
            before = untouched(pid)
        else:
            self.fail("in five attempts the engine was never caught while the container was frozen")
        self.assert_untouched(pid, before)
        self.assertTrue(self.running("killed"))
        self.assert_memory_intact("killed")
        self.checkpoint("killed", "after")
        self.start_from("killed", "after")
        self.assert_memory_intact("killed")

    @deadline(120)
    def test_full_disk(self):
        pid = self.gap("full", 16)
        before = untouched(pid)
        # containerd makes the directory for the images below TMPDIR: a small tmpfs there is a full disk.
        self.h1.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", self.h1.tmp])
        try:
            done = self.h1.try_docker("checkpoint", "create", "full", "cp")
        finally:
            self.h1.run(["umount", self.h1.tmp])
        self.assertNotEqual(done.returncode, 0, "a checkpoint of 16 MiB fitted into 1 MiB")
        self.assert_untouched(pid, before)
        self.assert_memory_intact("full")
        self.checkpoint("full", "after")
        self.start_from("full", "after")
        self.assert_memory_intact("full")

    def test_no_such_container_and_stopped_container(self):
        self.assertNotEqual(self.h1.try_docker("checkpoint", "create", "nobody", "cp").returncode, 0)
        self.counting("stopped", command="create")
        self.assertNotEqual(self.h1.try_docker("checkpoint", "create", "stopped", "cp").returncode, 0)
        self.assertNotEqual(self.h1.try_docker("start", "--checkpoint", "never-made", "stopped").returncode, 0)
        self.assertFalse(self.running("stopped"))
