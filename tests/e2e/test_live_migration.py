"""A container moves while it works: its memory crosses in rounds, and only the rest in the pause."""

import json
import os
import time

import test_ferry_migrate
from ferrylab import wait_until
from sessions import Session, expect

MIB = 1 << 20

# Changes its own address space all the time and knows what has to be in it: mappings come, grow, shrink, move,
# are given back and unmapped; the heap breathes.
MAPPER = r"""
import hashlib, mmap, os, random, sys, time
random.seed(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
held, count, said = {}, 0, 0
lists = []
def fill(m, seed):
    block = hashlib.sha256(str(seed).encode()).digest() * 128
    for at in range(0, len(m), 4096):
        m[at:at + 4096] = block
def right(m, seed):
    block = hashlib.sha256(str(seed).encode()).digest() * 128
    return all(m[at:at + 4096] == block for at in range(0, len(m), 4096))
while True:
    count += 1
    what = random.randrange(6)
    if what < 2 or len(held) < 4:
        size = random.randrange(1, 200) * 4096
        m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        fill(m, count)
        held[count] = m
    elif what == 2:
        seed = random.choice(list(held))
        held.pop(seed).close()
    elif what == 3:
        seed = random.choice(list(held))
        m = held[seed]
        m.madvise(mmap.MADV_DONTNEED)
        if any(m[at] for at in range(0, len(m), 4096)):
            print("wrong: given back and not zero", flush=True)
        fill(m, seed)
    elif what == 4:
        lists.append([random.random() for _ in range(random.randrange(10000))])
        if len(lists) > 20:
            del lists[random.randrange(20)]
    else:
        seed = random.choice(list(held))
        if not right(held[seed], seed):
            print("wrong: not what was written", flush=True)
    if len(held) > 60:
        held.pop(random.choice(list(held))).close()
    if time.time() - said > 0.2:
        said = time.time()
        for seed, m in held.items():
            if not right(m, seed):
                print("wrong: not what was written", flush=True)
        print(count, flush=True)
"""

# A family: grown-up children with memory of their own, and others that are born and die all the time.
FAMILY = r"""
import os, sys, time
sys.argv = ["mapper", "7"]
MAPPER = open("/mapper.py").read()
for seed in ("3", "4"):
    if os.fork() == 0:
        sys.argv = ["mapper", seed]
        exec(MAPPER)
end = 0
while True:
    pid = os.fork()
    if pid == 0:
        time.sleep(0.02)
        os._exit(7)
    got, status = os.waitpid(pid, 0)
    if got != pid or os.waitstatus_to_exitcode(status) != 7:
        print("wrong: a child ended otherwise", flush=True)
    end += 1
    if end % 10 == 0:
        print("children", end, flush=True)
"""


# Reserves address space and takes it into use piece by piece, as a Java virtual machine does: each piece is a new
# mapping with other flags in the place of the reservation.
SETTLER = r"""
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
PRIVATE, FIXED, ANONYMOUS, NORESERVE, SIZE = 2, 0x10, 0x20, 0x4000, 1 << 30
base = libc.mmap(None, SIZE, 0, PRIVATE | ANONYMOUS | NORESERVE, -1, 0)
if libc.mmap(None, 1 << 43, 0, PRIVATE | ANONYMOUS, -1, 0) in (None, 2**64 - 1):
    sys.exit("no reservation")  # of more than there is memory
used = 0
def right(number):
    return ctypes.string_at(base + number * 16384, 16384) == bytes([number % 255 + 1]) * 8192 + bytes(8192)
while True:
    if used < SIZE // 16384:
        at = base + used * 16384
        if libc.mmap(at, 16384, 3, PRIVATE | FIXED | ANONYMOUS, -1, 0) != at:
            sys.exit("no mapping")
        ctypes.memset(at, 0, 16384)
        ctypes.memset(at, used % 255 + 1, 8192)
        used += 1
    if not right(used * 7919 % used) or not right(used - 1):
        print("wrong: not what was written", flush=True)
    if used % 200 == 0:
        if not all(right(n) for n in range(used)):
            print("wrong: not what was written", flush=True)
        print(used, flush=True)
    time.sleep(0.0003)
"""

