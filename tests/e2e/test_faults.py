"""Everything that can die while a container moves, at every step of the move: exactly one container is left, it
has its memory, and the next move works.

The steps are those of src/migrate/step.h; each row of the table is a step of one side, each column a fault.  By
default every row is run with one or two of the columns, so that all of both are met; FERRY_FAULTS=all runs the
whole table.
"""

import contextlib
import os
import re
import signal
import time

import ferrylab
from ferrylab import processes, wait_until
from support import deadline
from test_moves import MoveCase, kill_with_guard, state_of

HERE = os.path.dirname(os.path.realpath(__file__))
ALL = os.environ.get("FERRY_FAULTS") == "all"

# Counts, and keeps a sum that shows when its memory is not what it was.
COUNTER = "i=0; s=0; while true; do echo $i:$s; i=$((i+1)); s=$((s+i)); sleep 0.05; done"

# A remote shell through which a test can break the connection.  By signal: everything is closed; nothing goes
# to the other host any more; nothing comes from it any more; nothing goes either way for a while.
BREAKER = r"""#!/usr/bin/python3
import os, signal, subprocess, sys, threading
there = subprocess.Popen(["{through}", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
lost, flowing = set(), threading.Event()
flowing.set()
def pump(source, sink, way):
    while data := os.read(source, 1 << 20):
        flowing.wait()
        while data and way not in lost:
            data = data[os.write(sink, data):]
    if way not in lost:
        end()
def end(*_):
    # The other program is left to see the end of its input, as behind a cable that was cut.
    os._exit(1)
def lose(way):
    lost.add(way)
    threading.Timer(1.0, end).start()  # as a connection ends whose keepalives are not answered
def stall(*_):
    flowing.clear()
    threading.Timer(1.0, flowing.set).start()
signal.signal(signal.SIGUSR1, end)
signal.signal(signal.SIGUSR2, lambda *_: lose("there"))
signal.signal(signal.SIGTTIN, lambda *_: lose("back"))
signal.signal(signal.SIGTTOU, stall)
try:
    with open("{pidfile}", "x") as f:
        f.write(str(os.getpid()))
except FileExistsError:
    pass  # it is the connection that began the move that is broken, none that follows
for ways in ((there.stdout.fileno(), 1, "back"), (0, there.stdin.fileno(), "there")):
    threading.Thread(target=pump, args=ways, daemon=True).start()
while True:
    signal.pause()
"""


def steps():
    """(role, step) for every step that the program knows, in their order."""
    path = os.path.join(HERE, "..", "..", "src", "migrate", "step.h")
    with open(path, encoding="utf-8") as f:
        rows = re.findall(r"\{Step::\w+, \"(\w+)\", (true|false), (true|false), (?:true|false)\}", f.read())
    return [(role, name) for name, source, destination in rows
            for role, has in (("source", source), ("destination", destination)) if has == "true"]


# The log's last lines may be lost when a move succeeds whose connection or ferry is gone.
AFTER_TAKEN = ("hold", "taken", "resumed", "decided", "finish", "given")


