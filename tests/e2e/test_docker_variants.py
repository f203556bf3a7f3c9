"""The story with the options that people give their containers."""

import os
import tempfile

from ferrylab import wait_until
from support import SMALL_MEMORY, LabCase, deadline


class Variants(LabCase):
    def story(self, name, *options):
        """Counts, is checkpointed, is started from it, counts on; returns what Docker knows of it."""
        self.counting(name, *options)
        self.through_a_checkpoint(name)
        return self.h1.inspect(name)

    def through_a_checkpoint(self, name, checkpoint="cp"):
        self.wait_for_count(name, 5)
        self.checkpoint(name, checkpoint)
        before = self.counted(name)
        self.start_from(name, checkpoint)
        self.assert_seamless(self.wait_for_count(name, before[-1] + 5))

    def inside(self, name, command):
        return self.h1.docker("exec", name, "/bin/sh", "-c", command)

    def test_default_seccomp(self):
        self.story("seccomp")
        self.assertIn("Seccomp:\t2", self.inside("seccomp", "cat /proc/1/status"))

    def test_tty(self):
        self.story("tty", "--tty")
        self.assertIn("/dev/pts/0", self.inside("tty", "readlink /proc/1/fd/1"))

    def test_a_terminal_that_nobody_holds_open(self):
        give_up = ("import fcntl, os, signal, termios, time\n"
                   "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
                   "fcntl.ioctl(0, termios.TIOCNOTTY)\n"
                   "null = os.open('/dev/null', os.O_RDWR)\n"
                   "for fd in range(3): os.dup2(null, fd)\n"
                   "time.sleep(1000)\n")
        self.container("closed", "--tty", image="python", argv=["/usr/bin/python3", "-c", give_up])
        wait_until(lambda: "pts" not in self.inside("closed", "ls -l /proc/1/fd"), 10, "the terminal to be given up")
        done = self.h1.try_docker("checkpoint", "create", "closed", "cp")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("/dev/console (devpts) shows terminal /0, which no process of the tree holds open",
                      self.with_engine_log(self.h1, done.stdout))
        self.assertTrue(self.running("closed"))

    def test_interactive(self):
        self.story("interactive", "--interactive")

    def test_tty_and_interactive(self):
        self.story("tty-interactive", "--tty", "--interactive")

    def test_network_none(self):
        self.story("none", "--network", "none")
        self.assertEqual(self.inside("none", "ls /sys/class/net"), "lo")

    def test_default_bridge(self):
        self.story("bridge", "--network", "bridge")
        address = self.h1.inspect("bridge")["NetworkSettings"]["IPAddress"]
        self.assertIn(address, self.inside("bridge", "ip address show eth0"))

    def test_user(self):
        self.story("user", "--user", "1234:5678")
        status = self.inside("user", "cat /proc/1/status")
        self.assertIn("Uid:\t1234\t1234\t1234\t1234", status)
        self.assertIn("Gid:\t5678\t5678\t5678\t5678", status)

    def test_memory_and_cpus(self):
        self.story("limits", "--memory", str(SMALL_MEMORY), "--cpus", "0.5")
        self.assertEqual(self.h1.inspect("limits")["HostConfig"]["Memory"], SMALL_MEMORY)
        group = os.path.join(self.h1.cgroup.lstrip("/"), self.h1.inspect("limits")["Id"])
        for limit in (os.path.join("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"),
                      os.path.join("/sys/fs/cgroup", group, "memory.max")):
            if os.path.exists(limit):
                with open(limit, encoding="ascii") as f:
                    self.assertEqual(int(f.read()), SMALL_MEMORY)
                break
        else:
            self.fail(f"no memory limit is to be seen in the cgroup {group}")

    def test_bind_mounted_volume(self):
        with tempfile.TemporaryDirectory(dir=self.h1.tmp) as volume:
            name = self.container("volume", "--volume", f"{volume}:/data", argv=[
                "/bin/sh", "-c", "exec 3>>/data/log; i=0; while true; do echo $i; echo $i >&3; "
                                 "i=$(expr $i + 1); sleep 0.1; done"])
            self.through_a_checkpoint(name)
            self.h1.docker("kill", name)
            with open(os.path.join(volume, "log"), encoding="ascii") as f:
                written = [int(n) for n in f.read().split()]
            self.assert_seamless(written)
            self.assertLessEqual(abs(len(written) - len(self.counted(name))), 1)

    def test_named_volume(self):
        self.addCleanup(self.h1.try_docker, "volume", "rm", "--force", "ferry-vol")
        self.counting("named-volume", "--volume", "ferry-vol:/data")
        self.inside("named-volume", "echo kept >/data/file")
        self.through_a_checkpoint("named-volume")
        self.assertEqual(self.inside("named-volume", "cat /data/file"), "kept")

    def test_ipc_host(self):
        self.story("ipc", "--ipc", "host")
        self.assertEqual(self.inside("ipc", "readlink /proc/1/ns/ipc"), os.readlink("/proc/self/ns/ipc"))

    def test_pid_host(self):
        self.story("pid", "--pid", "host")

    def test_init(self):
        self.h1.run(["sh", "-c", "command -v docker-init"])
        self.story("init", "--init")
        self.assertIn("docker-init", self.inside("init", "cat /proc/1/cmdline"))

    def test_read_only_with_tmpfs(self):
        self.counting("readonly", "--read-only", "--tmpfs", "/x")
        self.inside("readonly", "echo kept >/x/file; mkdir /x/dir; ln -s file /x/dir/link")
        self.through_a_checkpoint("readonly")
        self.assertEqual(self.inside("readonly", "cat /x/file; readlink /x/dir/link"), "kept\nfile")
        self.assertNotEqual(self.h1.try_docker("exec", "readonly", "touch", "/etc/new").returncode, 0)

    def test_environment_hostname_and_workdir(self):
        self.story("dressed", "--hostname", "dressed-up", "--env", "GREETING=hello", "--workdir", "/srv")
        self.assertEqual(self.inside("dressed", "hostname; readlink /proc/1/cwd"), "dressed-up\n/srv")
        self.assertIn("GREETING=hello", self.inside("dressed", "tr '\\0' '\\n' </proc/1/environ").splitlines())

    def test_changes_to_the_root_filesystem_stay(self):
        self.counting("layer")
        self.inside("layer", "echo kept >/root/file; rm /etc/group")
        self.through_a_checkpoint("layer")
        self.assertEqual(self.inside("layer", "cat /root/file; ls /etc/group 2>/dev/null; true"), "kept")

    def test_leave_running(self):
        self.counting("left")
        self.wait_for_count("left", 5)
        pid = self.h1.inspect("left")["State"]["Pid"]
        self.checkpoint("left", "cp", "--leave-running")
        before = self.counted("left")
        self.assertTrue(self.running("left"))
        self.assertEqual(self.h1.inspect("left")["State"]["Pid"], pid)
        self.assert_seamless(self.wait_for_count("left", before[-1] + 5))

    def test_back_in_time_after_leave_running(self):
        self.counting("back")
        self.wait_for_count("back", 5)
        self.checkpoint("back", "cp", "--leave-running")
        taken_at = self.counted("back")[-1]
        last = self.wait_for_count("back", taken_at + 10)[-1]
        self.h1.docker("kill", "back")
        self.wait_until_stopped("back")
        before = self.counted("back")
        self.start_from("back", "cp")

        def continued():
            numbers = self.counted("back")[len(before):]
            return numbers if len(numbers) > 3 else None
        after = wait_until(continued, 10, "the container to count after it was started from its checkpoint")
        self.assertLess(after[0], last, "it did not go back to the checkpoint")
        self.assertLessEqual(abs(after[0] - taken_at), 2)
        self.assert_seamless(after, start=after[0])

    @deadline(240)
    def test_twenty_times_in_a_row(self):
        self.counting("often")
        self.wait_for_count("often", 3)
        for i in range(20):
            self.checkpoint("often", f"cp{i}")
            before = self.counted("often")
            self.start_from("often", f"cp{i}")
            self.wait_for_count("often", before[-1] + 2)
        self.assert_seamless(self.counted("often"))

    @deadline(120)
    def test_several_checkpoints_of_a_running_container(self):
        self.counting("series")
        for i in range(5):
            self.wait_for_count("series", 3 * (i + 1))
            self.checkpoint("series", f"cp{i}", "--leave-running")
        self.assert_seamless(self.wait_for_count("series", self.counted("series")[-1] + 5))
