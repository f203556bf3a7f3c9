"""Hosts whose clocks differ by days: those of a container go on, and nothing that waits for a time is confused."""

import json
import os
import re
import subprocess

import test_ferry_migrate
from ferrylab import wait_until
from support import deadline

HERE = os.path.dirname(os.path.abspath(__file__))
DAYS = 20
AHEAD = DAYS * 86400

PYTHON = r"""
import threading, time
last = time.monotonic()
def waiter():
    never = threading.Event()
    while True:
        began = time.monotonic()
        never.wait(1)
        if not 0.99 < time.monotonic() - began < 6:
            print("wrong: waited", time.monotonic() - began, flush=True)
threading.Thread(target=waiter, daemon=True).start()
said = 0
while True:
    now = time.monotonic()
    if not 0 <= now - last < 5:
        print("wrong: from", last, "to", now, flush=True)
    last = now
    if now - said > 0.2:
        said = now
        print(now, flush=True)
    time.sleep(0.002)
"""


class Clocks(test_ferry_migrate.Migrate):
    @classmethod
    def setUpClass(cls):
        cls.lab.renew("h2", clocks_ahead=AHEAD)

    @classmethod
    def tearDownClass(cls):
        cls.lab.renew("h2", clocks_ahead=0)

    def start_waits(self, name, *arguments):
        program = os.path.join(self.h1.tmp, "clocks")
        subprocess.run(["cc", "-O2", "-static", "-pthread", os.path.join(HERE, "clocks.c"), "-o", program],
                       check=True, timeout=60)
        self.start_with(name, "busybox", program, "/clocks", ["/clocks", *arguments])

    def start_python(self, name):
        program = os.path.join(self.h1.tmp, "clocks.py")
        with open(program, "w", encoding="ascii") as f:
            f.write(PYTHON)
        self.start_with(name, "python", program, "/clocks.py", ["/usr/bin/python3", "-u", "/clocks.py"])

    def start_with(self, name, image, source, path, argv):
        self.remove_later(self.h2, name)
        self.container(name, "--network", "none", command="create", image=image, argv=argv)
        self.h1.docker("cp", source, f"{name}:{path}")
        self.h1.docker("start", name)

    def lines(self, name, host):
        return host.docker("logs", name, timeout=20).splitlines()

    def goes_on(self, name, host, enough=10):
        """New lines, none of them a complaint; the last."""
        before = len(self.lines(name, host))
        wait_until(lambda: len(self.lines(name, host)) >= before + enough, 30, f"{name} to go on on {host.name}")
        text = self.lines(name, host)
        self.assertEqual([line for line in text if "wrong" in line], [])
        return text[-1]

    def all_kinds(self, name, host):
        def done():
            found = re.search(r"kinds (\d+) of (\d+)$", self.lines(name, host)[-1])
            return found and found[1] == found[2]
        wait_until(done, 40, f"each way of waiting in {name} to come to an end")

    def monotonic(self, host):
        return float(host.run(["python3", "-c", "import time; print(time.monotonic())"]).stdout)

    def offsets(self, name, host):
        """How far the container's clocks are ahead of the machine's."""
        pid = host.inspect(name)["State"]["Pid"]
        with open(f"/proc/{pid}/timens_offsets", encoding="ascii") as f:
            return {row.split()[0]: int(row.split()[1]) + int(row.split()[2]) / 1e9 for row in f}

    def test_the_hosts_differ(self):
        self.assertAlmostEqual(self.monotonic(self.h2) - self.monotonic(self.h1), AHEAD, delta=60)
        boots = {host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout for host in (self.h1, self.h2)}
        self.assertEqual(len(boots), 2)

    def assert_like_h1(self, name, host):
        """The machine under all hosts is one, and h1 has its clocks."""
        for clock, offset in self.offsets(name, host).items():
            self.assertGreaterEqual(offset, 0, f"{clock} went back")
            self.assertLess(offset, 2, f"{clock} jumped")

    @deadline(150)
    def test_every_way_of_waiting_there_and_back(self):
        self.start_waits("waiter", "2")
        self.goes_on("waiter", self.h1)
        report = json.loads(self.migrate("waiter", "--json"))
        self.assertEqual(self.runs_on("waiter"), ["h2"])
        self.goes_on("waiter", self.h2)
        self.all_kinds("waiter", self.h2)
        self.assert_like_h1("waiter", self.h2)
        self.ferry("migrate", "waiter", "h1", host=self.h2, timeout=90)
        self.assertEqual(self.runs_on("waiter"), ["h1"])
        self.goes_on("waiter", self.h1)
        self.assert_like_h1("waiter", self.h1)
        self.migrate("waiter")
        self.goes_on("waiter", self.h2)
        self.assertLess(report["pause_ms"], 2000)

    @deadline(150)
    def test_a_thousand_threads(self):
        self.start_waits("crowd", "2", "1000")
        self.goes_on("crowd", self.h1)
        self.migrate("crowd", "--switch-anyway")
        self.assertEqual(self.runs_on("crowd"), ["h2"])
        self.goes_on("crowd", self.h2, enough=20)
        self.all_kinds("crowd", self.h2)

    @deadline(120)
    def test_from_a_host_that_is_ahead(self):
        """To one whose clocks are twenty days behind."""
        self.start_python("snake")
        self.goes_on("snake", self.h1)
        pristine = float(self.lines("snake", self.h1)[-1])
        self.migrate("snake")
        self.assertLess(float(self.goes_on("snake", self.h2)) - pristine, 60)
        self.remove_later(self.h1, "native")
        self.start_native("native")
        self.assertGreater(float(self.goes_on("native", self.h2)), AHEAD)
        self.ferry("migrate", "native", "h1", host=self.h2, timeout=90)
        self.assertEqual(self.runs_on("native"), ["h1"])
        self.assertGreater(float(self.goes_on("native", self.h1)), AHEAD)
        for offset in self.offsets("native", self.h1).values():
            self.assertGreaterEqual(offset, AHEAD)
            self.assertLess(offset, AHEAD + 2)

    def start_native(self, name):
        program = os.path.join(self.h2.tmp, "clocks.py")
        with open(program, "w", encoding="ascii") as f:
            f.write(PYTHON)
        self.container(name, "--network", "none", command="create", image="python", host=self.h2,
                       argv=["/usr/bin/python3", "-u", "/clocks.py"])
        self.h2.docker("cp", program, f"{name}:/clocks.py")
        self.h2.docker("start", name)

    @deadline(120)
    def test_a_checkpoint_of_what_has_moved(self):
        """By Docker, which knows nothing of time namespaces."""
        self.start_waits("settler", "2")
        self.goes_on("settler", self.h1)
        self.migrate("settler")
        self.goes_on("settler", self.h2)
        before = self.offsets("settler", self.h2)
        self.checkpoint("settler", "rest", host=self.h2)
        self.start_from("settler", "rest", host=self.h2)
        self.goes_on("settler", self.h2)
        for clock, offset in self.offsets("settler", self.h2).items():
            self.assertLessEqual(offset, before[clock], f"{clock} went on while nothing ran")
            self.assertGreater(offset, before[clock] - 60)

    @deadline(120)
    def test_a_checkpoint_that_is_started_on_the_other_host(self):
        self.start_waits("parcel", "2")
        self.goes_on("parcel", self.h1)
        directory = os.path.join(self.h1.tmp, "parcel-checkpoints")
        self.ferry("checkpoint", "create", "--checkpoint-dir", directory, "parcel", "c1")
        self.start_with_checkpoint("parcel", directory)
        self.goes_on("parcel", self.h2)

    def start_with_checkpoint(self, name, directory):
        self.h2.image("busybox")
        self.remove_later(self.h2, name)
        self.h2.docker("create", "--name", name, "--network", "none", "busybox", "/clocks", "2")
        self.h2.docker("cp", os.path.join(self.h1.tmp, "clocks"), f"{name}:/clocks")
        self.ferry("start", "--checkpoint", "c1", "--checkpoint-dir", directory, name, host=self.h2)


for name in list(vars(test_ferry_migrate.Migrate)):
    if name.startswith("test_") and name not in vars(Clocks):
        setattr(Clocks, name, None)  # run where they are from
