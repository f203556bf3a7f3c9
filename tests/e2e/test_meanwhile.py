"""What a user does to a container while it moves: one defined outcome for each, as docs/migration.md has it."""

import os
import signal

from ferrylab import wait_until
from support import deadline
from test_moves import MoveCase, kill_with_guard

# What is done, what the move says of it, and what is left on the source: a state of Docker's, or nothing.
ON_THE_SOURCE = (
    (["stop", "--time", "0"], r"ended while it was being moved", "exited"),
    (["kill"], r"ended while it was being moved", "exited"),
    (["rm", "--force"], r"was removed while it was being moved", None),
    (["pause"], r"was paused while it was being moved", "paused"),
    (["restart", "--time", "0"], r"was started anew|not running", "running"),
)
BEFORE_THE_FREEZE = (
    (["update", "--cpu-shares", "512"], r"settings .* were changed", "running"),
    (["rename"], r"was renamed to", "running"),
    (["exec", "--detach"], r"--drop-exec", "running"),
)


class Meanwhile(MoveCase):
    def act(self, host, name, action):
        after = {"rename": [name + "-renamed"], "exec": ["sleep", "1000"]}.get(action[0], [])
        host.docker(*action, name, *after)

    def state(self, name):
        for known in (name, name + "-renamed"):
            if self.exists(known, self.h1):
                return self.h1.inspect(known)["State"]["Status"]
        return None

    def case(self, number, at, action, host):
        name = f"busy{number}"
        for known in (name, name + "-renamed"):
            self.remove_later(self.h1, known)
        self.traveller(name, "--restart", "unless-stopped")
        self.wait_for_count(name, 3)
        move, entry = self.move_that_stops(name, at)
        self.act(host, name, action)
        os.kill(entry["pid"], signal.SIGCONT)
        self.assertEqual(move.wait(60), 1, self.said(name)[-600:])
        wait_until(lambda: not self.exists(name, self.h2), 20, "the twin to be removed")
        return name, self.said(name).splitlines()[-1]

    def check(self, number, at, action, said, left):
        with self.subTest(f"docker {action[0]} on the source at {at}"):
            name, last = self.case(number, at, action, self.h1)
            self.assertRegex(last, said)
            self.assertEqual(self.state(name), left)
            if left == "paused":
                self.h1.docker("unpause", name)
            if left in ("running", "paused"):
                known = name if self.exists(name, self.h1) else name + "-renamed"
                self.assertTrue(self.counts_on(known, self.h1))
                self.assertEqual(self.h1.inspect(known)["HostConfig"]["RestartPolicy"]["Name"], "unless-stopped")

    @deadline(150)
    def test_during_the_rounds(self):
        for number, (action, said, left) in enumerate(ON_THE_SOURCE + BEFORE_THE_FREEZE):
            self.check(number, "source:rounds", action, said, left)

    @deadline(150)
    def test_right_before_the_freeze(self):
        for number, (action, said, left) in enumerate(ON_THE_SOURCE):
            if action[0] == "rm":
                continue  # ferry may notice before Docker knows, and then names only the process that is gone
            self.check(number, "source:freeze", action, said, left)

    @deadline(150)
    def test_to_the_source_while_it_waits_in_doubt(self):
        """Docker ends a frozen container like any other; who asks then learns that it lives on the other host."""
        self.traveller("doubted")
        self.wait_for_count("doubted", 3)
        move, entry = self.move_that_stops("doubted", "source:given")
        wait_until(lambda: self.counts_on("doubted", self.h2), 20, "the destination to have it")
        kill_with_guard(entry)  # as long as ferry holds its tree, docker kill waits for ferry
        move.wait(30)
        self.h1.docker("kill", "doubted")
        self.assertIn("doubted runs on", self.ferry("resolve"))
        self.assertEqual(self.runs_on("doubted"), ["h2"])
        self.assertFalse(self.exists("doubted", self.h1))


for inherited in list(vars(MoveCase)):
    if inherited.startswith("test_"):
        setattr(Meanwhile, inherited, None)
