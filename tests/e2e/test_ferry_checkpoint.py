"""ferry checkpoint and ferry start: what Docker took away."""

import json
import os
import shutil
import tempfile

from ferrylab import wait_until
from support import COUNT, LabCase, deadline

LOOP = ["/bin/sh", "-c", COUNT.format("0.1")]


class FerryCase(LabCase):
    def setUp(self):
        super().setUp()
        self.need_program("ferry")

    def ferry(self, *arguments, host=None, timeout=60):
        """A ferry command that has to succeed; what it printed."""
        done = self.try_ferry(*arguments, host=host, timeout=timeout)
        self.assertEqual(done.returncode, 0, f"ferry {' '.join(arguments)}: {done.stdout}")
        return done.stdout

    def try_ferry(self, *arguments, host=None, timeout=60):
        return (host or self.h1).run(["ferry", *arguments], check=False, timeout=timeout)

    def refused(self, done, *words):
        """Non-zero, and one sentence that names the thing."""
        self.assertNotEqual(done.returncode, 0, done.stdout)
        lines = done.stdout.strip().splitlines()
        self.assertEqual(len(lines), 1, f"not one clear sentence: {done.stdout}")
        for word in words:
            self.assertIn(word, lines[0])


class FerryCheckpoint(FerryCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.tmp)
        self.addCleanup(scratch.cleanup)
        self.store = scratch.name

    def twin(self, name, *options, host=None, argv=LOOP, image="busybox"):
        return self.container(name, *options, host=host, command="create", image=image, argv=argv)

    def stopped_counter(self, name, *options):
        """A counter that was checkpointed into the store and ended; the numbers it had printed."""
        self.counting(name, *options)
        self.wait_for_count(name, 5)
        self.ferry("checkpoint", "create", "--checkpoint-dir", self.store, name, "cp")
        self.wait_until_stopped(name)
        return self.counted(name)

    def start(self, name, host=None, store=None):
        self.ferry("start", "--checkpoint", "cp", "--checkpoint-dir", store or self.store, name, host=host)
        self.assertTrue(self.running(name, host))

    def test_docker_s_own_spelling_in_docker_s_own_place(self):
        self.counting("plain")
        self.wait_for_count("plain", 5)
        self.assertIn("cp", self.ferry("checkpoint", "create", "plain", "cp"))
        self.wait_until_stopped("plain")
        before = self.counted("plain")
        self.ferry("start", "--checkpoint", "cp", "plain")
        self.assert_seamless(self.wait_for_count("plain", before[-1] + 5))

    def test_from_any_directory_into_the_same_container(self):
        before = self.stopped_counter("same")
        self.start("same")
        self.assert_seamless(self.wait_for_count("same", before[-1] + 5))

    def test_lazily(self):
        """It runs at once, and what it kept in memory comes: a shell's variable as large as some MiB."""
        program = ("big=$(head -c 4000000 /dev/urandom | od -An -tx1 | tr -d ' \\n'); sum=$(echo $big | md5sum); i=0; "
                   "while [ \"$(echo $big | md5sum)\" = \"$sum\" ]; do echo $i; i=$((i + 1)); sleep 0.1; done")
        self.container("lazy", argv=["/bin/sh", "-c", program])
        self.wait_for_count("lazy", 3, timeout=30)
        self.ferry("checkpoint", "create", "--checkpoint-dir", self.store, "lazy", "cp")
        self.wait_until_stopped("lazy")
        before = self.counted("lazy")
        self.ferry("start", "--lazy", "--checkpoint", "cp", "--checkpoint-dir", self.store, "lazy")
        shutil.rmtree(os.path.join(self.store, "cp"))  # is held open as long as it is needed
        self.assert_seamless(self.wait_for_count("lazy", before[-1] + 5, timeout=30))
        wait_until(lambda: "ferry-lazy" not in self.h1.run(["ps", "-eo", "comm"]).stdout, 20, "ferry-lazy to end")

    def test_leave_running(self):
        self.counting("stays")
        self.wait_for_count("stays", 5)
        self.ferry("checkpoint", "create", "--leave-running", "--checkpoint-dir", self.store, "stays", "cp")
        self.assertTrue(self.running("stays"))
        self.assert_seamless(self.wait_for_count("stays", self.counted("stays")[-1] + 5))

    def test_into_another_container(self):
        self.counting("first")
        self.wait_for_count("first", 5)
        self.h1.docker("exec", "first", "sh", "-c", "echo kept >/root/file; rm /etc/group")
        self.ferry("checkpoint", "create", "--checkpoint-dir", self.store, "first", "cp")
        self.wait_until_stopped("first")
        before = self.counted("first")
        self.h1.docker("rm", "first")  # a checkpoint directory is self-contained
        self.twin("second")
        self.start("second")
        numbers = self.wait_for_count("second", before[-1] + 5)
        self.assert_seamless(numbers, start=before[-1] + 1)
        self.assertEqual(self.h1.docker("exec", "second", "sh", "-c", "cat /root/file; ls /etc/group 2>/dev/null; true"),
                         "kept")

    def test_the_same_checkpoint_again_and_again(self):
        before = self.stopped_counter("source")
        for i in range(5):
            with self.subTest(round=i):
                name = self.twin(f"round{i}")
                self.start(name)
                self.assert_seamless(self.wait_for_count(name, before[-1] + 3), start=before[-1] + 1)

    @deadline(120)
    def test_clones_side_by_side_with_names_and_addresses_of_their_own(self):
        self.container("original", image="python")
        self.assertEqual(self.ask("original")[0], 1)
        # A connection of the original that stays open: in the clones it has to be closed.
        with self.h1.connect(self.address("original"), 8000) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(idle.recv(4096))
            self.ferry("checkpoint", "create", "--leave-running", "--checkpoint-dir", self.store, "original", "cp")
            clones = [self.twin(f"clone{i}", image="python", argv=["/usr/bin/python3", "/srv/counter.py"])
                      for i in range(3)]
            for name in clones:
                self.start(name)
                established = self.h1.docker("exec", name, "sh", "-c", "grep -c ' 01 ' /proc/net/tcp; true")
                self.assertEqual(established, "0", "the clone still holds the original's connection")
            idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(idle.recv(4096), "the original lost its connection")
        self.assertEqual(len({self.address(name) for name in ["original", *clones]}), 4)
        for name in clones:
            self.assertEqual(self.ask(name)[0], 3, "a clone does not go on from the original's count")
            self.assertEqual(self.h1.docker("exec", name, "hostname"), self.h1.inspect(name)["Config"]["Hostname"])
        self.assertEqual(self.ask(clones[0])[0], 4)
        self.assertEqual(self.ask(clones[1])[0], 4)

    def address(self, name):
        return self.h1.inspect(name)["NetworkSettings"]["IPAddress"]

    def ask(self, name):
        def answered():
            try:
                with self.h1.connect(self.address(name), 8000) as s:
                    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    return s.makefile("rb").read().split(b"\r\n\r\n", 1)[1]
            except (OSError, IndexError):
                return None
        return [int(n) for n in wait_until(answered, 15, f"{name} to answer").split()]

    def test_on_another_host_after_the_directory_was_copied(self):
        before = self.stopped_counter("here")
        store = os.path.join(self.h2.tmp, os.path.basename(self.store))
        self.addCleanup(shutil.rmtree, store)
        shutil.copytree(self.store, store)
        shutil.rmtree(os.path.join(self.store, "cp"))  # nothing of it may be needed any more
        self.twin("there", host=self.h2)
        self.start("there", host=self.h2, store=store)
        numbers = self.wait_for_count("there", before[-1] + 5, host=self.h2)
        self.assert_seamless(numbers, start=before[-1] + 1)

    def test_ls_inspect_rm(self):
        self.stopped_counter("kept")
        place = ("--checkpoint-dir", self.store)
        self.assertIn("cp", self.ferry("checkpoint", "ls", *place, "kept").split())
        told = json.loads(self.ferry("checkpoint", "inspect", *place, "kept", "cp"))
        self.assertIn("busybox", json.dumps(told))
        self.ferry("checkpoint", "rm", *place, "kept", "cp")
        self.assertNotIn("cp", self.ferry("checkpoint", "ls", *place, "kept").split())
        self.assertEqual(os.listdir(self.store), [])

    def test_refusals(self):
        self.counting("busy")
        self.wait_for_count("busy", 1)
        place = ("--checkpoint-dir", self.store)
        self.twin("idle")
        self.refused(self.try_ferry("checkpoint", "create", *place, "no-such", "cp"), "no-such")
        self.refused(self.try_ferry("checkpoint", "create", *place, "idle", "cp"), "idle", "not running")
        self.refused(self.try_ferry("start", "--checkpoint", "none", *place, "idle"), "none")
        self.refused(self.try_ferry("checkpoint", "rm", *place, "busy", "none"), "none")
        self.ferry("checkpoint", "create", "--leave-running", *place, "busy", "cp")
        self.refused(self.try_ferry("checkpoint", "create", "--leave-running", *place, "busy", "cp"), "cp", "exists")
        self.refused(self.try_ferry("start", "--checkpoint", "cp", *place, "busy"), "busy", "running")
        self.assert_seamless(self.wait_for_count("busy", self.counted("busy")[-1] + 3))

    def test_damaged_checkpoint_is_refused_and_leaves_the_container_stopped(self):
        self.stopped_counter("hurt")
        directory = os.path.join(self.store, "cp")
        victim = next(os.path.join(base, n) for base, _, names in os.walk(directory)
                      for n in sorted(names) if n.startswith("mm-"))
        os.truncate(victim, 9)
        self.refused(self.try_ferry("start", "--checkpoint", "cp", "--checkpoint-dir", self.store, "hurt"),
                     os.path.basename(victim))
        self.assertFalse(self.running("hurt"))

    def test_no_docker(self):
        done = self.client.run(["ferry", "checkpoint", "ls", "anything"], check=False)
        self.refused(done, "Docker")
