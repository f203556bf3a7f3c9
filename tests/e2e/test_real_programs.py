"""Real programs from Debian's packages with Docker's default security settings: sessions stay open and are at work
all the time while the container goes ten times through a checkpoint or to another host, and every answer is right."""

import hashlib
import http.client
import os
import subprocess
import tempfile

from ferrylab import ssh, wait_until
from sessions import Lines, MariaDb, Postgres, Session, Visits, expect, receive
from support import deadline
from test_ferry_checkpoint import FerryCase

TIMES = 10
MOVES = (4, 9)  # the rounds in which the container goes to the other host, live
WITH_DOCKER = range(TIMES)  # by Docker's own commands; ferry's are faster, but close connections by design
REQUESTS_BETWEEN = 10


class RealPrograms(FerryCase):
    ADDRESS = "10.77.0.170"

    def setUp(self):
        super().setUp()
        self.here, self.there = self.h1, self.h2
        self.sessions = []
        os.makedirs("/etc/criu", exist_ok=True)
        for host in (self.h1, self.h2):
            # runc's settings of its criu, only for this host of the lab.
            host.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/criu"])
            self.addCleanup(host.run, ["umount", "/etc/criu"])
            host.run(["sh", "-c", "printf 'tcp-established\\nfile-locks\\n' >/etc/criu/runc.conf"])

    # ---- containers and sessions ----

    def start(self, name, *options, image=None, argv=()):
        """A container with an address of its own, which it keeps on either host."""
        image = image or name
        for host in (self.h1, self.h2):
            host.macvlan()
            host.image(image)
        self.remove_later(self.h2, name)
        self.container(name, "--network", "lan", "--ip", self.ADDRESS, *options, image=image, argv=argv)
        return name

    def connect(self, port, name):
        def connected():
            try:
                connection = self.client.connect(self.ADDRESS, port, timeout=20)
            except OSError:
                if not self.running(name, self.here):
                    raise AssertionError(f"{name} ended: {self.here.docker('logs', '--tail', '20', name)}") from None
                return None
            self.addCleanup(connection.close)
            return connection
        return wait_until(connected, 30, f"{name} to listen on port {port}", 0.1)

    def database(self, protocol, port, name):
        """A connection that speaks the protocol."""
        def reached():
            try:
                return protocol(self.connect(port, name))
            except (EOFError, ValueError):  # it listens before it lets anybody in
                return None
        return wait_until(reached, 30, f"{name} to let somebody in", 0.1)

    def session(self, name, ask):
        session = Session(name, ask)
        self.sessions.append(session)
        self.addCleanup(session.stop)
        session.start()
        return session

    def sessions_go_on(self, when):
        targets = [(s, s.count + REQUESTS_BETWEEN) for s in self.sessions]

        def gone_on():
            for s in self.sessions:
                if s.error is not None:
                    raise AssertionError(f"{when}: session {s.name} after {s.count} good answers: {s.error!r}")
            return all(s.count >= target for s, target in targets)
        wait_until(gone_on, 25, lambda: f"{when}: answers to {[s.name for s, t in targets if s.count < t]}", 0.01)

    # ---- ten times ----

    def ten_times(self, name, between=lambda: None, moves=MOVES, with_docker=WITH_DOCKER):
        self.sessions_go_on("before anything")
        for number in range(TIMES):
            if number in moves:
                self.ferry("migrate", "--switch-anyway", name, self.there.name, host=self.here, timeout=90)
                self.here, self.there = self.there, self.here
            elif number in with_docker:
                self.checkpoint(name, "cp", host=self.here)
                self.start_from(name, "cp", host=self.here)
                self.here.docker("checkpoint", "rm", name, "cp")
            else:
                with tempfile.TemporaryDirectory(dir=self.here.tmp) as store:
                    self.ferry("checkpoint", "create", "--checkpoint-dir", store, name, "cp", host=self.here)
                    self.wait_until_stopped(name, self.here)
                    self.ferry("start", "--checkpoint", "cp", "--checkpoint-dir", store, name, host=self.here)
            self.sessions_go_on(f"after round {number}")
            between()
        for s in self.sessions:
            s.stop()
            self.assertIsNone(s.error, s.name)
        self.sessions.clear()

    # ---- the programs ----

    @deadline(240)
    def test_postgres(self):
        name = self.start("postgres")

        def database():
            return self.database(Postgres, 5432, name)

        first = database()
        first.query("CREATE TABLE accounts (id int PRIMARY KEY, balance bigint); "
                    "INSERT INTO accounts SELECT i, 1000 FROM generate_series(0, 99) AS i; "
                    "CREATE SEQUENCE visits")

        def transfers(db, key):
            db.query(f"CREATE TEMP TABLE mine (n int); PREPARE add AS INSERT INTO mine VALUES ($1); "
                     f"SELECT pg_advisory_lock({key}); LISTEN news{key}")

            def ask(number):
                # Money moves, and none is lost; a transaction stays open over two requests.
                source, sink = number * 7 % 50 + 50 * (key % 2), (number * 11 + 5) % 50 + 50 * (key % 2)
                db.query(f"BEGIN; UPDATE accounts SET balance = balance - 1 WHERE id = {source}; EXECUTE add({number})")
                db.query(f"UPDATE accounts SET balance = balance + 1 WHERE id = {sink}; NOTIFY news{key}, '{number}'")
                db.query("COMMIT")
                expect("the sum of balances", db.one("SELECT sum(balance) FROM accounts"), "100000")
                expect("the rows of the temporary table", db.one("SELECT count(*) || ' ' || max(n) FROM mine"),
                       f"{number} {number}")
                expect("the notifications", db.notifications[-1:], [str(number)])
            return ask

        def sorts(db):
            def ask(_):
                # Too much for the memory that a sort may take: temporary files.
                expect("the checksum of a sort", db.one(
                    "SELECT md5(string_agg(x::text, ',')) FROM (SELECT i * 7919 % 20011 AS x "
                    "FROM generate_series(1, 20000) AS i ORDER BY 1) AS s"), checksum)
            db.query("SET work_mem = '64kB'")
            return ask
        checksum = hashlib.md5(",".join(str(x) for x in sorted(i * 7919 % 20011 for i in range(1, 20001)))
                               .encode()).hexdigest()
        # Of those that share rows only one can be in its transaction.
        for key in range(2):
            self.session(f"transfers {key}", transfers(database(), key))
        self.session("sorts", sorts(database()))
        for number in range(5):
            idle = database()
            self.session(f"idle {number}", lambda n, db=idle: expect("an answer", db.one(f"SELECT {n}"), str(n)))
        self.ten_times(name)
        # A session that has slept all the time, and the process that writes checkpoints.
        self.assertEqual(first.one("SELECT sum(balance) FROM accounts"), "100000")
        first.query("CHECKPOINT")
        self.assertEqual(first.one("SELECT count(*) FROM pg_stat_activity WHERE state IS NOT NULL AND "
                                   "client_addr IS NOT NULL"), "9")
        # A new backend is made, and the session inside has missed no number.
        self.assertEqual(database().one("SELECT sum(balance) FROM accounts"), "100000")
        log = self.here.docker("logs", name).splitlines()
        self.assertEqual([line for line in log if not line.isdigit()], [], "the session inside met trouble")
        self.assert_seamless([int(line) for line in log], 1)
        self.assertGreater(len(log), TIMES)

    @deadline(200)
    def test_mariadb(self):
        name = self.start("mariadb")

        def database():
            return self.database(MariaDb, 3306, name)

        first = database()
        first.query("CREATE TABLE accounts (id int PRIMARY KEY, balance bigint) ENGINE=InnoDB")
        first.query("INSERT INTO accounts VALUES " + ",".join(f"({i}, 1000)" for i in range(100)))

        def transfers(db, key):
            db.query("CREATE TEMPORARY TABLE mine (n int)")
            db.query(f"SELECT GET_LOCK('lock{key}', 1)")

            def ask(number):
                source, sink = number * 7 % 50 + 50 * key, (number * 11 + 5) % 50 + 50 * key
                db.query("BEGIN")
                db.query(f"UPDATE accounts SET balance = balance - 1 WHERE id = {source}")
                db.query(f"INSERT INTO mine VALUES ({number})")
                db.query(f"UPDATE accounts SET balance = balance + 1 WHERE id = {sink}")
                db.query("COMMIT")
                expect("the sum of balances", db.one("SELECT SUM(balance) FROM accounts"), "100000")
                expect("the rows of the temporary table", db.one("SELECT CONCAT(COUNT(*), ' ', MAX(n)) FROM mine"),
                       f"{number} {number}")
                expect("the owner of the lock", db.one(f"SELECT IS_USED_LOCK('lock{key}') = CONNECTION_ID()"), "1")
            return ask
        for key in range(2):
            self.session(f"transfers {key}", transfers(database(), key))
        for number in range(4):
            idle = database()
            self.session(f"idle {number}", lambda n, db=idle: expect("an answer", db.one(f"SELECT {n}"), str(n)))
        self.ten_times(name)
        self.assertEqual(database().one("SELECT SUM(balance) FROM accounts"), "100000")
        self.assertEqual(database().query("CHECK TABLE accounts")[0][-1], "OK")

    @deadline(150)
    def test_memcached(self):
        name = self.start("memcached")

        def counts(connection, key):
            block = os.urandom(3000)

            def command(line, end):
                connection.sendall(line)
                answer = b""
                while not answer.endswith(end):
                    answer += receive(connection, 1)
                return answer

            def ask(number):
                if number == 1:
                    command(b"set %s 0 0 1\r\n0\r\n" % key, b"STORED\r\n")
                expect("the counter", command(b"incr %s 1\r\n" % key, b"\r\n"), b"%d\r\n" % number)
                value = hashlib.sha256(block + b"%d" % number).digest() * 40
                command(b"set %s-%d 7 0 %d\r\n%s\r\n" % (key, number % 50, len(value), value), b"STORED\r\n")
                if number > 50:
                    value = hashlib.sha256(block + b"%d" % (number - 49)).digest() * 40
                    connection.sendall(b"get %s-%d\r\n" % (key, (number - 49) % 50))
                    wanted = b"VALUE %s-%d 7 %d\r\n%s\r\nEND\r\n" % (key, (number - 49) % 50, len(value), value)
                    expect("an old value", receive(connection, len(wanted)), wanted)
            return ask
        for number in range(6):
            self.session(f"counter {number}", counts(self.connect(11211, name), b"key%d" % number))
        self.ten_times(name)

    def http_visits(self, name, sessions):
        for number in range(sessions):
            connection = http.client.HTTPConnection(self.ADDRESS, 8080)
            connection.sock = self.connect(8080, name)

            def visit(key, n, connection=connection):
                connection.request("GET", f"/visit/{key}/{n}")
                answer = connection.getresponse()
                body = answer.read().decode()
                expect("the status", answer.status, 200)
                return body
            visits = Visits(f"key{number}", visit)
            self.session(f"visitor {number}", visits)
            yield visits

    @deadline(150)
    def test_node(self):
        name = self.start("node")
        visits = list(self.http_visits(name, 4))
        self.ten_times(name)
        for v in visits:
            expect("the derived key", v.last["derived"], hashlib.pbkdf2_hmac(
                "sha256", v.key.encode(), str(v.last["count"]).encode(), 10, 16).hex())
        # Its watch of a directory goes on telling of writes.
        seen = visits[0].last["seen"]
        visits[0](visits[0].last["count"] + 1)
        visits[0](visits[0].last["count"] + 1)
        self.assertGreater(visits[0].last["seen"], seen)

    @deadline(150)
    def test_java(self):
        name = self.start("java")
        visits = list(self.http_visits(name, 4))
        self.ten_times(name, lambda: [self.assertEqual(v.last["wrong"], 0, "the heap is damaged") for v in visits])

    @deadline(150)
    def test_python_asyncio_and_multiprocessing(self):
        name = self.start("service", image="python", argv=["/usr/bin/python3", "-u", "/srv/service.py"])
        visits = []
        for number in range(4):
            lines = Lines.over(self.connect(8080, name))
            visits.append(Visits(f"key{number}", lambda key, n, lines=lines: lines.ask(f"{key} {n}")))
            self.session(f"visitor {number}", visits[-1])

        def signal():
            before = visits[0].last["signals"]
            self.here.docker("kill", "--signal", "USR1", name)
            wait_until(lambda: visits[0].last["signals"] > before, 15,
                       "the event loop to see a signal")
        self.ten_times(name, signal)
        for v in visits:
            self.assertEqual(v.last["twice"], 2 * v.last["count"])

    @deadline(150)
    def test_redis(self):
        name = self.start("redis", argv=["/usr/bin/redis-server", "--protected-mode", "no", "--appendonly", "yes",
                                         "--save", "1 10"])

        def counts(connection, key):
            def ask(number):
                connection.sendall(b"MULTI\r\nINCR %s\r\nLPUSH %s-list %d\r\nLTRIM %s-list 0 9\r\nEXEC\r\n"
                                   % (key, key, number, key))
                wanted = b"+OK\r\n" + b"+QUEUED\r\n" * 3 + b"*3\r\n:%d\r\n:%d\r\n+OK\r\n" % (number, min(number, 11))
                expect("the answer", receive(connection, len(wanted)), wanted)
            return ask
        for number in range(4):
            self.session(f"counter {number}", counts(self.connect(6379, name), b"key%d" % number))
        news, speaker = self.connect(6379, name), self.connect(6379, name)
        news.sendall(b"SUBSCRIBE news\r\n")
        wanted = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
        self.assertEqual(receive(news, len(wanted)), wanted)

        def publish(number):
            speaker.sendall(b"PUBLISH news %08d\r\n" % number)
            expect("the number of listeners", receive(speaker, 4), b":1\r\n")
            wanted = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$8\r\n%08d\r\n" % number
            expect("the news", receive(news, len(wanted)), wanted)
        self.session("news", publish)
        self.ten_times(name)

    @deadline(150)
    def test_nginx(self):
        name = self.start("nginx")

        def gets(connection):
            def ask(number):
                for path, wanted in (("/index.html", None), ("/worker", None), (f"/none{number}", 404)):
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    body = answer.read()
                    expect(f"the status of {path}", answer.status, wanted or 200)
                    if path == "/index.html":
                        expect("the page", body, b"ferry\n")
                    elif path == "/worker":
                        workers.add(body)
            return ask
        workers = set()
        for number in range(4):
            connection = http.client.HTTPConnection(self.ADDRESS, 80)
            connection.sock = self.connect(80, name)
            # It closes a connection after a thousand requests.
            session = self.session(f"visitor {number}", gets(connection))
            session.pause = 0.15
        self.ten_times(name)
        self.assertLessEqual(len(workers), 2, "workers were replaced")

    # ---- families of processes ----

    @deadline(150)
    def test_compiler_run_with_four_jobs(self):
        name = self.start("compiler")

        def builds_on():
            wanted = len(self.counted(name, self.here)) + 3
            wait_until(lambda: len(self.counted(name, self.here)) >= wanted, 30,
                       lambda: f"{wanted} builds; its processes:\n"
                               + self.here.docker("top", name, "-eo", "pid,stat,wchan,args"))
        builds_on()
        # Docker's checkpoint pauses a container first, and gives up on one that forks all the time.
        self.ten_times(name, builds_on, with_docker=())
        self.assert_seamless(self.counted(name, self.here))

    @deadline(150)
    def test_systemd_as_first_process(self):
        # It manages control groups, so it needs to write to their tree.  It knows where it stands there, and another
        # host gives it another place; so it is not moved.
        name = self.start("systemd", "--tmpfs", "/run", "--tmpfs", "/run/lock", "--volume",
                          "/sys/fs/cgroup:/sys/fs/cgroup:ro", "--cgroupns", "host")

        def inside(*command):
            return self.here.docker("exec", name, *command)

        def echo(lines):
            return lambda n: expect("the echo", lines.ask(f"line {n}"), f"line {n}")

        def new_service(number):
            with self.client.connect(self.ADDRESS, 8080, timeout=20) as connection:
                echo(Lines.over(connection))(number)
        for number in range(3):
            self.session(f"service {number}", echo(Lines.over(self.connect(8080, name))))

        def units_go_on():
            """A timer, a service that dies and is started again, one that runs on, a path that is watched, and a
            new instance for a new connection."""
            new_service(len(drops))
            def sizes():
                return [int(line.split()[0]) for line in
                        inside("wc", "-l", "/srv/ticks", "/srv/rises", "/srv/numbers").splitlines()[:3]]
            before = sizes()
            wait_until(lambda: all(now > old + 1 for now, old in zip(sizes(), before)), 20,
                       lambda: f"more than {before} ticks, rises and numbers; there are {sizes()}", 0.1)
            drops.append(f"drop {len(drops)}")
            inside("sh", "-c", f"echo {drops[-1]} >/srv/drop")
            wait_until(lambda: drops[-1] in self.here.try_docker("exec", name, "cat", "/srv/seen").stdout, 20,
                       "systemd to see that the file was written")
        drops = []
        units_go_on()
        self.ten_times(name, units_go_on, moves=())
        self.assertEqual(inside("systemctl", "is-system-running"), "running")
        self.assert_seamless([int(n) for n in inside("cat", "/srv/numbers").split()])

    # ---- terminals ----

    @deadline(150)
    def test_tmux_with_a_shell_and_an_editor(self):
        name = self.start("tmux", "--tty", "--interactive")

        def inside(*command):
            return self.here.docker("exec", name, *command)

        def screen(window):
            return inside("tmux", "capture-pane", "-p", "-t", window)

        def keys(window, *words):
            inside("tmux", "send-keys", "-t", window, *words)

        wait_until(lambda: self.here.try_docker("exec", name, "tmux", "list-windows").returncode == 0, 15,
                   lambda: f"tmux to be up: {self.here.try_docker('logs', name).stdout}")
        inside("tmux", "new-window", "-d", "-n", "count", "i=0; while :; do echo $i >>/srv/count; i=$((i+1)); "
                                                          "sleep 0.05; done")
        inside("tmux", "new-window", "-d", "-n", "editor", "vim -u NONE -n /srv/text")
        self.assertIn("#", screen(":0"))
        wait_until(lambda: "~" in screen("editor"), 15, "the editor to draw its screen")
        keys(":0", "n=0", "Enter")
        keys("editor", "i", "begin")
        lines = ["begin"]

        def work():
            number = len(lines)
            lines.append(f"line {number}")
            # A job in the background, a pipe, the shell's own variable; text that is typed into an open buffer.
            keys(":0", f"n=$((n+{number})); (sleep 0.01; echo $n | sed s/^/result:/ >>/srv/results) & wait", "Enter")
            keys("editor", "Enter", lines[-1])
            wanted = "".join(f"result:{sum(range(1, n + 1))}\n" for n in range(1, number + 1)).strip()
            wait_until(lambda: self.here.try_docker("exec", name, "cat", "/srv/results").stdout.strip() == wanted, 15,
                       lambda: f"the shell to do its sum; its screen:\n{screen(':0')}")
            wait_until(lambda: lines[-1] in screen("editor"), 15, lambda: f"the editor to show:\n{screen('editor')}")
        work()
        self.ten_times(name, work, with_docker=(0, 5))
        keys("editor", "Escape", ":wq", "Enter")
        wait_until(lambda: self.here.try_docker("exec", name, "cat", "/srv/text").stdout.split("\n")[:-1] == lines, 15,
                   "the editor to write the text")
        numbers = [int(n) for n in inside("cat", "/srv/count").split()]
        self.assert_seamless(numbers)
        # The client that is attached to the terminal of the container follows its size.
        self.assertIn("attached", inside("tmux", "list-sessions"))

    @deadline(150)
    def test_openssh_with_open_sessions(self):
        key = os.path.join(self.client.tmp, "guest_key")
        ssh.make_key(key, "guest")
        self.addCleanup(os.unlink, key)
        host_key = os.path.join(self.client.tmp, "container_key")
        ssh.make_key(host_key, "container")
        self.addCleanup(os.unlink, host_key)
        name = "sshd"
        for host in (self.h1, self.h2):
            host.macvlan()
            host.image("sshd")
        self.remove_later(self.h2, name)
        self.container(name, "--network", "lan", "--ip", self.ADDRESS, image="sshd", command="create")
        self.h1.docker("cp", host_key, f"{name}:/etc/ssh/host_key")
        self.h1.docker("cp", key + ".pub", f"{name}:/etc/ssh/keys")
        self.h1.docker("start", name)

        def shell(*options):
            self.connect(22, name)
            child = self.client.popen(
                ["ssh", "-F", "none", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                 "-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=20", *options,
                 f"guest@{self.ADDRESS}", "stty -echo 2>/dev/null; while read -r line; do eval \"$line\"; done"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.lab.children.append(child)
            self.addCleanup(child.stdout.close)
            self.addCleanup(child.wait)
            self.addCleanup(child.kill)
            return child

        def sums(child):
            lines = Lines(lambda data: os.write(child.stdin.fileno(), data),
                          lambda size: os.read(child.stdout.fileno(), size))

            def ask(number):
                line = lines.ask(f"n=$((n+{number})); echo sum $n")
                expect("the shell's answer", line, f"sum {number * (number + 1) // 2}")
            return ask

        self.session("without a terminal", sums(shell("-T")))
        terminal = shell("-tt")
        os.write(terminal.stdin.fileno(), b"tty; echo rea''dy\n")  # the terminal may still echo this
        said = b""
        while not said.endswith(b"ready\r\n"):
            piece = os.read(terminal.stdout.fileno(), 4096)
            self.assertTrue(piece, f"the session ended after {said}")
            said += piece
        self.assertIn(b"/dev/pts/", said)
        self.session("with a terminal", sums(terminal))
        self.ten_times(name)
        # It lets others in, too.
        self.session("new", sums(shell("-T")))
        self.sessions_go_on("at the end")
