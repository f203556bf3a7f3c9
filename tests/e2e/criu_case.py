"""A plain process tree that counts, and the criu command on it."""

import os
import signal
import tempfile

from ferrylab import processes, wait_until
from support import LabCase

COUNT_TO_FILE = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.05; done"


class CriuCase(LabCase):
    """Processes of a test and the criu command on them."""

    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory(dir=self.h1.directory)
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name
        self.images = os.path.join(self.scratch, "images")
        os.mkdir(self.images)
        self.log = os.path.join(self.scratch, "log")

    def start(self, argv=("busybox", "sh", "-c", COUNT_TO_FILE), new_session=True):
        """A process tree, usually in a session of its own, its output in a file; its pid."""
        with open(self.log, "wb") as log:
            child = self.h1.popen(list(argv), stdout=log, stderr=log, cwd="/", start_new_session=new_session,
                                  process_group=-1 if new_session else 0)
        self.addCleanup(child.wait)
        self.addCleanup(self.kill_tree, child.pid)
        self.lab.children.append(child)
        return child.pid

    def kill_tree(self, pid):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if processes.Process.of(pid):
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass

    def criu(self, *arguments, check=True, prefix=()):
        done = self.h1.run([*prefix, "criu", *arguments], check=False, timeout=40)
        if check:
            self.assertEqual(done.returncode, 0, f"criu {' '.join(map(str, arguments))}: {done.stdout}")
        return done

    def refused(self, done, *words):
        """One clear sentence with these words, on the line that runc looks for."""
        self.assertEqual(done.returncode, 1, done.stdout)
        sentences = [line for line in done.stdout.splitlines() if "Error" in line]
        self.assertTrue(sentences, f"no line with Error: {done.stdout}")
        for word in words:
            self.assertTrue(any(word in s for s in sentences), f"{word} is not named: {sentences}")

    def dump(self, pid, *options, **more):
        return self.criu("dump", "--tree", str(pid), "--images-dir", self.images, *options, **more)

    def restore(self, *options, **more):
        return self.criu("restore", "--images-dir", self.images, "--restore-detached", *options, **more)

    def counted(self, *_):
        with open(self.log, encoding="ascii") as f:
            return [int(n) for n in f.read().split()]

    def wait_for_lines(self, count):
        def there():
            numbers = self.counted()
            return numbers if len(numbers) >= count else None
        return wait_until(there, 10, f"{count} numbers in the log of the counter")

    def reaped(self, pid):
        """The dump kills the tree; we are its parent and have to collect it before the pid is free."""
        os.waitpid(pid, 0)

    def dumped(self):
        pid = self.start()
        self.wait_for_lines(3)
        self.dump(pid)
        self.reaped(pid)
        return pid

    def an_image(self, prefix):
        names = sorted(n for n in os.listdir(self.images) if n.startswith(prefix))
        self.assertTrue(names, f"no {prefix}* among the images")
        return os.path.join(self.images, names[0])
