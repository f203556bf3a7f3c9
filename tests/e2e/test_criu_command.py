"""The criu command line on a plain process tree, mostly with bad input: one clear sentence that
names the thing, exit code 1, and whatever was to be dumped runs on."""

import contextlib
import os
import shutil
import signal

from criu_case import COUNT_TO_FILE, CriuCase
from ferrylab import WaitedTooLong, processes, wait_until
from support import deadline
from watching import is_held, programs, untouched


class CriuCommand(CriuCase):
    # ---- good ----

    def test_version_and_check(self):
        self.assertRegex(self.criu("--version").stdout, r"Version: \d+\.\d+")
        self.assertIn("Looks good", self.criu("check").stdout)

    def test_dump_and_restore(self):
        pid = self.dumped()
        before = self.counted()
        self.restore()
        numbers = self.wait_for_lines(len(before) + 5)
        self.assert_seamless(numbers)
        self.assertIsNotNone(processes.Process.of(pid), "the restored tree has another pid")

    def test_dump_that_leaves_it_running(self):
        pid = self.start()
        self.wait_for_lines(3)
        self.dump(pid, "--leave-running")
        before = self.counted()
        self.assert_seamless(self.wait_for_lines(len(before) + 5))

    @deadline(120)
    def test_dumps_on_the_heels_of_one_another(self):
        """Each finds calls that the one before has interrupted, and whose time is over at any moment."""
        pid = self.start()
        self.wait_for_lines(3)
        for _ in range(60):
            self.dump(pid, "--leave-running")
        before = self.counted()
        self.assert_seamless(self.wait_for_lines(len(before) + 5))

    # ---- bad ----

    def test_shell_job(self):
        """A job of a shell that is not in the tree: refused without the option, and born into the session of
        who restores it with it, in the process group it had."""
        pid = self.start(("busybox", "sh", "-c", "busybox sh -c '" + COUNT_TO_FILE + "' & wait"), new_session=False)
        self.wait_for_lines(3)
        self.assertEqual(os.getsid(pid), os.getsid(0))
        self.refused(self.dump(pid, check=False), f"pid {pid}", "session", "--shell-job")
        self.dump(pid, "--shell-job")
        self.reaped(pid)
        before = len(self.counted())
        self.restore("--shell-job")
        self.wait_for_lines(before + 3)
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            child = int(f.read())
        self.assertNotEqual(os.getsid(pid), pid)
        self.assertEqual(os.getsid(child), os.getsid(pid))
        self.assertEqual([os.getpgid(pid), os.getpgid(child)], [pid, pid])

    def test_processor_features(self):
        """A set that says what its processor offered is compared with the one it is restored on."""
        pid = self.start()
        self.wait_for_lines(3)
        self.dump(pid, "--cpu-cap")
        self.reaped(pid)
        path = os.path.join(self.images, "cpuinfo.img")
        self.assertTrue(os.path.exists(path))
        before = len(self.counted())
        self.restore("--cpu-cap")
        self.wait_for_lines(before + 3)

    def test_no_such_process(self):
        pid = self.start()
        os.killpg(pid, signal.SIGKILL)
        self.reaped(pid)
        self.refused(self.dump(pid, check=False), str(pid))

    def test_no_privileges(self):
        pid = self.start()
        self.wait_for_lines(3)
        os.chmod(self.images, 0o777)
        for directory in (self.scratch, self.h1.directory):
            os.chmod(directory, 0o755)
        nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all"]
        self.refused(self.dump(pid, check=False, prefix=nobody))
        self.wait_for_lines(len(self.counted()) + 3)

    def test_process_id_that_is_taken(self):
        pid = self.start()
        self.wait_for_lines(3)
        self.dump(pid, "--leave-running")
        self.refused(self.restore(check=False), str(pid))
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + 3))

    def test_missing_image(self):
        pid = self.dumped()
        os.unlink(os.path.join(self.images, f"mm-{pid}.img"))
        self.refused(self.restore(check=False), f"mm-{pid}.img")

    def test_missing_inventory(self):
        self.dumped()
        os.unlink(os.path.join(self.images, "inventory.img"))
        self.refused(self.restore(check=False), "inventory.img")

    def test_every_image_truncated_at_every_kind_of_place(self):
        pid = self.dumped()
        good = os.path.join(self.scratch, "good")
        shutil.copytree(self.images, good)
        for name in ("pstree.img", f"core-{pid}.img", f"mm-{pid}.img", "files.img", f"pagemap-{pid}.img",
                     f"fs-{pid}.img", f"ids-{pid}.img"):
            path = os.path.join(self.images, name)
            if not os.path.exists(path):
                continue
            for length in (0, 5, 10, os.path.getsize(path) - 1):
                with self.subTest(image=name, length=length):
                    os.truncate(path, length)
                    self.refused(self.restore(check=False), name)
                    shutil.copy(os.path.join(good, name), path)
        self.assertIsNone(processes.Process.of(pid), "a refused restore left a process")
        self.restore()
        self.wait_for_lines(len(self.counted()) + 3)

    def test_truncated_pages(self):
        pid = self.dumped()
        path = self.an_image("pages-")
        os.truncate(path, os.path.getsize(path) - 4096)
        self.refused(self.restore(check=False), os.path.basename(path))
        self.assertIsNone(processes.Process.of(pid), "a refused restore left a process")

    def test_image_of_another_kind(self):
        pid = self.dumped()
        shutil.copy(os.path.join(self.images, "pstree.img"), os.path.join(self.images, f"mm-{pid}.img"))
        self.refused(self.restore(check=False), f"mm-{pid}.img")

    def test_open_file_that_vanished(self):
        self.dumped()
        os.unlink(self.log)
        self.refused(self.restore(check=False), self.log)

    def test_open_file_that_changed(self):
        self.dumped()
        with open(self.log, "ab") as f:
            f.write(b"somebody else's line\n")
        self.refused(self.restore(check=False), self.log)

    def test_images_directory_that_does_not_exist(self):
        self.refused(self.criu("restore", "--images-dir", "/nowhere", check=False), "/nowhere")

    def test_something_that_cannot_be_carried(self):
        """A userfaultfd of the program's own: named with its process and descriptor, nothing is changed."""
        pid = self.start(["/usr/bin/python3", "-c",
                          "import ctypes, time\n"
                          "libc = ctypes.CDLL(None, use_errno=True)\n"
                          "fd = libc.syscall(323, 1)  # userfaultfd(UFFD_USER_MODE_ONLY)\n"
                          "print(fd, flush=True)\n"
                          "while True: time.sleep(0.05)\n"])
        fd = self.wait_for_lines(1)[0]
        self.assertGreaterEqual(fd, 0)
        before = untouched(pid)
        self.refused(self.dump(pid, check=False), str(pid), str(fd), "userfaultfd")
        self.assertEqual(untouched(pid), before)

    def test_established_connection_without_permission(self):
        pid = self.start(["/usr/bin/python3", "-c",
                          "import socket, time\n"
                          "server = socket.create_server(('127.0.0.1', 0))\n"
                          "near = socket.create_connection(server.getsockname()); far = server.accept()\n"
                          "print(0, flush=True)\n"
                          "while True: time.sleep(0.05)\n"])
        self.wait_for_lines(1)
        before = untouched(pid)
        self.refused(self.dump(pid, check=False), str(pid), "tcp-established")
        self.assertEqual(untouched(pid), before)

    def test_full_disk(self):
        pid = self.start()
        self.wait_for_lines(3)
        self.h1.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", self.images])
        try:
            self.refused(self.dump(pid, check=False), "No space left on device")
        finally:
            self.h1.run(["umount", self.images])
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + 5))
        self.dump(pid)

    @deadline(120)
    def test_killed_in_the_middle_of_a_dump(self):
        engine = os.path.realpath(os.path.join(self.bin, "criu"))
        self.h1.image("gap")
        gap = os.path.join(self.scratch, "gap")
        self.remove_later(self.h1, "gap-source")
        self.h1.docker("create", "--name", "gap-source", "gap")
        self.h1.docker("cp", "gap-source:/usr/bin/gap", gap)
        pid = self.start([gap, "512", "0", "600", "4"])
        self.wait_for_ready()
        before = untouched(pid)
        for _ in range(5):
            dump = self.h1.popen(["criu", "dump", "--tree", str(pid), "--images-dir", self.images, "--leave-running"])
            shot = False
            while dump.poll() is None and not shot:
                if is_held(pid):
                    for process in programs(self.h1, engine, "dump"):
                        process.kill()
                        shot = True
            if dump.wait(60) != 0 and shot:
                break
        else:
            self.fail("in five attempts the engine was never caught while the process was stopped")
        wait_until(lambda: not is_held(pid), 5, f"process {pid} to be let go")
        # What was lent to it at that moment is taken back by whoever outlives the killed engine.
        with contextlib.suppress(WaitedTooLong):
            wait_until(lambda: untouched(pid) == before, 5, "everything of ours to be taken out again")
        self.assertEqual(untouched(pid), before)
        os.kill(pid, signal.SIGUSR1)
        wait_until(lambda: '"bad_pages":0' in self.log_text(), 20, "gap to verify its memory")

    def log_text(self):
        with open(self.log, encoding="ascii") as f:
            return f.read()

    def wait_for_ready(self):
        wait_until(lambda: "ready" in self.log_text(), 30, "gap to fill its memory")
