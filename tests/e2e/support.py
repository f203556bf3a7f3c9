"""What the end-to-end tests share: the lab, a container that counts, Docker's own race."""

import collections
import os
import re
import unittest

import ferrylab
from ferrylab import wait_until

DEADLINE_SECONDS = 60
CLEAN_UP_SECONDS = 60

# The container of the getting-started story; others count faster.
COUNT = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep {}; done"

# The engine of ./test asan.  A restore runs under the container's limits, and its shadow memory counts.
SANITIZED = "ASAN_OPTIONS" in os.environ
SMALL_MEMORY = (1 << 30) if SANITIZED else (64 << 20)  # bytes, a limit

# Docker keeps the tar of a checkpoint in containerd's content store by its digest, and refuses a
# second, byte-identical one until the first is collected.  It happens to any engine.
DOCKERS_OWN_RACE = re.compile(r"(failed to upload checkpoint to containerd|Cannot checkpoint container).*already exists",
                              re.DOTALL)


class Counter:
    def __init__(self):
        self.count = 0


retries = Counter()


def deadline(seconds):
    def mark(function):
        function.deadline = seconds
        return function
    return mark


def deadline_of(test):
    return getattr(getattr(test, test._testMethodName, None), "deadline", DEADLINE_SECONDS)


class LabCase(unittest.TestCase):
    """A test with the lab of this run; containers and files that it makes are removed after it."""

    lab = None
    bin = None
    longMessage = True

    def setUp(self):
        self.h1, self.h2, self.client = self.lab["h1"], self.lab["h2"], self.lab.client
        self.need_program("criu")

    def need_program(self, name):
        path = os.path.join(self.bin, name)
        self.assertTrue(os.access(path, os.X_OK), f"{path} is missing: build it first")
        found = self.h1.run(["sh", "-c", f"command -v {name}"]).stdout.strip()
        self.assertEqual(found, path, f"another {name} comes first on PATH")

    def container(self, name, *arguments, host=None, command="run", image="busybox", argv=()):
        """docker run --detach (or create); removed when the test ends."""
        host = host or self.h1
        detach = ["--detach"] if command == "run" else []
        host.image(image)
        self.remove_later(host, name)
        host.docker(command, *detach, "--name", name, *arguments, image, *argv)
        return name

    def counting(self, name, *arguments, pause="0.1", **more):
        return self.container(name, *arguments, argv=["/bin/sh", "-c", COUNT.format(pause)], **more)

    def remove_later(self, host, name):
        self.addCleanup(self._remove, host, name)

    def _remove(self, host, name):
        """A container that does not let itself be removed has broken its host: the next test gets a
        fresh one, and this one has failed."""
        try:
            done = host.try_docker("rm", "--force", "--volumes", name, timeout=25)
        except ferrylab.CommandFailed as error:
            self.lab.renew(host.name)
            self.fail(f"the container cannot be removed, {host.name} was made anew: {error}")
        if done.returncode != 0 and "No such container" not in done.stdout:
            self.lab.renew(host.name)
            self.fail(f"the container cannot be removed, {host.name} was made anew: {done.stdout}")

    # ---- counting ----

    def counted(self, name, host=None):
        """The numbers in the container's log.  The last line may be only half written yet."""
        text = (host or self.h1).docker("logs", name, timeout=20)
        return [int(line) for line in text.split()]

    def wait_for_count(self, name, at_least, host=None, timeout=15):
        def reached():
            numbers = self.counted(name, host)
            return numbers if numbers and numbers[-1] >= at_least else None
        return wait_until(reached, timeout,
                          lambda: f"{name} to count to {at_least}; its log ends {self.log_end(name, host)}", 0.1)

    def log_end(self, name, host=None):
        return (host or self.h1).try_docker("logs", "--tail", "5", name, timeout=20).stdout.split()

    def assert_seamless(self, numbers, start=0):
        """No number missing, none twice."""
        if numbers == list(range(start, start + len(numbers))):
            return
        twice = [n for n, times in collections.Counter(numbers).items() if times > 1]
        missing = sorted(set(range(start, max(numbers, default=start))) - set(numbers))
        self.fail(f"the count is not seamless: missing {missing[:10]}, twice {twice[:10]}, "
                  f"begins {numbers[:3]}, ends {numbers[-5:]}")

    # ---- Docker's checkpoint commands ----

    def checkpoint(self, container, name, *options, host=None):
        host = host or self.h1
        leaves_running = "--leave-running" in options

        def created():
            nonlocal done
            done = host.try_docker("checkpoint", "create", *options, container, name)
            # The container runs on, so there may be another try.
            again = done.returncode != 0 and leaves_running and DOCKERS_OWN_RACE.search(done.stdout)
            retries.count += 1 if again else 0
            return not again
        done = None
        wait_until(created, 30, f"docker checkpoint create {container} {name} to get past Docker's own race", 0.5)
        if done.returncode != 0:
            self.fail(f"docker checkpoint create {container} {name}: {self.with_engine_log(host, done.stdout)}")
        if not leaves_running:
            self.wait_until_stopped(container, host)

    def wait_until_stopped(self, container, host=None):
        """Docker hears of the end of a container by an event, which may come after the answer to the
        command that ended it; a start that comes sooner finds it still running and does nothing."""
        wait_until(lambda: not self.running(container, host), 10, f"Docker to notice that {container} has ended")

    def start_from(self, container, checkpoint, host=None):
        """docker start --checkpoint, again if and only if it fails of Docker's own race."""
        host = host or self.h1

        def started():
            done = host.try_docker("start", "--checkpoint", checkpoint, container)
            if done.returncode == 0:
                return True
            if DOCKERS_OWN_RACE.search(done.stdout):
                retries.count += 1
                return False
            raise AssertionError(f"docker start --checkpoint {checkpoint} {container}: "
                                 f"{self.with_engine_log(host, done.stdout)}")
        wait_until(started, 30, f"docker start --checkpoint {checkpoint} {container} to get past Docker's own race", 0.5)

    def with_engine_log(self, host, output):
        """Docker's message, and the end of the engine's log that it points to as far as it still exists."""
        told = [output.strip()]
        for path in re.findall(r"/\S+\.log", output):
            try:
                with open(host.path(path), encoding="utf-8", errors="replace") as f:
                    told += [f"the end of {path}:", *f.read().splitlines()[-15:]]
            except OSError:
                told.append(f"({path} is gone)")
        return "\n".join(told)

    def checkpoint_directory(self, container, name, host=None):
        host = host or self.h1
        return os.path.join(host.data_root, "containers", host.inspect(container)["Id"], "checkpoints", name)

    def running(self, container, host=None):
        return (host or self.h1).inspect(container)["State"]["Running"]
