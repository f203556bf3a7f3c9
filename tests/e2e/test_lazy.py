"""Pages over the wire and after the start: page server, lazy restore, lazy dump, and what goes wrong with them."""

import os
import re
import shutil
import signal
import socket

from criu_case import CriuCase
from ferrylab import wait_until
from support import deadline

# Counts up in a file, and looks at another part of its memory in every step; a wrong page ends it.
PROGRAM = r"""
import hashlib, mmap, os, sys, time
pages = int(sys.argv[1])
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = lambda p: hashlib.sha256(b"%d" % p).digest() * 128
for p in range(pages):
    memory[p * 4096:(p + 1) * 4096] = content(p)
i = 0
while True:
    for p in range(i * 61 % pages, pages, pages // 4):
        if memory[p * 4096:(p + 1) * 4096] != content(p):
            print("wrong page", p, flush=True)
            sys.exit(1)
    print(i, flush=True)
    i += 1
    time.sleep(0.02)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class PagesCase(CriuCase):
    """A program that looks at its pages all the time, and who brings them."""

    def setUp(self):
        super().setUp()
        self.port = str(free_port())
        self.there = os.path.join(self.scratch, "there")
        os.mkdir(self.there)

    def program(self, pages=4096):
        pid = self.start(["/usr/bin/python3", "-c", PROGRAM, str(pages)])
        self.wait_for_lines(3)
        return pid

    def goes_on(self, more=100):
        """It has looked at every page by then."""
        self.assert_seamless(self.wait_for_lines(len(self.counted()) + more))

    def told(self, name, directory=None):
        with open(os.path.join(directory or self.images, name), encoding="utf-8") as f:
            return f.read()

    def lazy_pages(self, *options, images=None, **more):
        return self.criu("lazy-pages", "--daemon", "--images-dir", images or self.images, "--log-file", "lazy.log", "-v4",
                         "--pidfile", "lazy.pid", *options, **more)

    def wait_for_the_end_of_the_daemon(self, images=None):
        wait_until(lambda: "all memory is there" in self.told("lazy.log", images), 20, "the daemon to have filled everything")

    def lazy_dump(self, pid, *options):
        """criu dump that serves the pages of the tree; returns when it listens, with everything else in `there`."""
        status, told = os.pipe()
        self.addCleanup(os.close, status)
        with open(os.path.join(self.scratch, "dump.out"), "wb") as out:
            dump = self.h1.popen(["criu", "dump", "-t", str(pid), "-D", self.images, "--lazy-pages", "--port", self.port,
                                  "--status-fd", str(told), "-o", "dump.log", "-v4", *options], stdout=out, stderr=out,
                                 pass_fds=[told])
        self.addCleanup(dump.wait)
        self.addCleanup(dump.kill)
        os.close(told)
        self.assertEqual(os.read(status, 2), b"\0", self.told("dump.log"))
        shutil.rmtree(self.there)
        shutil.copytree(self.images, self.there)
        return dump

    def lazy_restore(self):
        """Into another pid namespace, because the numbers are in use by the tree that waits."""
        script = f"criu restore -D {self.there} -d --lazy-pages -o restore.log -v4 && exec sleep 1000"
        with open(os.path.join(self.scratch, "restore.out"), "wb") as out:
            world = self.h1.popen(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script], stdout=out, stderr=out,
                                  cwd="/", start_new_session=True)
        self.addCleanup(world.wait)
        self.addCleanup(world.kill)
        wait_until(lambda: os.path.exists(os.path.join(self.there, "stats-restore")) or world.poll() is not None, 20,
                   "the restore to end")
        self.assertIsNone(world.poll(), self.told("restore.log", self.there))

    def page_source(self, *options, **more):
        return self.lazy_pages("--page-server", "--address", "127.0.0.1", "--port", self.port, *options, images=self.there,
                               **more)


class Lazy(PagesCase):
    # ---- page server ----

    def test_page_server(self):
        pid = self.program()
        self.criu("page-server", "--daemon", "--images-dir", self.there, "--port", self.port, "--log-file", "ps.log",
                  "--pidfile", "ps.pid")
        self.dump(pid, "--page-server", "--address", "127.0.0.1", "--port", self.port)
        self.reaped(pid)
        self.assertFalse([n for n in os.listdir(self.images) if n.startswith("page")])
        for name in os.listdir(self.there):
            if name.startswith("page"):
                shutil.move(os.path.join(self.there, name), self.images)
        self.assertTrue(os.path.exists(os.path.join(self.images, "pages-65537.img")))
        self.restore()
        self.goes_on()

    def test_pre_dumps_to_page_servers(self):
        """The second set leaves to the first, on the server as here, what was not written since."""
        pid = self.program()
        for number in ("1", "2"):
            local, there = (os.path.join(d, number) for d in (self.images, self.there))
            os.mkdir(local)
            os.mkdir(there)
            parent = ["--prev-images-dir", "../1"] if number == "2" else []
            self.criu("page-server", "--daemon", "--images-dir", there, "--port", self.port, "--log-file", "ps.log",
                      "-v4", *parent)
            command = ["pre-dump"] if number == "1" else ["dump"]
            self.criu(*command, "-t", str(pid), "-D", local, "--page-server", "--address", "127.0.0.1", "--port", self.port,
                      "-o", "dump.log", "-v3", *parent)
        self.reaped(pid)
        self.assertNotIn("all memory is saved", self.told("2/dump.log"))
        pages = [os.path.getsize(os.path.join(self.there, n, "pages-65537.img")) for n in ("1", "2")]
        self.assertLess(pages[1], pages[0] // 2)
        self.goes_on_from_both()

    def goes_on_from_both(self):
        """What the dumps have kept here is put beside the pages there."""
        for number in ("1", "2"):
            for name in os.listdir(os.path.join(self.images, number)):
                if name.endswith(".img"):
                    shutil.copy(os.path.join(self.images, number, name), os.path.join(self.there, number))
        self.images = os.path.join(self.there, "2")
        self.restore()
        self.goes_on()

    def test_a_page_server_takes_out_what_is_there_twice(self):
        pid = self.program()
        held = {}
        for number in ("1", "2"):
            local, there = (os.path.join(d, number) for d in (self.images, self.there))
            os.mkdir(local)
            os.mkdir(there)
            parent = ["--prev-images-dir", "../1"] if number == "2" else []
            self.criu("page-server", "--daemon", "-D", there, "--port", self.port, "--auto-dedup", "-o", "ps.log", "-v4", *parent)
            self.criu("pre-dump" if number == "1" else "dump", "-t", str(pid), "-D", local, "--page-server", "--address",
                      "127.0.0.1", "--port", self.port, *parent)
            held[number] = os.stat(os.path.join(self.there, "1", "pages-65537.img")).st_blocks
        self.reaped(pid)
        wait_until(lambda: "taken out of the parent" in self.told("2/ps.log", self.there), 10, "the server to be done")
        held["2"] = os.stat(os.path.join(self.there, "1", "pages-65537.img")).st_blocks
        self.assertLess(held["2"], held["1"])
        self.goes_on_from_both()

    def test_page_server_that_is_not_there(self):
        pid = self.program(64)
        self.refused(self.dump(pid, "--page-server", "--address", "127.0.0.1", "--port", self.port, check=False), self.port)
        self.assertEqual(os.listdir(self.images), [])
        self.goes_on(3)

    def test_page_server_that_hangs_up(self):
        """In the middle of the dump: the tree runs on."""
        pid = self.program(64)
        ours, theirs = socket.socketpair()
        with ours, open(os.path.join(self.scratch, "dump.out"), "wb") as out:
            dump = self.h1.popen(["criu", "dump", "-t", str(pid), "-D", self.images, "--page-server", "--ps-socket",
                                  str(theirs.fileno())], stdout=out, stderr=out, pass_fds=[theirs.fileno()])
            self.addCleanup(dump.wait)
            theirs.close()
            self.assertEqual(len(ours.recv(32, socket.MSG_WAITALL)), 32)
        self.assertEqual(dump.wait(20), 1)
        self.assertIn("page server", self.told("dump.out", self.scratch))
        self.assertFalse(os.path.exists(os.path.join(self.images, "inventory.img")))
        self.goes_on(3)

    # ---- lazy restore ----

    def test_lazy_restore(self):
        pid = self.program(16384)
        self.dump(pid)
        self.reaped(pid)
        self.lazy_pages()
        self.restore("--lazy-pages", "--log-file", "restore.log")
        self.goes_on()
        self.wait_for_the_end_of_the_daemon()
        self.assertFalse(os.path.exists(os.path.join(self.images, "lazy-pages.socket")))

    def test_lazy_restore_without_a_daemon(self):
        pid = self.program(64)
        self.dump(pid)
        self.reaped(pid)
        self.refused(self.restore("--lazy-pages", check=False), "lazy-pages.socket", "criu lazy-pages")
        self.refused(self.restore("--lazy-pages", "--auto-dedup", check=False), "--auto-dedup")
        self.restore()
        self.goes_on(3)

    def test_cut_images_are_refused_before_a_restore_is_let_in(self):
        pid = self.program(64)
        self.dump(pid)
        self.reaped(pid)
        path = self.an_image("pages-")
        size = os.path.getsize(path)
        os.truncate(path, size - 4096)
        done = self.criu("lazy-pages", "--images-dir", self.images, check=False)
        self.refused(done, os.path.basename(path))

    def test_the_daemon_ends_with_a_restore_that_fails(self):
        pid = self.program(64)
        self.dump(pid, "--leave-running")
        self.lazy_pages()
        self.refused(self.restore("--lazy-pages", check=False), str(pid))
        wait_until(lambda: "the restore ended before its tree ran" in self.told("lazy.log"), 10, "the daemon to say so")
        self.goes_on(3)

    def test_a_signal_does_not_end_the_daemon_while_pages_are_missing(self):
        """The kernel would give zeros to the program."""
        pid = self.program(16384)
        self.dump(pid)
        self.reaped(pid)
        self.lazy_pages()
        daemon = int(self.told("lazy.pid"))
        self.restore("--lazy-pages")
        try:
            os.kill(daemon, signal.SIGTERM)
        except ProcessLookupError:
            pass  # it was done already, which is as good
        self.wait_for_the_end_of_the_daemon()
        self.goes_on()

    # ---- lazy dump ----

    def test_lazy_dump(self):
        pid = self.program(16384)
        dump = self.lazy_dump(pid)
        self.assertLess(os.path.getsize(os.path.join(self.images, "pages-1.img")), 16 << 20)
        before = len(self.counted())
        self.page_source()
        self.lazy_restore()
        self.goes_on()
        self.assertEqual(dump.wait(20), 0)
        self.reaped(pid)
        self.wait_for_the_end_of_the_daemon(self.there)
        self.assertGreater(len(self.counted()), before)

    def test_lazy_dump_that_nobody_fetches_from(self):
        """Killed, it leaves the tree as it was, and stopped: somebody may run with its memory."""
        pid = self.program(256)
        dump = self.lazy_dump(pid)
        dump.kill()
        dump.wait(10)
        def state():
            with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
                return f.read().rsplit(")", 1)[1].split()[0]
        wait_until(lambda: state() == "T", 5, "the tree to be stopped")
        os.kill(pid, signal.SIGCONT)
        self.goes_on(5)

    def test_lazy_dump_outlives_its_clients(self):
        """The daemon is killed before a restore came: another one fetches the pages."""
        pid = self.program(4096)
        dump = self.lazy_dump(pid)
        self.page_source()
        os.kill(int(self.told("lazy.pid", self.there)), signal.SIGKILL)
        wait_until(lambda: "stays stopped" in self.told("dump.log"), 10, "the dump to notice")
        self.page_source()
        self.lazy_restore()
        self.goes_on()
        self.assertEqual(dump.wait(20), 0)
        self.reaped(pid)

    def test_lazy_dump_needs_a_port_and_an_end(self):
        pid = self.program(64)
        self.refused(self.dump(pid, "--lazy-pages", "--port", self.port, "--leave-running", check=False), "--leave-running")
        self.refused(self.criu("lazy-pages", "--images-dir", self.images, check=False), "inventory.img")
        self.goes_on(3)

    def test_pages_that_stayed_in_the_tree_need_its_page_server(self):
        pid = self.program(256)
        dump = self.lazy_dump(pid)
        self.assertEqual(self.lazy_pages(images=self.there, check=False).returncode, 1)
        self.assertIn("--page-server", self.told("lazy.log", self.there))
        self.assertIsNone(dump.poll())


class Size(CriuCase):
    @deadline(120)
    def test_a_gib_waits_outside(self):
        """A lazy restore brings as few pages of a large program as of a small one; bench/start.py measures the time."""
        brought = {}
        for mib in (64, 1024):
            pid = self.start(["/usr/bin/python3", "-c",
                              "import mmap, time\n"
                              f"m = mmap.mmap(-1, {mib} << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
                              f"for at in range(0, {mib} << 20, 4096): m[at] = 7\n"
                              "i = 0\n"
                              "while True:\n"
                              "    print(i, flush=True)\n"
                              "    i += 1\n"
                              "    time.sleep(0.02)\n"])
            self.wait_for_lines(3)
            self.dump(pid)
            self.reaped(pid)
            self.criu("lazy-pages", "--daemon", "--images-dir", self.images, "--log-file", "lazy.log", "-v4")
            done = self.restore("--lazy-pages", "--display-stats")
            brought[mib] = int(re.search(r"Pages restored: (\d+)", done.stdout)[1])
            self.wait_for_lines(len(self.counted()) + 3)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10, "the program to end")
            shutil.rmtree(self.images)
            os.mkdir(self.images)
        self.assertLess(brought[1024], (64 << 20) // 4096)
        self.assertLess(abs(brought[1024] - brought[64]), 64, brought)