# What System V IPC holds differs in every round: a word of shared memory, a semaphore, a queue of five messages, and a
# segment, a set of semaphores and a queue that are removed and made again.
# One process after the other takes a semaphore, holds it nearly all of its life, and gives it back by its end alone.
SEM_UNDO = r"""
import ctypes, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
UNDO, GETVAL, SETVAL, CREATE = 0x1000, 12, 16, 0o1000
class Operation(ctypes.Structure):
    _fields_ = [("number", ctypes.c_ushort), ("by", ctypes.c_short), ("flags", ctypes.c_short)]
semaphores = libc.semget(0x5e, 2, CREATE | 0o600)
libc.semctl(semaphores, 1, SETVAL, 9)
while True:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        done = libc.semop(semaphores, ctypes.byref(Operation(1, -4, UNDO)), 1)
        os.write(tell, b"y" if done == 0 else b"n")
        while True:
            signal.pause()
    if os.read(ready, 1) != b"y" or libc.semctl(semaphores, 1, GETVAL) != 5:
        print("wrong: it could not be taken", flush=True)
    time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    value = libc.semctl(semaphores, 1, GETVAL)
    print("right" if value == 9 else "wrong: %d is left" % value, flush=True)
    os.close(ready)
    os.close(tell)
"""
# A process in mount, cgroup, uts and ipc namespaces of its own.  What it mounts stands on a tmpfs that is everybody's; in all of
# them something changes in every round, so every look of a move finds something else.
NESTED = r"""
import ctypes, itertools, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, PRIVATE, RECURSIVE = 0x20000, 0x2000000, 0x4000000, 0x8000000, 1 << 18, 1 << 14
libc.shmat.restype = ctypes.c_void_p
def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        print("wrong:", name, arguments, "failed with", ctypes.get_errno(), flush=True)
def put(path, number):
    with open(path + ".new", "w") as f:
        f.write(str(number))
    os.rename(path + ".new", path)
def expect(what, found, wanted):
    if found != wanted:
        print("wrong:", what, "is", found, "instead of", wanted, flush=True)
def work(names, name):
    number_of_segment = libc.shmget(0x51, 4096, 0o1600)
    segment = (ctypes.c_char * 64).from_address(libc.shmat(number_of_segment, None, 0))
    for number in itertools.count(1):
        mark = name + str(number)
        for path in names:
            put(path, mark)
        socket.sethostname(mark)
        segment.value = mark.encode()
        time.sleep(0.02)
        for path in names:
            expect(path, open(path).read(), mark)
        expect("name", socket.gethostname(), mark)
        expect("segment", segment.value.decode(), mark)
        expect("number", libc.shmget(0x51, 0, 0), number_of_segment)
        if number % 5 == 0:
            print("right", flush=True)
os.mkdir("/common")
call("mount", b"none", b"/common", b"tmpfs", 0, b"size=1m")
os.mkdir("/common/place")
if os.fork() == 0:
    call("unshare", NEWNS | NEWCGROUP | NEWUTS | NEWIPC)
    call("mount", None, b"/", None, PRIVATE | RECURSIVE, None)
    call("mount", b"none", b"/common/place", b"tmpfs", 0, b"size=1m")
    work(["/common/place/inner", "/common/child"], "child")
work(["/common/parent"], "parent")
"""
SYSTEM_V = r"""
import ctypes, itertools, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]
CREATE, EXCLUSIVE, REMOVE, GETVAL, SETVAL, DEPTH = 0o1000, 0o2000, 0, 12, 16, 5
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1:
        print("wrong:", name, arguments, "failed with", ctypes.get_errno(), flush=True)
    return result
class Message(ctypes.Structure):
    _fields_ = [("type", ctypes.c_long), ("number", ctypes.c_long)]
class Objects:
    def __init__(self, key, number):
        self.segment = call("shmget", key, 8192, CREATE | EXCLUSIVE | 0o600)
        self.at = libc.shmat(self.segment, None, 0)
        self.word = ctypes.c_long.from_address(self.at + 4096)
        self.semaphores = call("semget", key, 3, CREATE | EXCLUSIVE | 0o600)
        self.queue = call("msgget", key, CREATE | EXCLUSIVE | 0o600)
        for n in range(number - DEPTH + 1, number + 1):
            self.send(n)
        self.put(number)
    def put(self, number):
        self.word.value = number
        call("semctl", self.semaphores, 1, SETVAL, number % 1000)
    def send(self, number):
        call("msgsnd", self.queue, ctypes.byref(Message(number % 3 + 1, number)), 8, 0)
    def step(self, number):
        found = self.word.value, call("semctl", self.semaphores, 1, GETVAL)
        if found != (number - 1, (number - 1) % 1000):
            print("wrong: in round", number, "they hold", found, flush=True)
        message = Message()
        call("msgrcv", self.queue, ctypes.byref(message), 8, 0, 0)
        if (message.type, message.number) != ((number - DEPTH) % 3 + 1, number - DEPTH):
            print("wrong: in round", number, "message", message.number, flush=True)
        self.send(number)
        self.put(number)
    def remove(self):
        libc.shmdt(self.at)
        call("shmctl", self.segment, REMOVE, None)
        call("semctl", self.semaphores, 0, REMOVE)
        call("msgctl", self.queue, REMOVE, None)
stay, passing = Objects(0x51, 1000), Objects(0x52, 1000)
for number in itertools.count(1001):
    stay.step(number)
    passing.step(number)
    if number % 40 == 0:
        passing.remove()
        passing = Objects(0x52, number)
        print(number, flush=True)
    time.sleep(0.002)
"""

