"""criu service: requests over a named socket, among them that of a process that saves itself."""

import os
import signal
import tempfile

from ferrylab import processes, wait_until
from support import LabCase

# Messages of the RPC made by hand, field by field: what a client without libcriu sends.
CLIENT = """import os, socket, sys, time
def field(number, value):
    if isinstance(value, int):
        return bytes([number << 3 & 127 | (128 if number > 15 else 0)] + ([number >> 4] if number > 15 else []) + [value])
    return bytes([number << 3 | 2, len(value)]) + value
images, address, how = sys.argv[1:4]
fd = os.open(images, os.O_RDONLY)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(address)
def ask(kind, **more):
    opts = field(1, fd) + field(9, 4) + field(10, b"dump.log") + field(3, int(how == "leave-running"))
    s.send(field(1, kind) + field(2, opts))
    return s.recv(4096)
print("saving", flush=True)
answer = ask(1)
restored = field(3, field(1, 1)) in answer
print("restored" if restored else "saved" if field(2, 1) in answer[:4] else f"failed {answer!r}", flush=True)
time.sleep(1000)
"""


class Service(LabCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        self.images = os.path.join(self.scratch, "images")
        os.mkdir(self.images)
        self.address = os.path.join(self.scratch, "socket")
        self.out = os.path.join(self.scratch, "out")

    def start(self):
        """The service in the background; when the command returns it listens."""
        self.h1.run(["criu", "service", "--daemon", "--address", self.address, "--pidfile", "pid", "--images-dir",
                     self.scratch, "--log-file", "service.log", "-v4"])
        with open(os.path.join(self.scratch, "pid"), encoding="ascii") as f:
            service = processes.Process.of(int(f.read()))
        self.addCleanup(service.kill, signal.SIGTERM)
        self.assertEqual(os.stat(self.address).st_mode & 0o777, 0o666)
        return service

    def ask(self, how):
        with open(self.out, "wb") as out:
            child = self.h1.popen(["/usr/bin/python3", "-c", CLIENT, self.images, self.address, how], stdout=out, stderr=out,
                                  start_new_session=True, cwd="/")
        self.lab.children.append(child)
        self.addCleanup(self.end, child)
        return child

    def end(self, child):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if child.returncode is None:
            child.wait(10)

    def said(self):
        with open(self.out, encoding="utf-8") as f:
            return f.read().split()

    def test_a_process_saves_itself_and_finds_its_answer_when_restored(self):
        self.start()
        child = self.ask("and end")
        self.assertEqual(child.wait(20), -signal.SIGKILL)
        self.assertEqual(self.said(), ["saving"])
        self.h1.run(["criu", "restore", "--images-dir", self.images, "--restore-detached", "-v4", "--log-file", "restore.log"])
        wait_until(lambda: self.said() == ["saving", "restored"], 10, lambda: f"the restored client, it said {self.said()}")

    def test_a_process_saves_itself_and_lives_on(self):
        service = self.start()
        self.ask("leave-running")
        wait_until(lambda: self.said() == ["saving", "saved"], 10, lambda: f"the client, it said {self.said()}")
        self.assertTrue(service.alive())
        self.assertTrue(os.path.exists(os.path.join(self.images, "inventory.img")))

    def test_workers_leave_no_zombies(self):
        service = self.start()
        for _ in range(5):
            done = self.h1.run(["/usr/bin/python3", "-c", "import socket, sys\ns = socket.socket(socket.AF_UNIX, "
                                "socket.SOCK_SEQPACKET)\ns.connect(sys.argv[1])\ns.send(bytes([8, 10]))\nprint(s.recv(99)[:4])",
                                self.address])
            self.assertIn(repr(bytes([8, 10, 16, 1])), done.stdout)

        def children():
            with open(f"/proc/{service.pid}/task/{service.pid}/children", encoding="ascii") as f:
                return f.read().split()
        wait_until(lambda: not children(), 10, lambda: f"the workers {children()} to be collected")

    def test_a_criu_inside_the_tree_that_it_shall_save(self):
        done = self.h1.run(["setsid", "--wait", "sh", "-c", f"criu dump --tree $$ --images-dir {self.images}; exit $?"], check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("belongs to the tree", done.stdout)
        self.assertNotIn("inventory.img", os.listdir(self.images))

    def test_commands_that_criu_gave_up(self):
        for command in ("exec", "show"):
            done = self.h1.run(["criu", command], check=False)
            self.assertEqual(done.returncode, 255)
            self.assertIn("deprecated", done.stdout)