class Faults(MoveCase):
    NAME = "survivor"
    OPTIONS = ("--mode", "pre-copy")  # of every move; by itself it is another one on a busy machine

    def start(self, name):
        self.remove_later(self.h2, name)
        self.container(name, "--restart", "always", argv=["/bin/sh", "-c", COUNTER])
        self.wait_for_lines_of(name, self.h1, 3)
        self.h2.image("busybox")

    def lines_of(self, name, host):
        return [tuple(int(part) for part in line.split(":")) for line in host.docker("logs", name, timeout=20).split()]

    def wait_for_lines_of(self, name, host, count):
        return wait_until(lambda: len(self.lines_of(name, host)) >= count, 15, f"{name} to count on {host.name}", 0.05)

    def counted(self, name, host=None):
        return [number for number, _ in self.lines_of(name, host or self.h1)]

    def homes(self, name):
        found = []
        for host in (self.h1, self.h2):
            if self.exists(name, host):
                found.append(host)
        return found

    def assert_one_life(self, name, may_lose_lines):
        """Exactly one container, running, on one host; it counts on; its sum is right.  The host."""
        def settled():
            here = self.homes(name)
            return here if len(here) == 1 and not self.unsettled(name) else None
        home = wait_until(settled, 25, lambda: f"one container to be left: {self.picture(name)}", 0.1)[0]
        seen = len(self.lines_of(name, home))
        wait_until(lambda: len(self.lines_of(name, home)) >= seen + 3, 10, lambda: f"it to count on: {self.picture(name)}", 0.05)
        lines = self.lines_of(name, home)
        numbers = [i for i, _ in lines]
        self.assertEqual(lines, [(i, i * (i + 1) // 2) for i in numbers], "its memory has changed")
        self.assertEqual(numbers, sorted(set(numbers)), "it counted something twice")
        gaps = [(a, b) for a, b in zip(numbers, numbers[1:]) if b != a + 1]
        self.assertLessEqual(len(gaps), self.gaps + (1 if may_lose_lines else 0), f"lines are missing: {gaps}")
        self.gaps = len(gaps)
        self.assertEqual(home.inspect(name)["HostConfig"]["RestartPolicy"]["Name"], "always")
        self.assert_door_open(name, home)
        return home

    def unsettled(self, name):
        return [m for h in (self.h1, self.h2) for m in self.ps(h) if m["container"] == name and "ended" not in m]

    def picture(self, name):
        return {h.name: (h.try_docker("ps", "-a", "--format", "{{.Names}} {{.Status}}").stdout,
                         [(m["role"], m["state"], m["phase"]) for m in self.ps(h) if "ended" not in m]) for h in (self.h1, self.h2)}

    def breaker(self, there):
        """A remote shell to break, and the file with its process."""
        path = os.path.join(self.h1.tmp, f"breaker-{there.name}")
        pidfile = path + ".pid"
        with open(path, "w", encoding="ascii") as f:
            f.write(BREAKER.format(through=self.rsh_to(there), pidfile=pidfile))
        os.chmod(path, 0o755)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pidfile)
        return path, pidfile

    def resolve_everywhere(self, name):
        """As a user would: the source first, who may have to ask."""
        for _ in range(2):
            for host in (self.h1, self.h2):
                self.try_ferry("resolve", host=host)

    # ---- the columns: what happens while `entry`'s side stands still at its step ----

    def killed(self, move, entry, here, there, pidfile):
        os.kill(entry["pid"], signal.SIGKILL)

    def killed_with_its_guard(self, move, entry, here, there, pidfile):
        kill_with_guard(entry)
        self.end_other(move, entry)
        self.resolve_everywhere(self.NAME)

    def both_killed(self, move, entry, here, there, pidfile):
        for host, role in ((here, "source"), (there, "destination")):
            other = self.entry(host, self.NAME)
            if other and other["role"] == role and other["ended"] == 0 and state_of(other["pid"]):
                os.kill(other["pid"], signal.SIGKILL)

    def both_killed_with_their_guards(self, move, entry, here, there, pidfile):
        for host, role in ((here, "source"), (there, "destination")):
            other = self.entry(host, self.NAME)
            if other and other["role"] == role and other["ended"] == 0 and state_of(other["pid"]):
                kill_with_guard(other)
        self.resolve_everywhere(self.NAME)

    def guard_killed(self, move, entry, here, there, pidfile):
        from test_moves import guards_of
        for guard in guards_of(entry):
            guard.kill()
        os.kill(entry["pid"], signal.SIGCONT)

    def link(self, number, entry, pidfile):
        with open(pidfile, encoding="ascii") as f:
            os.kill(int(f.read()), number)
        os.kill(entry["pid"], signal.SIGCONT)

    def cut(self, move, entry, here, there, pidfile):
        self.link(signal.SIGUSR1, entry, pidfile)

    def cut_on_the_way_there(self, move, entry, here, there, pidfile):
        self.link(signal.SIGUSR2, entry, pidfile)

    def cut_on_the_way_back(self, move, entry, here, there, pidfile):
        self.link(signal.SIGTTIN, entry, pidfile)

    def stalled(self, move, entry, here, there, pidfile):
        self.link(signal.SIGTTOU, entry, pidfile)

    def end_other(self, move, entry):
        """The other side sees the end of the connection by itself."""
        move.wait(30)

    COLUMNS = (killed, killed_with_its_guard, both_killed, both_killed_with_their_guards, guard_killed, cut,
               cut_on_the_way_there, cut_on_the_way_back, stalled)

    def case(self, here, role, step, fault):
        there = self.h2 if here is self.h1 else self.h1
        rsh, pidfile = self.breaker(there)
        if step == "image":  # which is a step only where the image is missing
            there.try_docker("image", "rm", "--force", here.inspect(self.NAME)["Image"])
        move, entry = self.move_that_stops(self.NAME, f"{role}:{step}", *self.OPTIONS, here=here, there=there, rsh=rsh)
        fault(self, move, entry, here, there, pidfile)
        if fault is not Faults.killed and fault is not Faults.killed_with_its_guard:
            move.wait(40)
        home = self.assert_one_life(self.NAME, step in AFTER_TAKEN or fault in CUTS)
        move.wait(40)
        if fault in (Faults.stalled, Faults.guard_killed):
            self.assertIs(home, there, f"a move that nothing hindered did not succeed: {self.said(self.NAME)[-600:]}")
        return home

    def rows(self):
        rows = steps()
        self.assertGreaterEqual(len(rows), 20, "the steps cannot be read")
        return [(role, step) for role, step in rows if step != "pages"]  # which only a post-copy comes to

    def run_table(self, columns):
        self.gaps = 0
        self.start(self.NAME)
        home = self.h1
        rows = self.rows()
        for number, (role, step) in enumerate(rows):
            for column, fault in enumerate(columns):
                if not ALL and number % len(columns) != column:
                    continue
                # A look at the container is over before there is anybody to reach.
                if step in ("look", "reach") and fault not in KILLS:
                    continue
                with self.subTest(f"{role} at {step}, {fault.__name__}"):
                    began = time.monotonic()
                    try:
                        home = self.case(home, role, step, fault)
                    except (AssertionError, OSError, ferrylab.WaitedTooLong, ferrylab.CommandFailed):
                        print(f"     {role} at {step}, {fault.__name__}: {self.picture(self.NAME)}", flush=True)
                        self.start_over()
                        home = self.h1
                        raise
                    if ALL:
                        print(f"     {role} at {step}, {fault.__name__}: on {home.name}, {time.monotonic() - began:.1f} s", flush=True)

    def start_over(self):
        # What still stands at its step would be taken for the next move.
        for move in self.unsettled(self.NAME):
            if state_of(move["pid"]):
                kill_with_guard(move)
        self.resolve_everywhere(self.NAME)
        for host in (self.h1, self.h2):
            host.try_docker("rm", "--force", self.NAME, timeout=30)
        self.gaps = 0
        self.container(self.NAME, "--restart", "always", argv=["/bin/sh", "-c", COUNTER])
        self.wait_for_lines_of(self.NAME, self.h1, 3)

    @deadline(900 if ALL else 150)
    def test_one_ferry_is_killed(self):
        self.run_table((Faults.killed, Faults.killed_with_its_guard))

    @deadline(900 if ALL else 150)
    def test_more_is_killed(self):
        self.run_table((Faults.both_killed, Faults.both_killed_with_their_guards, Faults.guard_killed))

    @deadline(900 if ALL else 150)
    def test_the_connection_breaks(self):
        self.run_table((Faults.cut, Faults.cut_on_the_way_there, Faults.cut_on_the_way_back, Faults.stalled))


    def restart_docker(self, host, **settings):
        host.daemon_settings = settings
        host.stop_docker()
        host.start_docker()

    def crash_docker(self, host):
        """Killed and started again, as an init system does."""
        daemon = host.daemons.pop("dockerd")
        daemon.kill()

        def gone():
            self.lab.reap()  # a zombie's number would still look taken to the next one
            return not daemon.alive() and state_of(daemon.pid) is None
        wait_until(gone, 10, f"dockerd of {host.name} to die")
        # containerd dies with it; dockerd takes the number in this file for a living one as long as init has not
        # reaped it.
        host.run(["rm", "-f", "/run/docker/containerd/containerd.pid"])
        for attempt in range(3):
            try:
                return host.start_docker()
            except RuntimeError as error:
                # It gives containerd 15 s, which may need longer to look after what it left behind.
                if "timeout waiting for containerd" not in str(error) or attempt == 2:
                    raise

    @deadline(240)
    def test_a_docker_daemon_is_killed_and_started_again(self):
        """With live-restore its containers go on, and so does the move, or it leaves the container where it was."""
        for host in (self.h1, self.h2):
            self.lab.renew(host.name)  # what other tests left behind would keep the daemons busy when they start
            self.restart_docker(host, **{"live-restore": True})
            self.addCleanup(self.restart_docker, host)
        self.gaps = 0
        self.start(self.NAME)
        home = self.h1
        rows = [("source", "twin", "source"), ("destination", "files", "destination"), ("source", "rounds", "source"),
                ("source", "freeze", "source")]
        if ALL:
            rows += [("source", "freeze", "destination"), ("destination", "hold", "destination"), ("source", "given", "source"),
                     ("destination", "finish", "destination")]
        for role, step, which in rows:
            with self.subTest(f"{role} at {step}, the daemon of the {which}"):
                there = self.h2 if home is self.h1 else self.h1
                move, entry = self.move_that_stops(self.NAME, f"{role}:{step}", here=home, there=there)
                self.crash_docker(home if which == "source" else there)
                os.kill(entry["pid"], signal.SIGCONT)
                move.wait(60)
                home = self.assert_one_life(self.NAME, True)

    def test_a_destination_that_stands_still_right_before_the_freeze(self):
        """New connections are held back by then: not for as long as it takes until somebody notices."""
        self.start(self.NAME)
        self.gaps = 0
        move, entry = self.move_that_stops(self.NAME, "source:freeze", *self.OPTIONS)
        there = processes.Process.of(self.entry(self.h2, self.NAME)["pid"])
        there.kill(signal.SIGSTOP)
        self.addCleanup(there.kill, signal.SIGCONT)
        os.kill(entry["pid"], signal.SIGCONT)
        self.assertEqual(move.wait(30), 1)
        self.assertTrue(self.counts_on(self.NAME, self.h1), self.said(self.NAME)[-600:])
        there.kill(signal.SIGCONT)
        self.assertIs(self.assert_one_life(self.NAME, False), self.h1)

    # ---- a disk that is full on the destination ----

    @deadline(120)
    def test_no_room_for_the_files(self):
        self.start(self.NAME)
        self.gaps = 0
        self.h1.docker("exec", self.NAME, "dd", "if=/dev/urandom", "of=/root/big", "bs=1M", "count=48")
        self.h2.stop_docker()
        self.h2.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", self.h2.data_root])
        self.addCleanup(self.h2.start_docker)
        self.addCleanup(self.h2.run, ["umount", "--recursive", self.h2.data_root], check=False)
        self.addCleanup(self.h2.stop_docker)
        self.h2.start_docker()
        done = self.try_migrate(self.NAME)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("No space left on device", done.stdout)
        self.assertIs(self.assert_one_life(self.NAME, False), self.h1)

    @deadline(120)
    def test_the_decision_cannot_be_written(self):
        """Neither TAKEN nor REFUSED: the source waits frozen until one of them can."""
        self.start(self.NAME)
        self.gaps = 0
        move, entry = self.move_that_stops(self.NAME, "destination:hold")
        moves = "/var/lib/ferry/moves"
        self.h2.run(["chattr", "+i", moves])
        with self.cleaned_by(lambda: self.h2.run(["chattr", "-i", moves])):
            os.kill(entry["pid"], signal.SIGCONT)
            wait_until(lambda: [m["state"] for m in self.ps(self.h1) if m["container"] == self.NAME and "ended" not in m] == ["doubt"],
                       20, "the source to be in doubt")
            wait_until(lambda: "stays frozen" in self.said(self.NAME), 20, "the source to say that it waits")
            self.assertFalse(self.counts_on(self.NAME, self.h1))
        self.assertEqual(move.wait(40), 1)
        self.resolve_everywhere(self.NAME)
        self.assertIs(self.assert_one_life(self.NAME, False), self.h1)

    @contextlib.contextmanager
    def cleaned_by(self, clean):
        try:
            yield
        finally:
            clean()


CUTS = (Faults.cut, Faults.cut_on_the_way_there, Faults.cut_on_the_way_back)
KILLS = (Faults.killed, Faults.killed_with_its_guard, Faults.both_killed, Faults.both_killed_with_their_guards, Faults.guard_killed)

for inherited in list(vars(MoveCase)):
    if inherited.startswith("test_"):
        setattr(Faults, inherited, None)
