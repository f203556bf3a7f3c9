"""Sets that come from another kernel, whose vDSO cannot work here.  They are made of sets of this one: with another
build-id, and with traps where its functions had their code."""

import ctypes
import os
import re
import shutil
import signal
import struct
import tempfile

from criu_case import CriuCase
from ferrylab import processes, wait_until
from support import deadline

PAGE = 4096
TRAP = b"\xcc"

# Reads the clocks all the time, through addresses that its loader has found; its seconds never go back.
CLOCK_READER = r"""
import time
last, i = time.monotonic(), 0
while True:
    until = last + 0.02
    while True:
        now = time.monotonic()
        assert now >= last, (now, last)
        last = now
        if now >= until:
            break
        assert abs(time.time() - time.clock_gettime_ns(time.CLOCK_REALTIME) / 1e9) < 60
    print(i, flush=True)
    i += 1
"""


def place_of_vdso(pid="self"):
    with open(f"/proc/{pid}/maps", encoding="ascii") as f:
        for line in f:
            if line.endswith("[vdso]\n"):
                return tuple(int(part, 16) for part in re.match(r"(\w+)-(\w+)", line).groups())
    return None


def own_vdso():
    start, end = place_of_vdso()
    return ctypes.string_at(start, end - start)


def build_id(vdso):
    at = vdso.index(b"GNU\0", vdso.index(struct.pack("<III", 4, 20, 3))) + 4  # name size, id size, NT_GNU_BUILD_ID
    return vdso[at:at + 20]


def functions(vdso):
    """(offset, size) of what it offers, by its section of dynamic symbols, elf(5)."""
    sections, size, count = struct.unpack_from("<Q", vdso, 0x28)[0], *struct.unpack_from("<HH", vdso, 0x3a)
    for i in range(count):
        _, kind, _, _, offset, length = struct.unpack_from("<IIQQQQ", vdso, sections + i * size)
        if kind == 11:  # SHT_DYNSYM
            for at in range(offset, offset + length, 24):
                _, info, _, _, value, extent = struct.unpack_from("<IBBHQQ", vdso, at)
                if info & 15 == 2 and extent:  # STT_FUNC
                    yield value, extent


