"""Established TCP connections: a peer on another host goes on talking while its server is saved and
restored, and checks every byte."""

import os
import select
import signal
import socket
import tempfile
import threading

from ferrylab import processes, wait_until
from support import LabCase, deadline

# Sends back what it gets; every connection has a thread.
ECHO = """
import socket, threading
def echo(s):
    while data := s.recv(65536):
        s.sendall(data)
    s.shutdown(socket.SHUT_WR)
server = socket.create_server(("0.0.0.0", 7007), backlog=64)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
"""

# Says what it is told to when it is told to: one thread, so that what waits stays in the kernel.
SLOW = """
import socket
server = socket.create_server(("0.0.0.0", 7007))
s = server.accept()[0]
control = server.accept()[0]
while order := control.recv(64).decode().strip():
    if order.startswith("write"):
        s.sendall(bytes(i * 7 % 251 for i in range(int(order[5:]))))
    elif order == "close":
        s.shutdown(socket.SHUT_WR)
    elif order.startswith("read"):
        left = int(order[4:])
        got = b""
        while len(got) < left and (data := s.recv(left - len(got))):
            got += data
        good = got == bytes(i * 7 % 251 for i in range(left))
        control.sendall(b"good" if good else b"bad!")
        continue
    elif order == "end":
        control.sendall(b"none" if s.recv(1) == b"" else b"more")
        continue
    control.sendall(b"done")
"""


def pattern(size):
    return bytes(i * 7 % 251 for i in range(size))


