"""ferry ps, cancel and resolve: what a host knows of its moves, and how a user ends one."""

import json
import os
import signal

import test_ferry_migrate
from ferrylab import processes, wait_until
from support import deadline


class MoveCase(test_ferry_migrate.Migrate):
    """Moves that stand still at a chosen step, so that something can be done to them there."""

    def ps(self, host):
        return json.loads(self.ferry("ps", "--json", host=host))

    def entry(self, host, name):
        """What the host's logbook says of the latest move of a container, straight from the file."""
        directory = host.path("/var/lib/ferry/moves")
        found = []
        for file in os.listdir(directory) if os.path.isdir(directory) else []:
            if file.endswith((".source", ".destination")):
                try:
                    with open(os.path.join(directory, file), encoding="utf-8") as f:
                        found.append(json.load(f))
                except FileNotFoundError:
                    continue
        found = [e for e in found if e["name"] == name]
        return max(found, key=lambda e: (e["ended"] == 0, e["began"], e["changed"])) if found else None

    def rsh_to(self, there):
        """A remote shell into a host of the lab that hands the environment on."""
        path = os.path.join(self.h1.tmp, f"rsh-{there.name}")
        environment = " ".join(f"{k}='{v}'" for k, v in there.session_environment().items())
        with open(path, "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\nshift\nexec {' '.join(there.command([]))} env {environment} \"$@\"\n")
        os.chmod(path, 0o755)
        self.addCleanup(lambda: os.path.exists(path) and os.unlink(path))
        return path

    def move_that_stops(self, name, at, *options, here=None, there=None, rsh=None):
        """ferry migrate on its way, with the side that `at` names standing still at its step."""
        here, there = here or self.h1, there or self.h2
        move = here.popen(["ferry", "migrate", "--rsh", rsh or self.rsh_to(there), *options, name, there.name],
                          env={"FERRY_STOP_AT": at}, stdout=self.told(name), stderr=self.told(name))
        self.addCleanup(self.end, move)
        role, host = at.split(":")[0], here if at.startswith("source") else there

        def stands_still():
            entry = self.entry(host, name)
            if move.poll() is not None:
                raise AssertionError(f"the move ended before it came to {at}: {self.said(name)[-600:]}")
            if entry and entry["role"] == role and entry["ended"] == 0 and state_of(entry["pid"]) == "T":
                return entry
            return None
        return move, wait_until(stands_still, 30, f"the {role} to come to {at}", 0.01)

    def end(self, move):
        if move.poll() is None:
            move.kill()
        move.wait(30)

    def told(self, name):
        return open(os.path.join(self.h1.tmp, f"{name}.told"), "ab", buffering=0)

    def said(self, name):
        with open(os.path.join(self.h1.tmp, f"{name}.told"), encoding="utf-8", errors="replace") as f:
            return f.read()


def state_of(pid):
    fields = processes.stat_fields(pid)
    return fields[0].decode() if fields else None


