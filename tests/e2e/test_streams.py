"""How memory crosses: direct connections or the remote shell, its limits, and a container that is slowed down for it."""

import json
import re
import signal

import test_live_migration
from ferrylab import wait_until
from support import deadline

MIB = 1 << 20

# Memory that can be packed, and knows what has to be in it.
TEXT = r"""
import time
lines = [("line %09d of a text that says the same again and again\n" % i) * 20 for i in range(60000)]
while True:
    for i, line in enumerate(lines):
        if line[:14] != "line %09d" % i:
            print("wrong: line", i, flush=True)
    print("right", flush=True)
    time.sleep(0.05)
"""

# Whoever knocks at h2, but for its sshd, hears nothing.
WALL = """table inet wall {
  chain input {
    type filter hook input priority 0; policy accept;
    tcp flags & (syn | ack) == syn tcp dport != 22 drop
  }
}
"""


def cpu_quota(host, name):
    """What the container's cgroup says about processor time, v1 or v2."""
    with open(f"/proc/{host.inspect(name)['State']['Pid']}/cgroup", encoding="ascii") as f:
        groups = dict(line.strip().split(":", 2)[1:] for line in f)
    for controllers, path in groups.items():
        if "cpu" in controllers.split(","):
            said = []
            for file in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
                with open(f"/sys/fs/cgroup/{controllers}{path}/{file}", encoding="ascii") as f:
                    said.append(f.read().strip())
            return " ".join(said)
    with open(f"/sys/fs/cgroup{groups['']}/cpu.max", encoding="ascii") as f:
        return f.read().strip()