# Shared memory of every kind that is no file of a mounted file system, written in every way: an anonymous mapping by
# parent and child, memory files by stores and by write(2), one of which changes its size all the time.  Some content
# is zeros again.  One child after the other maps a file, writes and is gone.
SEGMENTS = r"""
import hashlib, mmap, os, random, time
PAGE, PAGES = 4096, 2048
BLOCKS = [bytes(PAGE)] + [hashlib.sha256(str(n).encode()).digest() * 128 for n in range(1, 60)]
def file(name, pages=PAGES):
    fd = os.memfd_create(name)
    os.ftruncate(fd, pages * PAGE)
    return fd
anonymous, both = mmap.mmap(-1, PAGES * PAGE), mmap.mmap(file("both"), PAGES * PAGE)
written, breathing, passing = file("written"), file("breathing"), file("passing")
talk = mmap.mmap(-1, PAGE)
class Maps:
    def __init__(self, m, first, step):
        self.m, self.known = m, {n: 0 for n in range(first, PAGES, step)}
    def put(self, n, seed):
        self.m[n * PAGE:(n + 1) * PAGE] = BLOCKS[seed]
    def get(self, n):
        return self.m[n * PAGE:(n + 1) * PAGE]
class Writes(Maps):
    def put(self, n, seed):
        os.pwrite(self.m, BLOCKS[seed], n * PAGE)
    def get(self, n):
        return os.pread(self.m, PAGE, n * PAGE)
class Breathes(Writes):
    def put(self, n, seed):
        if seed % 7 == 0:
            os.ftruncate(self.m, n * PAGE + 1)
            os.ftruncate(self.m, PAGES * PAGE)
            if self.known[n]:  # its first byte is left
                os.pwrite(self.m, bytes(1), n * PAGE)
            for later in range(n, PAGES):
                self.known[later] = 0
        super().put(n, seed)
class Passes(Writes):
    def put(self, n, seed):
        pid = os.fork()
        if pid == 0:
            with mmap.mmap(self.m, PAGES * PAGE) as m:
                m[n * PAGE:(n + 1) * PAGE] = BLOCKS[seed]
            os._exit(0)
        os.waitpid(pid, 0)
def right(kept):
    for kind in kept:
        for n, seed in kind.known.items():
            if kind.get(n) != BLOCKS[seed]:
                print("wrong:", type(kind).__name__, n, flush=True)
child = os.fork() == 0
random.seed(child)
if child:
    kept = [Maps(anonymous, 1, 2), Maps(both, 1, 2)]
else:
    kept = [Maps(anonymous, 0, 2), Maps(both, 0, 2), Writes(written, 0, 1), Breathes(breathing, 0, 1), Passes(passing, 0, 1)]
said = time.time()
while True:
    kind = random.choice(kept)
    n, seed = random.choice(list(kind.known)), random.randrange(len(BLOCKS))
    kind.put(n, seed)
    kind.known[n] = seed
    if child:
        talk[8:16] = talk[0:8]  # the answer
    elif time.time() - said > 0.2 and talk[0:8] == talk[8:16]:
        said = time.time()
        talk[0:8] = (int.from_bytes(talk[0:8], "little") + 1).to_bytes(8, "little")
        right(kept)
        print(int.from_bytes(talk[0:8], "little"), flush=True)
    if random.randrange(300) == 0:
        right(kept)
    time.sleep(0.0005)
"""

