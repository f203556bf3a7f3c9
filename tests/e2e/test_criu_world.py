"""What a tree hangs on outside of its processes: groups that have to be made, interfaces with one end
on the host, file systems on block devices."""

import os
import signal

from ferrylab import processes, wait_until
from criu_case import COUNT_TO_FILE, CriuCase

PIDS = "/sys/fs/cgroup/pids"


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read().strip()


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


class CriuWorld(CriuCase):
    def group(self, name):
        path = f"{PIDS}/{name}"
        os.mkdir(path)
        self.addCleanup(self.remove_group, path)
        return path

    def remove_group(self, path):
        if os.path.isdir(path):
            for pid in read(f"{path}/cgroup.procs").split():
                os.kill(int(pid), signal.SIGKILL)
            wait_until(lambda: not read(f"{path}/cgroup.procs"), 10, "the group to be empty")
            os.rmdir(path)

    def grouped(self):
        """A counter in a group with a limit, dumped; the group is gone."""
        path = self.group(f"ferry-e2e-{os.getpid()}")
        write(f"{path}/pids.max", "37")
        pid = self.start()
        write(f"{path}/cgroup.procs", str(pid))
        self.wait_for_lines(3)
        return path, pid

    def test_groups_are_made_with_their_properties(self):
        path, pid = self.grouped()
        self.dump(pid)
        self.reaped(pid)
        wait_until(lambda: not read(f"{path}/cgroup.procs"), 10, "the group to be empty")
        os.rmdir(path)
        before = len(self.counted())
        self.restore()
        self.assertEqual(read(f"{path}/pids.max"), "37")
        self.assertIn(str(pid), read(f"{path}/cgroup.procs").split())
        self.wait_for_lines(before + 3)

    def test_groups_in_which_nothing_runs_are_made_again(self):
        """As a service manager has them between two runs; those of others are left alone."""
        top = self.group(f"ferry-e2e-{os.getpid()}")
        runs, works, idle, others = (self.group(f"{os.path.basename(top)}/{n}") for n in
                                     ("runs", "works", "idle", "others"))
        write(f"{idle}/pids.max", "11")
        stranger, pid = self.start(["sleep", "1000"]), self.start(["busybox", "sh", "-c",
                                                                   "sleep 1000 & " + COUNT_TO_FILE])
        write(f"{others}/cgroup.procs", str(stranger))
        self.wait_for_lines(3)
        children = read(f"/proc/{pid}/task/{pid}/children").split()
        (sleeper,) = [c for c in children if read(f"/proc/{c}/cmdline").startswith("sleep\0001000")]
        write(f"{works}/cgroup.procs", sleeper)
        write(f"{runs}/cgroup.procs", str(pid))
        self.dump(pid)
        self.reaped(pid)
        self.kill_tree(stranger)
        for path in (runs, works, idle, others):
            self.remove_group(path)
        before = len(self.counted())
        self.restore()
        self.assertIn(sleeper, read(f"{works}/cgroup.procs").split())
        self.assertEqual(read(f"{idle}/pids.max"), "11")
        self.assertFalse(os.path.isdir(others), "a group in which a process of somebody else ran")
        self.wait_for_lines(before + 3)

    def test_modes_say_what_may_be_made(self):
        path, pid = self.grouped()
        self.dump(pid)
        self.reaped(pid)
        wait_until(lambda: not read(f"{path}/cgroup.procs"), 10, "the group to be empty")
        self.refused(self.restore("--manage-cgroups=strict", check=False), "exists already")
        os.rmdir(path)
        self.refused(self.restore("--manage-cgroups=none", check=False), os.path.basename(path), "does not exist")
        self.restore("--manage-cgroups=ignore")
        self.assertFalse(os.path.isdir(path))

    def test_a_restore_that_fails_leaves_no_group(self):
        path, pid = self.grouped()
        self.dump(pid)
        self.reaped(pid)
        wait_until(lambda: not read(f"{path}/cgroup.procs"), 10, "the group to be empty")
        os.rmdir(path)
        os.unlink(self.an_image("pages-"))
        done = self.restore(check=False)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertFalse(os.path.isdir(path), "the group that the restore had made is still there")

    def test_only_chosen_controllers_and_further_properties_are_saved(self):
        path, pid = self.grouped()
        self.dump(pid, "--leave-running", "--cgroup-dump-controller", "cpu")
        shown = self.h1.run(["ferry", "image", "show", self.images]).stdout
        self.assertNotIn("pids.max", shown)
        self.wait_for_lines(len(self.counted()) + 2)  # it has gone on
        self.dump(pid, "--cgroup-props", '"pids":\n  - "strategy": "merge"\n  - "properties": ["pids.current"]')
        self.reaped(pid)
        shown = self.h1.run(["ferry", "image", "show", self.images]).stdout
        self.assertIn("pids.max", shown)
        self.assertIn("pids.current", shown)

    def test_a_frozen_group_is_no_obstacle(self):
        freezer = "/sys/fs/cgroup/freezer"
        if not os.path.isdir(freezer):
            self.skipTest("this host has no v1 freezer")
        path = f"{freezer}/ferry-e2e-{os.getpid()}"
        os.mkdir(path)
        self.addCleanup(os.rmdir, path)
        pid = self.start()
        self.addCleanup(lambda: wait_until(lambda: not read(f"{path}/cgroup.procs"), 10, "the group to be empty"))
        self.addCleanup(self.kill_tree, pid)
        self.addCleanup(write, f"{path}/freezer.state", "THAWED")
        write(f"{path}/cgroup.procs", str(pid))
        self.wait_for_lines(3)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: "T (stopped)" in read(f"/proc/{pid}/status"), 10, "the process to be stopped")
        write(f"{path}/freezer.state", "FROZEN")
        wait_until(lambda: read(f"{path}/freezer.state") == "FROZEN", 10, "the group to be frozen")
        self.dump(pid, "--leave-running")
        self.assertEqual(read(f"{path}/freezer.state"), "FROZEN")
        write(f"{path}/freezer.state", "THAWED")
        os.kill(pid, signal.SIGCONT)
        self.wait_for_lines(len(self.counted()) + 3)

    def test_an_interface_whose_other_end_is_on_the_host(self):
        pid = self.start(["unshare", "--net", "busybox", "sh", "-c",
                          "until ip link show eth0 up >/dev/null 2>&1; do sleep 0.05; done; " + COUNT_TO_FILE])
        wait_until(lambda: os.readlink(f"/proc/{pid}/ns/net") != os.readlink(f"/proc/{os.getpid()}/ns/net")
                   and read(f"/proc/{pid}/comm") == "busybox", 10, "the process to have its namespace")
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        self.h1.run(["ip", "link", "add", "ferrybr", "type", "bridge"])
        self.addCleanup(self.h1.run, ["ip", "link", "del", "ferrybr"], check=False)
        self.h1.run(["ip", "link", "add", "ferryout", "type", "veth", "peer", "name", "eth0", "netns", str(pid)])
        self.addCleanup(self.h1.run, ["ip", "link", "del", "ferryout"], check=False)
        self.h1.run(["ip", "link", "set", "ferryout", "master", "ferrybr", "up"])
        self.h1.run([*inside, "addr", "add", "10.99.0.2/24", "dev", "eth0"])
        self.h1.run([*inside, "link", "set", "eth0", "address", "02:00:00:00:99:02", "up"])
        self.h1.run([*inside, "route", "add", "default", "via", "10.99.0.1"])
        self.wait_for_lines(3)
        self.dump(pid)
        self.reaped(pid)
        wait_until(lambda: "ferryout" not in self.h1.run(["ip", "link"]).stdout, 10, "the pair to be gone")
        self.refused(self.restore(check=False), "eth0", "--external veth[eth0]")
        self.restore("--external", "veth[eth0]:ferryout@ferrybr")
        self.assertRegex(self.h1.run(["ip", "link", "show", "ferryout"]).stdout, "master ferrybr")
        shown = self.h1.run([*inside, "addr"]).stdout
        self.assertIn("10.99.0.2/24", shown)
        self.assertIn("02:00:00:00:99:02", shown)
        self.assertIn("default via 10.99.0.1", self.h1.run([*inside, "route"]).stdout)

    def test_a_file_system_on_a_device_that_the_caller_names(self):
        image = os.path.join(self.scratch, "disk")
        with open(image, "wb") as f:
            f.truncate(8 << 20)
        self.h1.run(["mkfs.ext4", "-q", image])
        found = self.h1.run(["losetup", "--find", "--show", image], check=False)
        if found.returncode != 0:
            self.skipTest(f"this host has no loop devices: {found.stdout}")
        device = found.stdout.strip()
        self.addCleanup(self.h1.run, ["losetup", "-d", device], check=False)
        pid = self.start(["unshare", "--mount", "busybox", "sh", "-c",
                          f"mount -t ext4 {device} /mnt && echo kept >/mnt/file && {COUNT_TO_FILE}"])
        self.wait_for_lines(3)
        number = os.stat(device).st_rdev
        key = f"dev[{os.major(number)}/{os.minor(number)}]"
        self.refused(self.dump(pid, check=False), "/mnt", "external")
        self.dump(pid, "--external", f"{key}:disk")
        self.reaped(pid)
        self.refused(self.restore(check=False), "/mnt", "dev[disk]")
        self.restore("--external", f"dev[disk]:{device}")
        self.assertEqual(read(f"/proc/{pid}/root/mnt/file"), "kept")
        self.assertIsNotNone(processes.Process.of(pid))

    def test_handlers_of_the_host_are_not_overwritten_and_none_is_left_behind(self):
        """Without a user namespace of its own a tree registers them with the host."""
        name = f"ferry{os.getpid()}"
        pid = self.start(["unshare", "--mount", "busybox", "sh", "-c",
                          f"mount -t binfmt_misc none /mnt && echo ':{name}:E::{name}::/bin/true:' >/mnt/register && "
                          + COUNT_TO_FILE])
        self.wait_for_lines(3)
        self.dump(pid)
        self.reaped(pid)
        handlers = os.path.join(self.scratch, "handlers")
        os.mkdir(handlers)
        self.h1.run(["mount", "-t", "binfmt_misc", "none", handlers])
        self.addCleanup(self.h1.run, ["umount", handlers])
        place = self.h1.path(handlers)
        self.assertFalse(os.path.exists(f"{place}/{name}"), "the handlers outlived who had mounted them")
        write(f"{place}/register", f":{name}:E::{name}::/bin/false:")
        self.refused(self.restore(check=False), name, "/bin/false")
        self.assertIn("interpreter /bin/false", read(f"{place}/{name}"))
        write(f"{place}/{name}", "-1")
        pages = self.an_image("pages-")
        os.rename(pages, pages + ".away")
        self.assertEqual(self.restore(check=False).returncode, 1)
        self.assertFalse(os.path.exists(f"{place}/{name}"), "a restore that failed has left a handler behind")
        os.rename(pages + ".away", pages)
        self.restore()
        self.addCleanup(write, f"{place}/{name}", "-1")
        self.assertIn("interpreter /bin/true", read(f"{place}/{name}"))
        self.wait_for_lines(len(self.counted()) + 3)