class Talker:
    """Sends a stream without end and checks that the same comes back, at most `ahead` bytes behind."""

    BLOCK = bytes((i * 31 + i // 256) % 256 for i in range(65536))

    def __init__(self, connection, ahead=1 << 20):
        self.socket, self.ahead = connection, ahead
        self.sent = self.checked = 0
        self.problem, self.done = None, False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.socket.setblocking(False)
        self.thread.start()

    def _run(self):
        try:
            while not (self.done and self.checked == self.sent):
                may_write = not self.done and self.sent - self.checked < self.ahead
                readable, writable, _ = select.select([self.socket], [self.socket] if may_write else [], [], 0.2)
                if writable:
                    at = self.sent % 65536
                    self.sent += self.socket.send(self.BLOCK[at:at + 16384])
                if readable:
                    data = self.socket.recv(65536)
                    if not data:
                        raise EOFError("the connection ended")
                    at = self.checked % 65536
                    if data != (self.BLOCK + self.BLOCK)[at:at + len(data)]:
                        raise ValueError(f"other bytes came back within {len(data)} behind {self.checked}")
                    self.checked += len(data)
        except (OSError, EOFError, ValueError) as error:
            self.problem = error

    def go_on(self, count, seconds=15):
        """Waits until that many more bytes have come back."""
        target = self.checked + count
        wait_until(lambda: self.problem or self.checked >= target, seconds,
                   lambda: f"the echo to go on: {self.sent} sent, {self.checked} back, {self.problem}", 0.01)
        if self.problem:
            raise AssertionError(f"after {self.checked} bytes: {self.problem}")

    def finish(self):
        self.done = True
        self.thread.join(20)
        if self.thread.is_alive() or self.problem:
            raise AssertionError(f"{self.sent} sent, {self.checked} back: {self.problem}")
        self.socket.close()


class Connections(LabCase):
    PORT = 7007

    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name

    def serve(self, program):
        with open(os.path.join(self.scratch, "log"), "wb") as log:
            child = self.h1.popen(["python3", "-c", program], stdin=log, stdout=log, stderr=log,
                                  start_new_session=True, cwd="/")
        self.lab.children.append(child)
        self.addCleanup(self.kill, child.pid)
        wait_until(self.listens, 10, "the server to listen", 0.02)
        return child.pid

    def listens(self):
        return f":{self.PORT} " in self.h1.run(["ss", "-Htln"]).stdout

    def kill(self, pid):
        if processes.Process.of(pid):
            os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass

    def connect(self):
        return self.client.connect(self.h1.address, self.PORT)

    def save(self, pid, number, *options):
        images = os.path.join(self.scratch, str(number))
        os.mkdir(images)
        self.h1.run(["criu", "dump", "-t", str(pid), "-D", images, "--tcp-established", "-v4", "-o", "dump.log", *options],
                    timeout=40)
        return images

    def restore(self, images, *options):
        self.h1.run(["criu", "restore", "-D", images, "-d", "--tcp-established", "-v4", "-o", "restore.log", *options],
                    timeout=40)

    def again(self, pid, number, *options):
        images = self.save(pid, number, *options)
        if number == 0:
            os.waitpid(pid, 0)
        else:
            wait_until(lambda: not processes.Process.of(pid), 10, "the saved server to be gone", 0.01)
        self.restore(images, *options)

    def assert_unlocked(self):
        tables = self.h1.run(["nft", "list", "tables"]).stdout
        self.assertNotIn("CRIU", tables, "a network lock was left behind")

    @deadline(180)
    def test_busy_connections_ten_times(self):
        pid = self.serve(ECHO)
        talkers = [Talker(self.connect()) for _ in range(6)]
        for number in range(10):
            for talker in talkers:
                talker.go_on(100_000)
            self.again(pid, number)
            self.assert_unlocked()
        for talker in talkers:
            talker.go_on(100_000)
            talker.finish()
        with self.connect() as fresh:
            fresh.sendall(b"new")
            self.assertEqual(fresh.recv(3), b"new", "the listener takes new connections")

    @deadline(90)
    def test_busy_connections_while_it_is_left_running(self):
        pid = self.serve(ECHO)
        talkers = [Talker(self.connect()) for _ in range(4)]
        for number in range(5):
            for talker in talkers:
                talker.go_on(100_000)
            self.save(pid, number, "--leave-running")
            self.assert_unlocked()
        for talker in talkers:
            talker.go_on(100_000)
            talker.finish()

    def order(self, control, text, answer=b"done"):
        control.sendall(text.encode())
        self.assertEqual(control.recv(4), answer, text)

    def slow(self):
        pid = self.serve(SLOW)
        s = self.connect()
        return pid, s, self.connect()

    def read_pattern(self, s, size):
        got = b""
        while len(got) < size and (data := s.recv(size - len(got))):
            got += data
        self.assertEqual(got, pattern(size))

    def test_large_queues(self):
        pid, s, control = self.slow()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # or it would wait for the server to read
        s.sendall(pattern(300_000))
        self.order(control, "write150000")
        self.again(pid, 0)
        self.read_pattern(s, 150_000)
        self.order(control, "read300000", b"good")
        s.sendall(pattern(1000))
        self.order(control, "read1000", b"good")

    def test_closed_by_the_peer(self):
        pid, s, control = self.slow()
        s.sendall(pattern(5000))
        s.shutdown(socket.SHUT_WR)
        self.order(control, "write100")
        self.again(pid, 0)
        self.order(control, "read5000", b"good")
        self.order(control, "end", b"none")
        self.order(control, "write100")
        self.read_pattern(s, 100)
        self.read_pattern(s, 100)

    def test_closed_by_the_server(self):
        pid, s, control = self.slow()
        self.order(control, "write100")
        self.order(control, "close")
        self.again(pid, 0)
        self.read_pattern(s, 100)
        self.assertEqual(s.recv(1), b"")
        s.sendall(pattern(4000))
        self.order(control, "read4000", b"good")
        s.close()
        self.order(control, "end", b"none")

    def test_killed_dump_leaves_the_network_open(self):
        pid = self.serve(ECHO)
        talker = Talker(self.connect())
        talker.go_on(10_000)
        images = os.path.join(self.scratch, "killed")
        os.mkdir(images)
        # A script that never ends stands where everything is saved and locked.
        script = os.path.join(self.scratch, "hold")
        with open(script, "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = post-dump ] && echo > {self.scratch}/held && exec sleep 60\nexit 0\n")
        os.chmod(script, 0o755)
        criu = self.h1.popen(["criu", "dump", "-t", str(pid), "-D", images, "--tcp-established", "--action-script", script])
        self.lab.children.append(criu)
        wait_until(lambda: os.path.exists(f"{self.scratch}/held"), 20, "the dump to come to its script", 0.02)
        self.assertIn("CRIU", self.h1.run(["nft", "list", "tables"]).stdout, "nothing is locked during the dump")
        criu.kill()
        criu.wait()
        self.assert_unlocked()
        talker.go_on(100_000)
        talker.finish()

    def test_iptables_lock(self):
        pid = self.serve(ECHO)
        talker = Talker(self.connect())
        talker.go_on(10_000)
        self.again(pid, 0, "--network-lock", "iptables")
        talker.go_on(100_000)
        talker.finish()
        self.assertNotIn("0xc114", self.h1.run(["iptables-save"]).stdout)


class ContainerConnections(LabCase):
    """Docker's own commands, with tcp-established in runc's configuration of criu."""

    ADDRESS = "10.77.0.141"

    def setUp(self):
        super().setUp()
        os.makedirs("/etc/criu", exist_ok=True)
        self.h1.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/criu"])
        self.addCleanup(self.h1.run, ["umount", "/etc/criu"])
        self.h1.run(["sh", "-c", "echo tcp-established > /etc/criu/runc.conf"])

    @deadline(120)
    def test_redis_goes_on_with_its_clients(self):
        self.container("redis-tcp", "--network", self.h1.macvlan(), "--ip", self.ADDRESS, image="redis")

        def reached():
            try:
                return self.client.connect(self.ADDRESS, 6379)
            except OSError:
                return None
        clients = [wait_until(reached, 15, "redis to listen", 0.05) for _ in range(3)]
        count = 0
        for number in range(3):
            for s in clients:
                count += 1
                self.assertEqual(self.ask(s, b"INCR visits\r\n"), b":%d\r\n" % count)
            self.checkpoint("redis-tcp", f"tcp{number}")
            # A request that comes while there is no container is answered by the next one.
            clients[0].sendall(b"INCR visits\r\n")
            self.start_from("redis-tcp", f"tcp{number}")
            count += 1
            self.assertEqual(clients[0].recv(100), b":%d\r\n" % count)
        for s in clients:
            self.assertEqual(self.ask(s, b"PING\r\n"), b"+PONG\r\n")
            s.close()

    @deadline(90)
    def test_connections_over_the_containers_own_loopback(self):
        script = ("redis-server --save '' --daemonize yes >/dev/null; "
                  "until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done; "
                  "i=0; (while true; do echo INCR n; sleep 0.1; done) | redis-cli")
        self.container("talk-lo", image="redis", argv=["/bin/sh", "-c", script])
        self.wait_for_count("talk-lo", 5)
        self.checkpoint("talk-lo", "lo")
        self.start_from("talk-lo", "lo")
        before = self.counted("talk-lo")[-1]
        self.wait_for_count("talk-lo", before + 10)
        self.assert_seamless(self.counted("talk-lo"), 1)

    def ask(self, s, request):
        s.settimeout(15)
        s.sendall(request)
        return s.recv(100)