# Two tmpfs that change all the time: files come, grow, are mapped, renamed, linked and removed.
SHARER = r"""
import hashlib, mmap, os
for d in ("/dev/shm", "/own"):
    open(d + "/counter", "wb").write(bytes(8))
maps = [mmap.mmap(os.open(d + "/counter", os.O_RDWR), 8) for d in ("/dev/shm", "/own")]
n = 0
while True:
    n += 1
    for d, m in zip(("/dev/shm", "/own"), maps):
        if int.from_bytes(m[:], "little") != n - 1 or open(d + "/counter", "rb").read() != m[:]:
            print("wrong: the counter", flush=True)
        m[:] = n.to_bytes(8, "little")
        os.makedirs(f"{d}/d{n % 7}", exist_ok=True)
        name = f"{d}/d{n % 7}/f{n % 50}"
        if n > 350:
            old, wanted = open(name, "rb").read(), hashlib.sha256(str(n - 350).encode()).digest() * (n % 50)
            if old != wanted or os.stat(name).st_nlink != 2 or os.readlink(name + "-link") != str(n - 350):
                print("wrong: a file", flush=True)
        for leftover in (name, name + "-other", name + "-link"):
            if os.path.lexists(leftover):
                os.unlink(leftover)
        with open(name + "-new", "wb") as f:
            f.write(hashlib.sha256(str(n).encode()).digest() * (n % 50))
        os.rename(name + "-new", name)
        os.link(name, name + "-other")
        os.symlink(str(n), name + "-link")
    if n % 100 == 0:
        print(n, flush=True)
"""

# POSIX message queues between processes: one that is full, so that its sender waits, and one that is empty, so that its
# receiver does.  Messages of one priority come in the order in which they were sent, none is lost, none comes twice.
QUEUES = r"""
import ctypes, os, time
class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("flags", "messages", "size", "now", "a", "b", "c", "d")]
c = ctypes.CDLL(None, use_errno=True)
def queue(name):
    q = c.mq_open(name, os.O_RDWR | os.O_CREAT, 0o600, ctypes.byref(Attributes(0, 10, 8192, 0)))
    return q if q >= 0 else done("mq_open")
def done(what):
    print("wrong:", what, os.strerror(ctypes.get_errno()), flush=True)
    os._exit(1)
def send(q, n):
    text = str(n).encode().ljust(n % 8000 + 20)
    if c.mq_send(q, text, len(text), n % 3) != 0:
        done("mq_send")
room = ctypes.create_string_buffer(8192)
priority = ctypes.c_uint()
due = [0, 1, 2]
def receive(q):
    size = c.mq_receive(q, room, 8192, ctypes.byref(priority))
    if size < 0:
        done("mq_receive")
    n = int(room.raw[:size])
    if priority.value != n % 3 or n != due[n % 3] or size != n % 8000 + 20:
        done(f"{n} of {size} bytes came with priority {priority.value}, {due} were due")
    due[n % 3] += 3
    return n
full, empty = queue(b"/full"), queue(b"/empty")
if os.fork() == 0:
    n = 0
    while True:
        send(full, n)
        n += 1
if os.fork() == 0:
    while True:
        # What waits comes in the order of priorities; so is it sent on, each with its number.
        send(empty, receive(full))
        time.sleep(0.005)
c.mq_unlink(b"/empty")
while True:
    n = receive(empty)
    if n % 20 == 0:
        print(n, flush=True)
"""


class Asker(Session):
    """A client that counts in redis."""

    def __init__(self, connection, key):
        connection.settimeout(20)
        self.connection, self.key = connection, key.encode()
        super().__init__(key, self.increase, pause=0.002)

    def increase(self, number):
        self.connection.sendall(b"INCR %s\r\n" % self.key)
        expect("the count", self.connection.recv(100), b":%d\r\n" % number)

    def stop(self):
        super().stop()
        self.connection.close()