class OtherKernel(CriuCase):
    def clock_reader(self):
        pid = self.start(["/usr/bin/python3", "-c", CLOCK_READER])
        self.wait_for_lines(3)
        return pid

    def as_of_another_kernel(self, number):
        """Changes the set in self.images; how many vDSOs it had."""
        vdso = own_vdso()
        mine, foreign = build_id(vdso), bytes([number]) * 20
        changed = 0
        for name in sorted(os.listdir(self.images)):
            path = os.path.join(self.images, name)
            if not name.startswith(("pages-", "mm-")):
                continue
            with open(path, "rb") as f:
                content = bytearray(f.read())
            if name.startswith("mm-"):
                self.assertEqual(content.count(mine), 1, f"{name} does not tell which build it is")
            at = -1
            while (at := content.find(mine, at + 1)) >= 0:
                content[at:at + 20] = foreign
                start = at // PAGE * PAGE
                if name.startswith("pages-"):
                    self.assertEqual(content[start:start + 4], b"\x7fELF")
                    for offset, size in functions(vdso):
                        content[start + offset:start + offset + size] = TRAP * size
                    changed += 1
            with open(path, "wb") as f:
                f.write(content)
        return changed

    def goes_on(self, pid):
        before = self.counted()
        self.restore()
        self.assert_seamless(self.wait_for_lines(len(before) + 10))
        self.assertTrue(os.path.exists(f"/proc/{pid}"))

    def end(self, pid):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10, "the program to end")

    def dump_restored(self, pid):
        self.dump(pid)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10, "the program to end")

    @deadline(120)
    def test_clocks_go_on_there_and_on_a_third_one(self):
        pid = self.clock_reader()
        at_first = place_of_vdso(pid)
        self.dump(pid)
        self.reaped(pid)
        self.assertEqual(self.as_of_another_kernel(1), 1)
        self.goes_on(pid)
        second = place_of_vdso(pid)
        self.assertNotEqual(second, at_first)
        # The same once more: what leads to this kernel's now leads on to the next one's.
        self.dump_restored(pid)
        self.assertEqual(self.as_of_another_kernel(2), 1)
        self.goes_on(pid)
        third = place_of_vdso(pid)
        self.assertNotIn(third, (at_first, second))
        # And on a kernel of the same build nothing moves.
        self.dump_restored(pid)
        self.goes_on(pid)
        self.assertEqual(place_of_vdso(pid), third)
        self.end(pid)

    def test_a_set_that_does_not_tell_the_build(self):
        """As CRIU writes it: the pages tell."""
        pid = self.clock_reader()
        self.dump(pid)
        self.reaped(pid)
        self.as_of_another_kernel(3)
        (name,) = [n for n in os.listdir(self.images) if n.startswith("mm-")]
        path = os.path.join(self.images, name)
        with open(path, "rb") as f:
            content = f.read()
        # The field at the end of the message: a tag of three bytes, the length, the id; the message has its size before it.
        at = content.index(bytes([3]) * 20) - 4
        head = content[:8]
        size = struct.unpack_from("<I", content, 8)[0]
        with open(path, "wb") as f:
            f.write(head + struct.pack("<I", size - 24) + content[12:at] + content[at + 24:])
        self.assertNotIn("vdso_build", self.h1.run(["ferry", "image", "show", self.images]).stdout)
        self.goes_on(pid)
        self.end(pid)

    def test_threads_do_not_stay_inside(self):
        """They are led out of it before they are saved, wherever they stood."""
        pid = self.clock_reader()
        start, end = place_of_vdso(pid)
        for _ in range(20):
            self.dump(pid, "--leave-running")
            shown = self.h1.run(["ferry", "image", "show", self.images]).stdout
            at = [int(n, 0) for n in re.findall(r'"ip": "?(0x[0-9a-f]+|\d+)', shown)]
            self.assertTrue(at, "no instruction pointer is shown")
            self.assertFalse([hex(n) for n in at if start <= n < end], "a thread was saved inside the vDSO")
        self.wait_for_lines(len(self.counted()) + 3)

    @deadline(120)
    def test_a_thread_that_cannot_be_led_out_is_refused_and_goes_on_here(self):
        """One that ignores SIGTRAP would notice single steps."""
        quiet = CLOCK_READER.replace("print(i, flush=True)", "i < 3 and print(i, flush=True)")  # its log stays as it was
        pid = self.start(["/usr/bin/python3", "-c", "import signal\nsignal.signal(signal.SIGTRAP, signal.SIG_IGN)\n" + quiet])
        self.wait_for_lines(3)
        start, end = place_of_vdso(pid)
        for _ in range(200):
            self.dump(pid, "--leave-running")
            shown = self.h1.run(["ferry", "image", "show", self.images]).stdout
            if any(start <= int(n, 0) < end for n in re.findall(r'"ip": "?(0x[0-9a-f]+|\d+)', shown)):
                break
        else:
            self.fail("in 200 dumps the program was never inside the vDSO")
        os.kill(pid, signal.SIGKILL)
        self.reaped(pid)
        with tempfile.TemporaryDirectory(dir=self.scratch) as own:
            for name in os.listdir(self.images):
                shutil.copy(os.path.join(self.images, name), own)
            self.as_of_another_kernel(4)
            self.refused(self.restore(check=False), f"task {pid}", "vDSO", "checkpoint it again")
            self.assertFalse(os.path.exists(f"/proc/{pid}"), "a restore that was refused has left a process")
            self.images = own
            self.restore()
            used = processes.stat_fields(pid)[11]
            wait_until(lambda: processes.stat_fields(pid)[11] != used, 10, "the program to work")
            self.end(pid)