class Streams(test_live_migration.LiveMigration):
    def listening(self, host):
        return set(re.findall(r"\S+:\d+", host.run(["ss", "-ltnH"]).stdout))

    def move(self, name, *options):
        done = self.h1.run(["ferry", "migrate", "--json", *options, name, "h2"], merge=False, timeout=120)
        report = json.loads(done.stdout)
        self.assertEqual(self.runs_on(name), ["h2"])
        return report

    def tunnel_notes(self, report):
        return [note for note in report["notes"] if "remote shell" in note]

    def assert_intact(self, name, host=None):
        self.assertEqual(self.gap_says(name, host or self.h2)["bad_pages"], 0)

    def test_memory_crosses_direct_connections(self):
        self.start_gap("direct", 64, 4)
        before = self.listening(self.h2)
        report = self.move("direct", "--streams", "3")
        self.assertEqual(report["streams"], 3)
        self.assertEqual(self.tunnel_notes(report), [])
        self.assertGreater(report["bytes"], 64 * MIB)
        self.assert_intact("direct")
        self.assertEqual(self.listening(self.h2), before, "something still listens after the move")

    def test_everything_through_the_remote_shell(self):
        self.start_gap("tunnelled", 32, 4)
        report = self.move("tunnelled", "--tunnel")
        self.assertEqual(report["streams"], 0)
        self.assertEqual(self.tunnel_notes(report), [], "what was asked for is no news")
        self.assertGreater(report["rounds"][0]["bytes"], 32 * MIB)
        self.assert_intact("tunnelled")

    def test_blocked_port_falls_back_to_the_remote_shell(self):
        self.h2.run(["nft", "-f", "-"], text=WALL)
        self.addCleanup(self.h2.run, ["nft", "delete", "table", "inet", "wall"])
        self.start_gap("walled", 16, 4)
        report = self.move("walled")
        self.assertEqual(report["streams"], 0)
        self.assertRegex(" ".join(self.tunnel_notes(report)), r"remote shell: connecting to \S+ port \d+: nobody answers")
        self.assert_intact("walled")

    def test_chosen_port(self):
        self.start_gap("ported", 16, 4)
        taken = self.h2.socket()
        taken.bind((self.h2.address, 17171))
        taken.listen()
        with taken:
            report = self.move("ported", "--port", "17171")
            self.assertEqual(report["streams"], 0)
            self.assertIn("17171", " ".join(self.tunnel_notes(report)))
        self.ferry("migrate", "ported", "h1", host=self.h2, timeout=90)
        report = self.move("ported", "--port", "17172", "--address", self.h2.address)
        self.assertEqual(report["streams"], 2)
        self.assert_intact("ported")

    def test_bandwidth_is_kept_to(self):
        self.start_gap("capped", 48, 0)
        report = self.move("capped", "--bandwidth", "32M")
        self.assertGreater(report["rounds"][0]["ms"], 48 / 32 * 1000 * 0.75)
        self.assert_intact("capped")

    def test_memory_is_packed_where_that_helps(self):
        self.start_python("packed", TEXT)
        wait_until(lambda: "right" in self.h1.docker("logs", "packed"), 30, "the program to have its text")
        report = self.move("packed", "--compress")
        first = report["rounds"][0]
        self.assertLess(first["wire_bytes"], first["bytes"] / 3)
        self.assert_writes_on("packed", self.h2)
        self.ferry("migrate", "--compress", "--tunnel", "packed", "h1", host=self.h2, timeout=90)
        self.assert_writes_on("packed", self.h1)

    @deadline(180)
    def test_a_gibibyte_under_a_steady_load_converges(self):
        self.start_gap("loaded", 1024, 100)
        report = self.move("loaded", "--downtime-limit", "60")
        self.assertLess(sum(r["bytes"] for r in report["rounds"]), 3 << 30)
        self.assertLess(report["rounds"][-1]["bytes"], 100 * MIB)
        self.assertGreater(report["predicted_pause_ms"], 0)
        self.assert_intact("loaded")

    def racer(self, name, *options):
        """Writes far faster than any line here."""
        self.remove_later(self.h2, name)
        self.container(name, "--network", "none", *options, image="gap", argv=["/usr/bin/gap", "512", "3000", "600", "0"])
        wait_until(lambda: "ready" in self.h1.docker("logs", name), 60, "gap to fill its memory")

    @deadline(240)
    def test_a_container_that_writes_too_fast_is_slowed_down_and_says_so(self):
        self.racer("slowed", "--cpus", "1.5")
        was = cpu_quota(self.h1, "slowed")
        # The network of a lab may be faster than a processor writes.
        report = self.move("slowed", "--mode", "pre-copy", "--bandwidth", "200M", "--downtime-limit", "100", "--max-rounds", "60")
        self.assertGreater(max(r["throttle_percent"] for r in report["rounds"]), 0, report["rounds"])
        self.assertEqual(cpu_quota(self.h2, "slowed"), was, "the twin has another limit than the user gave")
        self.assert_intact("slowed")

    @deadline(120)
    def test_a_move_that_is_given_up_leaves_the_quota_as_it_was(self):
        self.racer("kept", "--cpus", "1.5")
        was = cpu_quota(self.h1, "kept")
        given_up = self.try_migrate("kept", "--mode", "pre-copy", "--downtime-limit", "0", "--max-rounds", "12")
        self.assertNotEqual(given_up.returncode, 0, given_up.stdout)
        self.assertIn("processor time", given_up.stdout)
        self.assertEqual(cpu_quota(self.h1, "kept"), was)
        self.assert_intact("kept", self.h1)

    @deadline(120)
    def test_without_auto_converge_nothing_is_slowed_down(self):
        self.racer("free")
        given_up = self.try_migrate("free", "--mode", "pre-copy", "--no-auto-converge", "--downtime-limit", "0", "--max-rounds", "8")
        self.assertNotEqual(given_up.returncode, 0, given_up.stdout)
        self.assertNotIn("processor time", given_up.stdout)
        self.assertEqual(self.runs_on("free"), ["h1"])

    @deadline(120)
    def test_ferry_killed_while_the_container_is_slowed_down(self):
        self.racer("victim", "--cpus", "1.5")
        was = cpu_quota(self.h1, "victim")
        move = self.h1.popen(["ferry", "migrate", "--mode", "pre-copy", "--downtime-limit", "0", "--max-rounds", "10000", "victim", "h2"])
        self.addCleanup(move.kill)
        wait_until(lambda: cpu_quota(self.h1, "victim") != was or move.poll() is not None, 60, "the container to be slowed down", 0.005)
        self.assertIsNone(move.poll(), "the move ended before the container was slowed down")
        move.send_signal(signal.SIGKILL)
        move.wait(10)
        wait_until(lambda: cpu_quota(self.h1, "victim") == was, 10, "the guard to give the processor time back")
        wait_until(lambda: not self.exists("victim", self.h2), 20, "the twin to be removed")
        self.assertEqual(self.runs_on("victim"), ["h1"])
        self.assert_intact("victim", self.h1)


for case in (test_live_migration.LiveMigration, test_live_migration.test_ferry_migrate.Migrate):
    for name in list(vars(case)):
        if name.startswith("test_") and name not in vars(Streams):
            setattr(Streams, name, None)  # run where they are from