# Sends itself numbers and takes them out of a ring that it shares with the kernel (packet(7), PACKET_RX_RING), where a
# hundred always wait: each has to be in the frame that is next.
RINGER = r"""
import mmap, select, socket, struct, time
FRAMES, SIZE, TYPE, SOL_PACKET = 256, 256, 0x9a31, 263
ring = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
ring.setsockopt(SOL_PACKET, 10, 1)  # PACKET_VERSION: TPACKET_V2
ring.setsockopt(SOL_PACKET, 5, struct.pack("IIII", 4096, FRAMES * SIZE // 4096, SIZE, FRAMES))
memory = mmap.mmap(ring.fileno(), FRAMES * SIZE)
ring.bind(("lo", TYPE))
sender = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
sent = got = said = 0
while True:
    while sent < got + 100:
        sender.sendto(struct.pack("I", sent), ("lo", TYPE))
        sent += 1
    at = got % FRAMES * SIZE
    if not struct.unpack_from("I", memory, at)[0] & 1:
        select.select([ring], [], [], 5)
        if not struct.unpack_from("I", memory, at)[0] & 1:
            print("wrong: nothing in the frame that is next", flush=True)
            break
    net, = struct.unpack_from("H", memory, at + 14)
    number, = struct.unpack_from("I", memory, at + net)
    if number != got:
        print("wrong:", number, "in the place of", got, flush=True)
        break
    struct.pack_into("I", memory, at, 0)
    got += 1
    if time.time() - said > 0.2:
        said = time.time()
        print(got, flush=True)
    if got % 37 == 0:
        time.sleep(0.001)
"""


# Writes numbers through an io_uring (io_uring_setup(2)) into a pipe and reads them from it again, with positions of its
# own for both ends of the ring, as liburing has them.
URINGER = r"""
import ctypes, mmap, os, struct, time
SETUP, ENTER, ENTRIES, GETEVENTS, READ, WRITE = 425, 426, 8, 1, 22, 23
call = ctypes.CDLL(None, use_errno=True).syscall
parameters = (ctypes.c_uint32 * 30)()
fd = call(SETUP, ENTRIES, parameters)
if fd < 0:
    print("wrong: io_uring_setup:", os.strerror(ctypes.get_errno()), flush=True)
    raise SystemExit(1)
sq_head, sq_tail, _, _, _, _, array = parameters[10:17]
cq_head, cq_tail, _, _, _, cqes = parameters[20:26]
rings = mmap.mmap(fd, 4096)
sqes = mmap.mmap(fd, ENTRIES * 64, offset=0x10000000)
buffer = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
into, out_of = os.pipe()[::-1]
tail = head = said = number = 0

def ask(operation, file, mark):
    global tail, head
    slot = tail % ENTRIES
    struct.pack_into("BBHiQQII", sqes, slot * 64, operation, 0, 0, file, 2**64 - 1, address, 8, 0)
    struct.pack_into("QQQQ", sqes, slot * 64 + 32, mark, 0, 0, 0)
    struct.pack_into("I", rings, array + slot * 4, slot)
    tail += 1
    struct.pack_into("I", rings, sq_tail, tail)
    taken = call(ENTER, fd, 1, 1, GETEVENTS, None, 0)
    there, = struct.unpack_from("I", rings, cq_tail)
    done, result = struct.unpack_from("Qi", rings, cqes + head % (2 * ENTRIES) * 16)
    head += 1
    struct.pack_into("I", rings, cq_head, head)
    return (taken, there, done, result) == (1, head, mark, 8)

while True:
    struct.pack_into("Q", buffer, 0, number)
    right = ask(WRITE, into, 2 * number)
    struct.pack_into("Q", buffer, 0, 0)
    right = right and ask(READ, out_of, 2 * number + 1) and struct.unpack_from("Q", buffer)[0] == number
    if not right:
        print("wrong: at", number, flush=True)
        break
    number += 1
    if time.time() - said > 0.2:
        said = time.time()
        print(number, flush=True)
    if number % 50 == 0:
        time.sleep(0.001)
"""


