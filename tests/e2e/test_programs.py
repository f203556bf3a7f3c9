"""Real programs from Debian's packages, answering a client before and after."""

import http.client
import threading

from ferrylab import wait_until
from support import LabCase, deadline


class Programs(LabCase):
    ADDRESS = "10.77.0.140"

    def on_the_lan(self, name, image, *options):
        """A container with an address of its own on the lab's switch."""
        self.container(name, "--network", self.h1.macvlan(), "--ip", self.ADDRESS, *options, image=image)

    def again(self, name):
        self.checkpoint(name, "cp")
        self.start_from(name, "cp")

    def get(self, path, port=80):
        """One HTTP request from the client host."""
        connection = http.client.HTTPConnection(self.ADDRESS, port, timeout=10)
        connection.sock = self.client.connect(self.ADDRESS, port)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().read().decode().strip()
        finally:
            connection.close()

    def redis(self, *command):
        """One command in Redis' inline form, from the client host; the whole answer."""
        with self.client.connect(self.ADDRESS, 6379) as s:
            s.sendall((" ".join(command) + "\r\nQUIT\r\n").encode())
            answer = b""
            while chunk := s.recv(4096):
                answer += chunk
        return answer.decode().removesuffix("+OK\r\n").strip()

    def answers(self, ask):
        def asked():
            try:
                return ask()
            except OSError:
                return None
        return wait_until(asked, 15, f"the server at {self.ADDRESS} to answer", 0.05)

    def test_redis(self):
        self.on_the_lan("redis", "redis")
        self.assertEqual(self.answers(lambda: self.redis("PING")), "+PONG")
        for i in range(1, 101):
            self.assertEqual(self.redis("INCR", "visits"), f":{i}")
        self.redis("SET", "mortal", "x", "EX", "500")
        run_id = self.redis("INFO", "server").split("run_id:")[1][:40]
        self.again("redis")
        self.assertEqual(self.answers(lambda: self.redis("INCR", "visits")), ":101")
        left = int(self.redis("TTL", "mortal")[1:])
        self.assertTrue(400 < left <= 500, f"{left} s left of 500 s")
        self.assertEqual(self.redis("INFO", "server").split("run_id:")[1][:40], run_id, "it is another redis")
        # A background thread and a forked child: both must still be possible.
        self.redis("UNLINK", "visits")
        self.assertIn("Background saving started", self.redis("BGSAVE"))
        wait_until(lambda: "rdb_bgsave_in_progress:0" in self.redis("INFO", "persistence"), 10, "BGSAVE to end")
        self.assertIn("rdb_last_bgsave_status:ok", self.redis("INFO", "persistence"))

    def test_nginx_with_workers(self):
        self.on_the_lan("nginx", "nginx")
        self.assertEqual(self.answers(lambda: self.get("/index.html")), "ferry")
        workers = self.workers()
        self.assertEqual(len(workers), 2)
        self.again("nginx")
        self.assertEqual(self.answers(lambda: self.get("/index.html")), "ferry")
        self.assertEqual(self.workers(), workers, "the workers are other processes than before")
        self.assertIn(self.get("/worker"), workers)
        # The master still commands its workers: they are replaced when it is told to reload.
        self.h1.docker("kill", "--signal", "HUP", "nginx")
        wait_until(lambda: self.workers() and not self.workers() & workers, 15, "nginx to replace its workers")
        self.assertEqual(self.answers(lambda: self.get("/index.html")), "ferry")

    def workers(self):
        listing = self.h1.docker("exec", "nginx", "ps", "-o", "pid,args")
        return {line.split()[0] for line in listing.splitlines() if "worker process" in line
                and "shutting down" not in line}

    def test_threaded_python_server(self):
        self.on_the_lan("python", "python")
        count, ticks = self.ask_counter()
        self.assertEqual(count, 1)
        self.again("python")
        count, later = self.ask_counter()
        self.assertEqual(count, 2)
        self.assertGreaterEqual(later, ticks)
        wait_until(lambda: self.ask_counter()[1] > later + 3, 10, "the server's second thread to tick on")
        start = self.ask_counter()[0]
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.ask_counter()[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(answers), list(range(start + 1, start + 9)))

    def ask_counter(self):
        return tuple(int(n) for n in self.answers(lambda: self.get("/", 8000)).split())

    @deadline(120)
    def test_redis_on_the_default_bridge_five_times(self):
        self.container("redis-bridge", image="redis")

        def command(*words):
            return self.h1.docker("exec", "redis-bridge", "redis-cli", *words)
        wait_until(lambda: self.h1.try_docker("exec", "redis-bridge", "redis-cli", "PING").stdout.strip() == "PONG",
                   10, "redis to answer")
        for i in range(1, 6):
            self.assertEqual(command("INCR", "rounds"), str(i))
            self.checkpoint("redis-bridge", f"cp{i}")
            self.start_from("redis-bridge", f"cp{i}")
        self.assertEqual(command("GET", "rounds"), "5")

    def test_memory_is_intact(self):
        self.container("gap", image="gap", argv=["/usr/bin/gap", "32", "64", "600", "8"])
        wait_until(lambda: "ready" in self.h1.docker("logs", "gap"), 20, "gap to fill its memory")
        self.again("gap")
        self.h1.docker("kill", "--signal", "USR1", "gap")
        wait_until(lambda: "max_gap_ms" in self.h1.docker("logs", "gap"), 20, "gap to verify its memory")
        self.assertIn('"bad_pages":0', self.h1.docker("logs", "gap"))
