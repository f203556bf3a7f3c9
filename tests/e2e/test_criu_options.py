"""What the options of the criu command do, each on a small tree: seen from outside, not from its log."""

import ctypes
import os
import subprocess
import shutil
import signal
import struct

import criu_case
from ferrylab import processes, wait_until
from support import deadline
from watching import status


def uprobe_on(pid, function):
    """Performance counters of the calls of a function of the C library that `pid` has, by whomsoever, one a processor
    (perf_event_open(2))."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as f:
        library = next(line.split()[-1] for line in f if "/libc.so" in line)
    libc = ctypes.CDLL(library, use_errno=True)
    with open("/proc/self/maps", encoding="utf-8") as f:
        base = next(int(line.split("-")[0], 16) for line in f if line.rstrip().endswith(library))
    path = ctypes.create_string_buffer(library.encode())
    with open("/sys/bus/event_source/devices/uprobe/type", encoding="ascii") as f:
        kind = int(f.read())
    offset = ctypes.cast(getattr(libc, function), ctypes.c_void_p).value - base
    size = 112
    event = struct.pack("IIQQQQQIIQQ", kind, size, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(path), offset).ljust(size, b"\0")
    counters = []
    for cpu in os.sched_getaffinity(0):
        counters.append(libc.syscall(298, event, ctypes.c_int(-1), ctypes.c_int(cpu), ctypes.c_int(-1), ctypes.c_ulong(8)))
        if counters[-1] < 0:
            raise OSError(ctypes.get_errno(), "perf_event_open")
    return counters


class CriuOptions(criu_case.CriuCase):
    def script(self, text):
        path = os.path.join(self.scratch, f"script{len(os.listdir(self.scratch))}")
        with open(path, "w", encoding="ascii") as f:
            f.write("#!/bin/sh\n" + text)
        os.chmod(path, 0o755)
        return path

    def stopped(self, pid):
        return wait_until(lambda: (status(pid, "State") or " ")[0] == "T", 5, f"process {pid} to be stopped")

    def test_leave_stopped(self):
        pid = self.start()
        self.wait_for_lines(3)
        self.dump(pid, "--leave-stopped")
        self.stopped(pid)
        os.killpg(pid, signal.SIGCONT)
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + 3))

    def test_leave_stopped_after_a_restore(self):
        pid = self.dumped()
        self.restore("--leave-stopped")
        self.stopped(pid)
        before = self.counted()
        os.killpg(pid, signal.SIGCONT)
        self.assert_seamless(self.wait_for_lines(len(before) + 3))

    def test_action_scripts_hear_every_stage_and_their_environment(self):
        pid = self.start()
        self.wait_for_lines(3)
        heard = os.path.join(self.scratch, "heard")
        listen = self.script(f'echo $CRTOOLS_SCRIPT_ACTION ${{CRTOOLS_INIT_PID:-none}} $(test -e $CRTOOLS_IMAGE_DIR && echo dir) '
                             f'>>{heard}\n')
        self.dump(pid, "--action-script", listen)
        self.reaped(pid)
        with open(heard, encoding="ascii") as f:
            stages = [line.split() for line in f]
        self.assertEqual([s[0] for s in stages], ["pre-dump", "post-dump"])
        self.assertTrue(all(s[1:] == [str(pid), "dir"] for s in stages), stages)
        os.unlink(heard)
        self.restore("--action-script", listen)
        with open(heard, encoding="ascii") as f:
            stages = [line.split() for line in f]
        self.assertEqual([s[0] for s in stages], ["pre-restore", "post-restore", "pre-resume", "post-resume"])
        self.assertEqual(stages[1][1], str(pid))

    def test_an_action_script_that_says_no_ends_a_dump_with_its_status(self):
        pid = self.start()
        self.wait_for_lines(3)
        for stage in ("pre-dump", "post-dump"):
            with self.subTest(stage=stage):
                no = self.script(f"[ $CRTOOLS_SCRIPT_ACTION != {stage} ] || exit 42\n")
                done = self.dump(pid, "--action-script", no, check=False)
                self.assertEqual(done.returncode, 42, done.stdout)
                self.assert_seamless(self.wait_for_lines(len(self.counted()) + 3))

    def test_pid_file_log_file_and_statistics(self):
        pid = self.start()
        self.wait_for_lines(3)
        work = os.path.join(self.scratch, "work")
        os.mkdir(work)
        done = self.dump(pid, "--work-dir", work, "--log-file", "dump.log", "-v3", "--display-stats")
        self.assertRegex(done.stdout, r"Frozen time: \d+ us")
        self.reaped(pid)
        with open(os.path.join(work, "dump.log"), encoding="utf-8") as f:
            self.assertRegex(f.readline(), r"^\(\d\d\.\d{6}\) ")
        self.assertEqual(os.stat(os.path.join(work, "dump.log")).st_mode & 0o777, 0o600)
        self.assertTrue(os.path.exists(os.path.join(work, "stats-dump")))
        done = self.restore("--work-dir", work, "--log-file", "restore.log", "--pidfile", "pid", "--display-stats")
        self.assertRegex(done.stdout, r"Restore time: \d+ us")
        with open(os.path.join(work, "pid"), encoding="ascii") as f:
            self.assertEqual(int(f.read()), pid)
        self.assertTrue(os.path.exists(os.path.join(work, "stats-restore")))

    def test_without_detaching_it_waits_and_ends_with_the_tasks_status(self):
        pid = self.start(["busybox", "sh", "-c", f"i=0; while [ ! -e {self.scratch}/end ]; do echo $i; i=$(expr $i + 1); "
                          "sleep 0.05; done; exit 9"])
        self.wait_for_lines(3)
        self.dump(pid)
        self.reaped(pid)
        before = len(self.counted())
        restore = self.h1.popen(["criu", "restore", "--images-dir", self.images])
        self.addCleanup(restore.wait)
        self.wait_for_lines(before + 3)
        with open(f"{self.scratch}/end", "w", encoding="ascii"):
            pass
        self.assertEqual(restore.wait(10), 9)

    def test_a_process_that_ends_while_its_threads_are_let_go(self):
        """Its main thread ends it as soon as it runs, before criu, on the same processor, comes to the others."""
        end = f"{self.scratch}/end"
        program = ("import os, threading, time\n"
                   "for _ in range(30): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
                   "print(1, 2, 3, sep='\\n', flush=True)\n"
                   f"while not os.path.exists({end!r}): time.sleep(0.001)\n"
                   "os._exit(11)")
        pid = self.start(["taskset", "1", "/usr/bin/python3", "-c", program])
        self.wait_for_lines(3)
        self.dump(pid)
        self.reaped(pid)
        with open(end, "w", encoding="ascii"):
            pass
        done = self.criu("restore", "--images-dir", self.images, check=False, prefix=["taskset", "1", "nice", "--adjustment=19"])
        self.assertEqual(done.returncode, 11, done.stdout)

    def test_exec_cmd_becomes_the_parent(self):
        pid = self.dumped()
        told = os.path.join(self.scratch, "told")
        watcher = self.h1.popen(["criu", "restore", "--images-dir", self.images, "--restore-detached", "--exec-cmd", "--",
                                 "/bin/sh", "-c", f"echo $$ >{told}.new; mv {told}.new {told}; exec sleep 100"])
        self.addCleanup(watcher.wait)
        self.addCleanup(watcher.kill)
        wait_until(lambda: os.path.exists(told), 10, "the command to run")
        with open(told, encoding="ascii") as f:
            self.assertEqual(status(pid, "PPid"), f.read().strip())

    def test_restore_sibling_is_a_child_of_the_caller(self):
        pid = self.dumped()
        caller = self.script(f"criu restore --images-dir {self.images} --restore-detached --restore-sibling || exit 1\n"
                             f"echo $$ >{self.scratch}/caller\nexec sleep 100\n")
        waiting = self.h1.popen([caller])
        self.addCleanup(waiting.wait)
        self.addCleanup(waiting.kill)
        wait_until(lambda: os.path.exists(f"{self.scratch}/caller"), 10, "criu to return")
        self.assertEqual(status(pid, "PPid"), str(waiting.pid))

    def test_inherited_descriptor_takes_the_place_of_a_pipe(self):
        reader, writer = os.pipe()
        child = self.h1.popen(["busybox", "sh", "-c", criu_case.COUNT_TO_FILE], stdout=writer, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/")
        name = os.readlink(f"/proc/self/fd/{writer}")
        self.addCleanup(self.kill_tree, child.pid)
        self.lab.children.append(child)
        os.close(writer)
        os.read(reader, 10)
        self.dump(child.pid)
        child.wait(10)
        os.close(reader)
        reader, writer = os.pipe()
        self.h1.run(["sh", "-c", f"exec criu restore --images-dir {self.images} --restore-detached --inherit-fd fd[7]:{name} "
                     f"7>/proc/{os.getpid()}/fd/{writer}"])
        os.close(writer)
        self.addCleanup(os.close, reader)
        self.assertTrue(os.read(reader, 10).split()[0].isdigit())

    def test_freezer_cgroup(self):
        group = f"/sys/fs/cgroup/freezer{self.h1.cgroup}/frozen-by-criu"
        os.makedirs(group, exist_ok=True)
        pid = self.start()
        self.wait_for_lines(3)
        with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as f:
            f.write(str(pid))
        self.dump(pid, "--freeze-cgroup", group, "--leave-running")
        with open(os.path.join(group, "freezer.state"), encoding="ascii") as f:
            self.assertEqual(f.read().strip(), "THAWED")
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + 3))

    def test_processor(self):
        self.criu("cpuinfo", "dump", "--images-dir", self.images)
        self.criu("cpuinfo", "check", "--images-dir", self.images)
        path = os.path.join(self.images, "cpuinfo.img")
        with open(path, "r+b") as f:
            content = f.read()
            # Every bit of the capability words set: instructions that no processor has.
            f.seek(0)
            f.write(content[:40] + b"\xff" * 8 + content[48:])
        self.assertEqual(self.criu("cpuinfo", "check", "--images-dir", self.images, check=False).returncode, 1)

    def test_features(self):
        for feature in ("userns", "nsid", "ns_pid", "timens", "mnt_id"):
            self.criu("check", "--feature", feature)
        self.assertEqual(self.criu("check", "--feature", "tun", check=False).returncode, 1)
        unknown = self.criu("check", "--feature", "no-such-thing", check=False)
        self.assertEqual(unknown.returncode, 1)
        self.assertIn("no-such-thing", unknown.stdout)
        self.assertEqual(self.criu("check", "--feature", "list", check=False).returncode, 1)
        for options in (["--extra"], ["--all"], ["--experimental"]):
            done = self.criu("check", *options, check=False)
            self.assertIn(done.returncode, (0, 1))
            self.assertTrue("Looks good" in done.stdout or "Error" in done.stdout)

    @deadline(30)
    def test_time_to_stop_a_tree_is_limited(self):
        """A vfork parent cannot be stopped before its child has executed (ptrace(2), D state)."""
        pid = self.start(["/usr/bin/python3", "-c",
                          "import ctypes, os\n"
                          "libc = ctypes.CDLL(None)\n"
                          "print(1, flush=True)\n"
                          "if libc.vfork() == 0:\n"
                          "    while True:\n"
                          "        libc.usleep(10000)\n"])
        self.wait_for_lines(1)
        wait_until(lambda: (status(pid, "State") or " ")[0] == "D", 5, "the parent to wait for its child")
        done = self.dump(pid, "--timeout", "1", check=False)
        self.refused(done, str(pid))
        self.assertIsNotNone(processes.Process.of(pid))

    def test_another_build_of_a_program_is_noticed(self):
        program = os.path.join(self.scratch, "program")
        shutil.copy("/usr/bin/sleep", program)
        pid = self.start([program, "1000"])
        wait_until(lambda: processes.Process.of(pid) and os.readlink(f"/proc/{pid}/exe") == program, 5, "the program to run")
        self.dump(pid)
        self.reaped(pid)
        with open(program, "r+b") as f:
            content = f.read()
            note = content.index(b"\3\0\0\0GNU\0") + 8  # NT_GNU_BUILD_ID of elf(5), and its first byte
            f.seek(note)
            f.write(bytes([content[note] ^ 1]))
        self.refused(self.restore(check=False), program, "build-id")
        self.restore("--file-validation", "filesize")
        os.kill(pid, signal.SIGKILL)
        self.refused(self.restore("--file-validation", "checksum", check=False), "checksum")

    def test_options_that_need_nothing_are_taken(self):
        pid = self.start()
        self.wait_for_lines(3)
        plugins = os.path.join(self.scratch, "plugins")
        os.mkdir(plugins)
        taken = ("--log-pid", "--force-irmap", "--irmap-scan-path", "/etc", "--libdir", plugins, "--unprivileged")
        self.dump(pid, *taken)
        self.reaped(pid)
        self.restore(*taken)
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + 3))
        with open(os.path.join(plugins, "amdgpu_plugin.so"), "wb"):
            pass
        self.refused(self.dump(pid, "--libdir", plugins, check=False), "amdgpu_plugin.so")

    def test_uprobes_are_allowed_if_told(self):
        """As perf(1) and bpftrace have them: a breakpoint, and one instruction that the kernel keeps elsewhere."""
        pid = self.start(["/usr/bin/python3", "-c",
                          "import ctypes, itertools, time\n"
                          "for i in itertools.count():\n"
                          "    ctypes.CDLL(None).sched_get_priority_max(0)\n"
                          "    print(i, flush=True)\n"
                          "    time.sleep(0.02)\n"])
        self.wait_for_lines(3)
        for counter in uprobe_on(pid, "sched_get_priority_max"):
            self.addCleanup(os.close, counter)
        def hit():
            with open(f"/proc/{pid}/maps", encoding="utf-8") as f:
                return "[uprobes]" in f.read()
        wait_until(hit, 5, "the probe to be met")
        self.refused(self.dump(pid, check=False), "uprobes", "--allow-uprobes")
        self.dump(pid, "--allow-uprobes")
        self.reaped(pid)
        self.refused(self.restore(check=False), "--allow-uprobes")
        self.restore("--allow-uprobes")
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + 5))

    def test_unsupported_options_are_refused_by_name_before_anything_happens(self):
        pid = self.start()
        self.wait_for_lines(3)
        for option in ("--stream",):
            with self.subTest(option=option):
                self.refused(self.dump(pid, option, check=False), f"option {option} is not supported")
                self.assertEqual(os.listdir(self.images), [])
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + 3))