class LiveMigration(test_ferry_migrate.Migrate):
    def start_python(self, name, program, *arguments, options=()):
        self.remove_later(self.h2, name)
        self.h1.image("python")
        scratch = os.path.join(self.h1.tmp, name + ".py")
        with open(scratch, "w", encoding="ascii") as f:
            f.write(program)
        mapper = os.path.join(self.h1.tmp, name + "-mapper.py")
        with open(mapper, "w", encoding="ascii") as f:
            f.write(MAPPER)
        self.container(name, "--network", "none", *options, command="create", image="python",
                       argv=["/usr/bin/python3", "-u", "/program.py", *arguments])
        self.h1.docker("cp", scratch, f"{name}:/program.py")
        self.h1.docker("cp", mapper, f"{name}:/mapper.py")
        self.h1.docker("start", name)

    def start_gap(self, name, mebibytes, dirty, threads=0, options=()):
        self.remove_later(self.h2, name)
        self.container(name, "--network", "none", *options, image="gap",
                       argv=["/usr/bin/gap", str(mebibytes), str(dirty), "600", str(threads)])
        wait_until(lambda: "ready" in self.h1.docker("logs", name), 60, "gap to fill its memory")

    def gap_says(self, name, host):
        before = host.docker("logs", name).count("max_gap_ms")
        host.docker("kill", "--signal", "USR1", name)
        wait_until(lambda: host.docker("logs", name).count("max_gap_ms") > before, 60, "gap to verify its memory")
        return json.loads(host.docker("logs", name).splitlines()[-1])

    def assert_writes_on(self, name, host, lines=5):
        before = len(host.docker("logs", name).splitlines())
        wait_until(lambda: len(host.docker("logs", name).splitlines()) >= before + lines, 30, f"{name} to work on")
        self.assertNotIn("wrong", host.docker("logs", name))

    def assert_writes_on_everywhere(self, name):
        """There, back without rounds, and there again with its memory behind it."""
        self.assert_writes_on(name, self.h1)
        self.migrate(name)
        self.assert_writes_on(name, self.h2)
        self.ferry("migrate", "--no-precopy", name, "h1", host=self.h2, timeout=90)
        self.assert_writes_on(name, self.h1)
        self.migrate(name, "--mode", "post-copy")
        self.assert_writes_on(name, self.h2)

    ADDRESS = "10.77.0.161"

    def reached(self):
        try:
            return self.client.connect(self.ADDRESS, 6379, timeout=3)
        except OSError:
            return None

    def test_clients_stay_connected(self):
        for host in (self.h1, self.h2):
            host.macvlan()
        self.remove_later(self.h2, "keeper")
        self.container("keeper", "--network", "lan", "--ip", self.ADDRESS, image="redis")
        clients = [Asker(wait_until(self.reached, 15, "redis to listen", 0.05), f"counter{i}") for i in range(3)]
        for client in clients:
            client.start()
        report = json.loads(self.migrate("keeper", "--json"))
        for client in clients:
            before = client.count
            wait_until(lambda client=client, before=before: client.count > before + 50 or client.error, 15, "answers from the other host")
        for client in clients:
            client.stop()
            self.assertIsNone(client.error, report)
        self.assertEqual(self.runs_on("keeper"), ["h2"])
        longest = max(client.longest for client in clients)
        # Packets that came meanwhile were withheld, not lost: no client had to wait for a retransmission.
        self.assertLess(longest, report["pause_ms"] / 1000 + 0.15, "a client waited for longer than the pause")

    def test_memory_that_is_written_meanwhile(self):
        self.start_gap("writer", 128, 10, threads=3)
        report = json.loads(self.migrate("writer", "--json", "--downtime-limit", "200"))
        self.assertEqual(self.runs_on("writer"), ["h2"])
        self.assertEqual(self.gap_says("writer", self.h2)["bad_pages"], 0)
        rounds = report["rounds"]
        self.assertGreaterEqual(len(rounds), 3, report)
        self.assertGreater(rounds[0]["bytes"], 128 * MIB)
        self.assertLess(rounds[-1]["bytes"], 64 * MIB, "the pause carried what the rounds should have")
        self.assertLess(report["memory_bytes"], 64 * MIB)

    def test_there_and_back_again(self):
        self.start_gap("commuter", 32, 4)
        self.migrate("commuter")
        self.assertEqual(self.gap_says("commuter", self.h2)["bad_pages"], 0)
        self.ferry("migrate", "commuter", "h1", host=self.h2, timeout=90)
        self.assertEqual(self.runs_on("commuter"), ["h1"])
        self.assertEqual(self.gap_says("commuter", self.h1)["bad_pages"], 0)

    def test_address_space_that_changes_all_the_time(self):
        self.start_python("mapper", MAPPER)
        self.assert_writes_on("mapper", self.h1)
        self.migrate("mapper", "--switch-anyway", "--max-rounds", "6")
        self.assertEqual(self.runs_on("mapper"), ["h2"])
        self.assert_writes_on("mapper", self.h2)

    def test_ring_of_packets(self):
        self.start_python("ringer", RINGER)
        self.assert_writes_on("ringer", self.h1)
        self.migrate("ringer", "--switch-anyway", "--max-rounds", "6")
        self.assertEqual(self.runs_on("ringer"), ["h2"])
        self.assert_writes_on("ringer", self.h2)

    def test_io_uring(self):
        self.start_python("uringer", URINGER, options=("--security-opt", "seccomp=unconfined"))
        self.assert_writes_on("uringer", self.h1)
        self.migrate("uringer", "--switch-anyway", "--max-rounds", "6")
        self.assertEqual(self.runs_on("uringer"), ["h2"])
        self.assert_writes_on("uringer", self.h2)

    def test_family_in_which_children_come_and_go(self):
        self.start_python("family", FAMILY)
        self.assert_writes_on("family", self.h1, lines=20)
        self.migrate("family", "--switch-anyway", "--max-rounds", "6")
        self.assertEqual(self.runs_on("family"), ["h2"])
        self.assert_writes_on("family", self.h2, lines=20)

    def test_reserved_addresses_that_are_taken_into_use(self):
        self.start_python("settler", SETTLER)
        self.assert_writes_on("settler", self.h1)
        self.migrate("settler", "--switch-anyway", "--max-rounds", "6")
        self.assertEqual(self.runs_on("settler"), ["h2"])
        self.assert_writes_on("settler", self.h2)

    def test_tmpfs_that_change_all_the_time(self):
        self.start_python("sharer", SHARER, options=["--tmpfs", "/own"])
        self.assert_writes_on("sharer", self.h1)
        self.migrate("sharer", "--switch-anyway", "--max-rounds", "6")
        self.assertEqual(self.runs_on("sharer"), ["h2"])
        self.assert_writes_on("sharer", self.h2)
        self.ferry("migrate", "--switch-anyway", "--max-rounds", "6", "sharer", "h1", host=self.h2, timeout=90)
        self.assert_writes_on("sharer", self.h1)

    def test_message_queues(self):
        self.start_python("queues", QUEUES)
        self.assert_writes_on("queues", self.h1)
        self.migrate("queues")
        self.assertEqual(self.runs_on("queues"), ["h2"])
        self.assert_writes_on("queues", self.h2)
        self.ferry("migrate", "--mode", "post-copy", "queues", "h1", host=self.h2, timeout=90)
        self.assert_writes_on("queues", self.h1)

    def test_shared_memory_that_is_written_in_every_way(self):
        self.start_python("segments", SEGMENTS)
        self.assert_writes_on("segments", self.h1)
        self.migrate("segments", "--switch-anyway", "--max-rounds", "6")
        self.assert_writes_on("segments", self.h2)
        self.ferry("migrate", "--mode", "post-copy", "segments", "h1", host=self.h2, timeout=90)
        self.assert_writes_on("segments", self.h1)
        self.migrate("segments", "--no-precopy")
        self.assert_writes_on("segments", self.h2)

    def test_system_v_objects_that_change_all_the_time(self):
        self.start_python("objects", SYSTEM_V)
        self.assert_writes_on_everywhere("objects")

    def test_a_semaphore_is_given_back_by_who_ends_after_the_move(self):
        self.start_python("holder", SEM_UNDO)
        self.assert_writes_on_everywhere("holder")

    def child_namespaces(self, name, host):
        """Those in which the container's first child does not live with its parent."""
        parent = host.inspect(name)["State"]["Pid"]
        child = host.run(["cat", f"/proc/{parent}/task/{parent}/children"]).stdout.split()[0]
        kinds = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
        return {kind for kind in kinds if os.stat(f"/proc/{parent}/ns/{kind}").st_ino !=
                os.stat(f"/proc/{child}/ns/{kind}").st_ino}

    def test_namespaces_of_a_child(self):
        self.start_python("nested", NESTED, options=("--cap-add", "SYS_ADMIN"))
        self.assert_writes_on_everywhere("nested")
        self.assertEqual(self.child_namespaces("nested", self.h2), {"mnt", "uts", "ipc", "cgroup"})

    def test_a_container_that_mounts_meanwhile_stays(self):
        self.start_python("mounter", "import ctypes, itertools, os, time\n"
                          "libc = ctypes.CDLL(None)\n"
                          "places = [b'/here0', b'/here1']\n"
                          "for place in places:\n    os.mkdir(place)\n"
                          "for n in itertools.count():\n"
                          "    assert libc.mount(b'none', places[n % 2], b'tmpfs', 0, None) == 0\n"
                          "    assert n == 0 or libc.umount2(places[(n + 1) % 2], 0) == 0\n"
                          "    print('right', flush=True)\n"
                          "    time.sleep(0.1)\n",
                          options=("--cap-add", "SYS_ADMIN"))
        self.assert_writes_on("mounter", self.h1)
        moved = self.try_migrate("mounter")
        self.assertNotEqual(moved.returncode, 0, moved.stdout)
        self.assertRegex(moved.stdout, r"/here\d was (un)?mounted while the container was being moved")
        self.assert_writes_on("mounter", self.h1)
        self.assertEqual(self.runs_on("mounter"), ["h1"])
        self.assertFalse(self.exists("mounter", self.h2))

    def test_shared_memory_crosses_before_the_pause(self):
        self.start_python("sharing", "import mmap, os, time\n"
                          "m = mmap.mmap(-1, 96 << 20)\n"
                          "for at in range(0, len(m), 1 << 20):\n    m[at:at + (1 << 20)] = os.urandom(1 << 20)\n"
                          "import hashlib\nwanted = hashlib.sha256(m).digest()\n"
                          "while True:\n"
                          "    print('right' if hashlib.sha256(m).digest() == wanted else 'wrong', flush=True)\n"
                          "    time.sleep(0.1)\n")
        self.assert_writes_on("sharing", self.h1)
        report = json.loads(self.migrate("sharing", "--json", "--mode", "pre-copy"))
        self.assert_writes_on("sharing", self.h2)
        self.assertGreater(report["rounds"][0]["bytes"], 96 * MIB, report)
        self.assertLess(report["memory_bytes"], 32 * MIB, "the pause carried what the rounds should have")

    def test_writer_that_is_faster_than_the_connection_stays(self):
        self.start_gap("racer", 64, 400)
        given_up = self.try_migrate("racer", "--mode", "pre-copy", "--downtime-limit", "0", "--max-rounds", "3")
        self.assertNotEqual(given_up.returncode, 0, given_up.stdout)
        self.assertRegex(given_up.stdout.splitlines()[-1], r"container racer writes faster .* --switch-anyway")
        self.assertEqual(self.runs_on("racer"), ["h1"])
        self.assertFalse(self.exists("racer", self.h2), "a move that was given up left a twin behind")
        self.assertEqual(self.gap_says("racer", self.h1)["bad_pages"], 0)
        self.migrate("racer", "--downtime-limit", "0", "--max-rounds", "3", "--switch-anyway")
        self.assertEqual(self.runs_on("racer"), ["h2"])
        self.assertEqual(self.gap_says("racer", self.h2)["bad_pages"], 0)

    def test_without_rounds(self):
        self.start_gap("sitter", 16, 4)
        report = json.loads(self.migrate("sitter", "--json", "--no-precopy"))
        self.assertEqual(len(report["rounds"]), 1, "all of it crosses in the pause")
        self.assertGreater(report["rounds"][0]["bytes"], 16 * MIB)
        self.assertEqual(self.gap_says("sitter", self.h2)["bad_pages"], 0)


for name in list(vars(test_ferry_migrate.Migrate)):
    if name.startswith("test_") and name not in vars(LiveMigration):
        setattr(LiveMigration, name, None)  # run where they are from
