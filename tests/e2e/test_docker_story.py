"""The getting-started story, word for word, on an unmodified Docker."""

import shlex

from ferrylab import wait_until
from support import LabCase

STORY_RUN = ("docker run -d --name looper --security-opt seccomp:unconfined busybox /bin/sh -c "
             "'i=0; while true; do echo $i; i=$(expr $i + 1); sleep 1; done'")


class Story(LabCase):
    def say(self, line):
        return self.h1.run(shlex.split(line)).stdout

    def test_the_count_goes_on(self):
        self.h1.image("busybox")
        self.remove_later(self.h1, "looper")
        self.say(STORY_RUN)
        self.wait_for_count("looper", 2)
        self.say("docker checkpoint create looper checkpoint1")
        before = [int(n) for n in self.say("docker logs looper").split()]
        self.wait_until_stopped("looper")
        self.start_from("looper", "checkpoint1")
        self.wait_for_count("looper", before[-1] + 2)
        after = [int(n) for n in self.say("docker logs looper").split()]
        self.assert_seamless(after)
        self.assertGreater(len(after), len(before))

    def test_the_restored_container_is_an_ordinary_one(self):
        self.counting("ordinary")
        self.wait_for_count("ordinary", 3)
        self.checkpoint("ordinary", "cp")
        self.start_from("ordinary", "cp")
        self.assertTrue(self.running("ordinary"))
        self.assertIn("/bin/sh", self.h1.docker("top", "ordinary"))
        self.assertEqual(self.h1.docker("exec", "ordinary", "hostname"), self.h1.inspect("ordinary")["Config"]["Hostname"])
        self.h1.docker("pause", "ordinary")
        self.h1.docker("unpause", "ordinary")
        self.h1.docker("kill", "ordinary")
        self.wait_until_stopped("ordinary")
        self.assertEqual(self.h1.inspect("ordinary")["State"]["ExitCode"], 137)

    def test_a_fresh_start_forgets_the_checkpoint(self):
        self.counting("again")
        self.wait_for_count("again", 5)
        self.checkpoint("again", "cp")
        last = self.counted("again")[-1]
        self.h1.docker("start", "again")
        numbers = self.wait_for_fresh_zero("again", last)
        self.assertEqual(numbers.count(0), 2)

    def wait_for_fresh_zero(self, name, last):
        def fresh():
            numbers = self.counted(name)
            return numbers if len(numbers) > last + 1 else None
        return wait_until(fresh, 10, f"{name} to print something after a plain start")

    def test_docker_lists_and_removes_the_checkpoint(self):
        self.counting("listed")
        self.wait_for_count("listed", 1)
        self.checkpoint("listed", "cp-one")
        self.assertIn("cp-one", self.h1.docker("checkpoint", "ls", "listed"))
        self.h1.docker("checkpoint", "rm", "listed", "cp-one")
        self.assertNotIn("cp-one", self.h1.docker("checkpoint", "ls", "listed"))