class Moves(MoveCase):
    def test_ps_on_both_hosts_while_it_runs_and_after(self):
        self.traveller("listed")
        before = self.wait_for_count("listed", 5)
        move, entry = self.move_that_stops("listed", "source:freeze")
        for host, role, other in ((self.h1, "source", "h2"), (self.h2, "destination", "h1")):
            mine = [m for m in self.ps(host) if m["container"] == "listed"]
            self.assertEqual([(m["role"], m["other_host"], m["state"]) for m in mine], [(role, other, "running")])
            self.assertGreater(mine[0]["round"], 0)
            text = self.ferry("ps", host=host)
            self.assertRegex(text, rf"{entry['move'][:12]} +listed +{role} +{other} +running")
        os.kill(entry["pid"], signal.SIGCONT)
        self.assertEqual(move.wait(60), 0, self.said("listed"))
        self.assert_arrived("listed", before)
        wait_until(lambda: self.entry(self.h2, "listed")["ended"], 10, "the destination to have finished")
        for host in (self.h1, self.h2):
            self.assertEqual([m["state"] for m in self.ps(host) if m["container"] == "listed"], ["moved"])

    def test_cancel_leaves_the_container_as_it_was(self):
        self.traveller("kept-back", "--restart", "always")
        self.wait_for_count("kept-back", 5)
        move, entry = self.move_that_stops("kept-back", "source:rounds")
        os.kill(entry["pid"], signal.SIGCONT)
        # By the beginning of its id; the move may be at any step by now, but it was not given away.
        done = self.try_ferry("cancel", entry["move"][:12])
        if done.returncode != 0:
            self.assertIn("too late", done.stdout)
            self.skipTest("the move was faster than the user")
        self.assertIn("it runs on here", done.stdout)
        self.assertEqual(move.wait(30), 1)
        self.assertEqual(self.h1.inspect("kept-back")["HostConfig"]["RestartPolicy"]["Name"], "always")
        wait_until(lambda: not self.exists("kept-back", self.h2), 20, "the twin to be removed")
        self.assert_stayed("kept-back")

    def test_cancel_on_the_destination(self):
        self.traveller("unwelcome")
        self.wait_for_count("unwelcome", 5)
        move, entry = self.move_that_stops("unwelcome", "source:rounds")
        self.assertIn("does not come here", self.ferry("cancel", "unwelcome", host=self.h2))
        self.assertFalse(self.exists("unwelcome", self.h2))
        os.kill(entry["pid"], signal.SIGCONT)
        self.assertEqual(move.wait(30), 1)
        self.assert_stayed("unwelcome")

    def test_cancel_too_late(self):
        self.traveller("gone-already")
        before = self.wait_for_count("gone-already", 5)
        move, entry = self.move_that_stops("gone-already", "source:record")
        self.refused(self.try_ferry("cancel", "gone-already"), "too late")
        os.kill(entry["pid"], signal.SIGCONT)
        self.assertEqual(move.wait(60), 0, self.said("gone-already"))
        self.assert_arrived("gone-already", before)
        self.refused(self.try_ferry("cancel", "gone-already"), "ended already")

    def test_page_of_a_move(self):
        self.remove_later(self.h2, "drawn")
        self.container("drawn", "--network", "none", image="gap", argv=["/usr/bin/gap", "64", "20", "600", "2"])
        wait_until(lambda: "ready" in self.h1.docker("logs", "drawn"), 60, "gap to fill its memory")
        page = os.path.join(self.h1.tmp, "drawn.html")
        self.migrate("drawn", "--report", page, "--downtime-limit", "200")
        with open(page, encoding="utf-8") as f:
            text = f.read()
        for part in ("drawn → h2", "send memory", "Memory, in rounds", "The pause"):
            self.assertIn(part, text)
        # It is well-formed up to what HTML leaves open by design.
        self.assertEqual(text.count("<svg"), text.count("</svg>"))
        self.assertEqual(text.count("<svg"), 3)
        self.assertNotIn("nan", text)

    def test_page_that_cannot_be_written_does_not_undo_the_move(self):
        self.traveller("undrawn")
        before = self.wait_for_count("undrawn", 5)
        self.assertIn("the report was not written", self.migrate("undrawn", "--report", "/nowhere/page.html"))
        self.assert_arrived("undrawn", before)

    def test_cancel_of_nothing(self):
        self.refused(self.try_ferry("cancel", "nobody-at-all"), "nobody-at-all")

    @deadline(120)
    def test_resolve_settles_what_nobody_has_in_hand(self):
        self.traveller("orphaned", "--restart", "always")
        before = self.wait_for_count("orphaned", 5)
        move, entry = self.move_that_stops("orphaned", "source:given")
        # The destination takes it meanwhile; the source does not hear of it.
        wait_until(lambda: self.runs_on("orphaned") == ["h1", "h2"] and self.counts_on("orphaned", self.h2), 20, "the destination to take it")
        kill_with_guard(entry)
        move.wait(30)
        text = self.ferry("ps")
        self.assertRegex(text, r"orphaned +source +h2 +doubt")
        self.assertIn("orphaned", self.ferry("resolve"))
        self.assertEqual(self.runs_on("orphaned"), ["h2"])
        self.wait_for_count("orphaned", before[-1] + 5, host=self.h2)
        self.assertFalse(self.exists("orphaned", self.h1))
        wait_until(lambda: self.h2.inspect("orphaned")["HostConfig"]["RestartPolicy"]["Name"] == "always", 20, "the restart policy to be back")
        self.assertIn("every move on this host is settled", self.ferry("resolve"))


def guards_of(entry):
    """The guard of a ferry: the same program, in a session of its own, begun right after it."""
    found = []
    with open(f"/proc/{entry['pid']}/cmdline", "rb") as f:
        command = f.read()
    mounts = processes.namespace(entry["pid"], "mnt")
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == entry["pid"]:
            continue
        pid = int(name)
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                same = f.read() == command
        except OSError:
            continue
        fields = processes.stat_fields(pid)
        if same and fields and int(fields[3]) == pid and processes.namespace(pid, "mnt") == mounts:
            found.append(processes.Process.of(pid))
    return found


def kill_with_guard(entry):
    """The guard first, or it would act."""
    for guard in guards_of(entry):
        guard.kill()
    os.kill(entry["pid"], signal.SIGKILL)
    wait_until(lambda: state_of(entry["pid"]) in (None, "Z", "X"), 10, "ferry to die")


for inherited in list(vars(test_ferry_migrate.Migrate)):
    if inherited.startswith("test_"):
        setattr(MoveCase, inherited, None)  # run where they are from
