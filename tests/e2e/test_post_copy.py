"""Post-copy: the container runs on the other host first, its memory follows; and what may happen meanwhile."""

import json
import os
import signal

import test_faults
import test_ferry_migrate
import test_live_migration
import test_moves
from ferrylab import wait_until
from support import deadline
from test_live_migration import FAMILY, MAPPER, MIB
from test_moves import kill_with_guard

START = test_live_migration.LiveMigration


class PostCopy(test_moves.MoveCase):
    start_gap, start_python = START.start_gap, START.start_python
    gap_says, assert_writes_on = START.gap_says, START.assert_writes_on

    def assert_intact(self, name, host=None):
        self.assertEqual(self.gap_says(name, host or self.h2)["bad_pages"], 0)

    def state_on(self, host, name):
        states = [m["state"] for m in self.ps(host) if m["container"] == name]
        return states[-1] if states else None

    def went_over(self, name, move):
        self.assertEqual(move.wait(60), 0, self.said(name))
        self.assertEqual(self.runs_on(name), ["h2"])
        self.assertFalse(self.exists(name, self.h1))
        self.assert_intact(name)

    # ---- what arrives ----

    def test_memory_follows(self):
        self.start_gap("follower", 128, 10, threads=3)
        report = json.loads(self.migrate("follower", "--json", "--mode", "post-copy"))
        self.assertEqual(self.runs_on("follower"), ["h2"])
        self.assert_intact("follower")
        self.assertGreater(report["postponed_bytes"], 128 * MIB, report)
        self.assertGreater(report["fetched"]["ms"], 0)
        self.assertGreater(report["fetched"]["pages"], 128 * MIB // 4096, report["fetched"])
        self.assertGreater(report["fetched"]["faults"], 0, report["fetched"])

    def test_through_the_remote_shell_alone(self):
        self.start_gap("tunneller", 32, 4)
        report = json.loads(self.migrate("tunneller", "--json", "--mode", "post-copy", "--tunnel"))
        self.assertGreater(report["postponed_bytes"], 32 * MIB, report)
        self.assert_intact("tunneller")

    def test_there_and_back_with_memory_that_follows(self):
        self.start_gap("shuttle", 32, 4)
        self.migrate("shuttle", "--mode", "post-copy")
        self.ferry("migrate", "--mode", "post-copy", "shuttle", "h1", host=self.h2, timeout=90)
        self.assertEqual(self.runs_on("shuttle"), ["h1"])
        self.assert_intact("shuttle", self.h1)

    def test_address_space_that_changes_all_the_time(self):
        self.start_python("shifter", MAPPER)
        self.assert_writes_on("shifter", self.h1)
        self.migrate("shifter", "--mode", "post-copy")
        self.assert_writes_on("shifter", self.h2, lines=20)

    def test_family_in_which_children_come_and_go(self):
        self.start_python("clan", FAMILY)
        self.assert_writes_on("clan", self.h1, lines=20)
        self.migrate("clan", "--mode", "post-copy")
        self.assert_writes_on("clan", self.h2, lines=20)

    # ---- which way is taken ----

    # The network of a lab may be faster than the program writes, so a slow line is asked for.

    def test_auto_postpones_what_no_round_brings_down(self):
        self.start_gap("sprinter", 64, 400)
        text = self.migrate("sprinter", "--downtime-limit", "1", "--bandwidth", "200M")
        self.assertIn("--mode pre-copy excludes that", text)
        self.assertIn("of its memory followed", text)
        self.assert_intact("sprinter")

    def test_auto_drops_what_is_stale(self):
        self.start_gap("rewriter", 64, 400)
        report = json.loads(self.migrate("rewriter", "--json", "--downtime-limit", "1", "--bandwidth", "200M"))
        self.assertGreater(report["postponed_bytes"], 0, report)
        self.assertGreater(report["rounds"][0]["bytes"], 64 * MIB, "nothing was sent ahead")
        self.assert_intact("rewriter")

    def test_auto_postpones_nothing_of_a_container_at_rest(self):
        self.start_gap("sleeper", 32, 0)
        report = json.loads(self.migrate("sleeper", "--json", "--downtime-limit", "200"))
        self.assertEqual(report["postponed_bytes"], 0, report)
        self.assert_intact("sleeper")

    # ---- what happens meanwhile ----

    @deadline(150)
    def test_source_that_stands_still(self):
        self.start_gap("stalled", 256, 10)
        move, entry = self.move_that_stops("stalled", "source:pages", "--mode", "post-copy")
        wait_until(lambda: self.state_on(self.h2, "stalled") == "cut", 40, "the destination to notice that nothing comes")
        os.kill(entry["pid"], signal.SIGCONT)
        self.went_over("stalled", move)

    @deadline(150)
    def test_destination_that_stands_still(self):
        self.start_gap("patient", 256, 10)
        move, entry = self.move_that_stops("patient", "destination:pages", "--mode", "post-copy")
        wait_until(lambda: self.state_on(self.h1, "patient") == "cut", 40, "the source to notice that nobody asks")
        os.kill(entry["pid"], signal.SIGCONT)
        self.went_over("patient", move)

    @deadline(180)
    def test_connection_that_is_cut(self):
        self.start_gap("severed", 256, 10)
        move, entry = self.move_that_stops("severed", "source:pages", "--mode", "post-copy", rsh="ssh")
        self.h2.run(["nft", "add", "table", "inet", "cut"])
        self.addCleanup(self.h2.run, ["nft", "delete", "table", "inet", "cut"], check=False)
        self.h2.run(["nft", "add", "chain", "inet", "cut", "in", "{ type filter hook input priority -300; policy drop; }"])
        os.kill(entry["pid"], signal.SIGCONT)
        wait_until(lambda: self.state_on(self.h2, "severed") == "cut", 40, "the destination to notice the cut")
        wait_until(lambda: self.state_on(self.h1, "severed") == "cut", 40, "the source to notice the cut")
        self.assertIn("ferry resume", self.said("severed"))
        self.h2.run(["nft", "delete", "table", "inet", "cut"])
        self.went_over("severed", move)

    @deadline(120)
    def test_guard_goes_on_when_the_source_is_killed(self):
        self.start_gap("guarded", 256, 10)
        move, entry = self.move_that_stops("guarded", "source:pages", "--mode", "post-copy")
        os.kill(entry["pid"], signal.SIGKILL)
        move.wait(30)
        wait_until(lambda: not self.exists("guarded", self.h1), 60, "the guard to give the rest and to end the source")
        self.assertEqual(self.runs_on("guarded"), ["h2"])
        self.assert_intact("guarded")

    @deadline(120)
    def test_resume_when_nobody_has_the_source_in_hand(self):
        self.start_gap("revived", 256, 10)
        move, entry = self.move_that_stops("revived", "source:pages", "--mode", "post-copy")
        kill_with_guard(entry)
        move.wait(30)
        self.assertEqual(self.state_on(self.h1, "revived"), "broken")
        self.assertIn("runs on h2", self.ferry("resume", "revived"))
        self.assertFalse(self.exists("revived", self.h1))
        self.assert_intact("revived")

    @deadline(120)
    def test_killed_destination_never_runs_on_with_zeros(self):
        self.start_gap("bereft", 256, 10)
        move, entry = self.move_that_stops("bereft", "destination:pages", "--mode", "post-copy")
        os.kill(entry["pid"], signal.SIGKILL)
        wait_until(lambda: not self.running("bereft", self.h2), 30, "the tree without memory to be ended")
        wait_until(lambda: "stands frozen" in self.said("bereft"), 60, "the source to be told what became of it")
        self.assertIn("bereft", self.h1.docker("ps", "--format", "{{.Names}}"), "the source's memory was let go")
        self.assertIsNone(move.poll())
        # What the user may do about it; the ferry that waits here leaves it to its guard.
        self.assertIn("ended before it had its memory", self.ferry("resolve", "bereft", "--revive-source"))
        self.assertNotEqual(move.wait(30), 0)
        self.assertEqual(self.runs_on("bereft"), ["h1"])
        self.assert_intact("bereft", self.h1)

    @deadline(120)
    def test_source_is_revived_when_the_destination_is_lost_for_good(self):
        self.start_gap("orphan", 256, 10, options=("--restart", "always"))
        rsh = self.rsh_to(self.h2)
        move, entry = self.move_that_stops("orphan", "destination:pages", "--mode", "post-copy", rsh=rsh)
        refused = self.try_ferry("resolve", "orphan", "--revive-source")
        self.refused(refused, "two lives")
        with open(rsh, "w", encoding="ascii") as f:
            f.write("#!/bin/sh\necho no route to host >&2\nexit 255\n")
        os.kill(entry["pid"], signal.SIGKILL)
        wait_until(lambda: not self.running("orphan", self.h2), 30, "the tree to be gone with its host")
        self.assertIn("should that host come back", self.ferry("resolve", "orphan", "--revive-source"))
        move.wait(30)
        self.assertTrue(self.running("orphan", self.h1))
        self.assert_intact("orphan", self.h1)
        self.assertEqual(self.h1.inspect("orphan")["HostConfig"]["RestartPolicy"]["Name"], "always")
        self.assertEqual(self.state_on(self.h1, "orphan"), "stayed")
        self.refused(self.try_ferry("resolve", "orphan", "--revive-source"), "has ended already")

    def test_resume_of_nothing(self):
        self.refused(self.try_ferry("resume", "nobody-at-all"), "nobody-at-all")


class Faults(test_faults.Faults):
    """Up to TAKEN nothing that dies takes the container along, whether its memory was sent ahead or not."""

    OPTIONS = ("--mode", "post-copy")
    # The way of the memory makes no difference to these.
    test_a_docker_daemon_is_killed_and_started_again = test_no_room_for_the_files = test_the_decision_cannot_be_written = None
    test_a_destination_that_stands_still_right_before_the_freeze = None

    def rows(self):
        wanted = ("freeze", "grow", "hold", "record")
        rows = [row for row in test_faults.steps() if row[1] in wanted]
        self.assertEqual(len(rows), len(wanted))
        return rows


for inherited in list(vars(test_ferry_migrate.Migrate)):
    if inherited.startswith("test_"):
        setattr(PostCopy, inherited, None)  # run where they are from
