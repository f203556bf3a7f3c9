"""The files of a container that moves: its writable layer, its volumes, its tmpfs."""

import hashlib
import json
import os
import signal
import stat

from ferrylab import wait_until
from support import deadline
from test_ferry_checkpoint import FerryCase

MIB = 1 << 20

# What only describes inodes of their old place, or is the overlay's own bookkeeping.
NOT_CARRIED = ("trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.nlink", "trusted.overlay.uuid")

# One of each, in the directory that is the first argument.
ZOO = r"""
import os, socket, stat, sys
os.chdir(sys.argv[1])
os.umask(0)
def write(path, content=b"content\n"):
    with open(path, "wb") as f:
        f.write(content)
write("plain")
os.link("plain", "linked")
os.mkdir("deep", 0o1751)
os.link("plain", "deep/linked-too")
with open("sparse", "wb") as f:
    f.truncate(64 << 20)
    f.seek(40 << 20)
    f.write(b"x" * 5000)
write("attributed")
os.setxattr("attributed", "user.colour", b"blue")
os.setxattr("attributed", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.mkfifo("fifo", 0o640)
s = socket.socket(socket.AF_UNIX)
s.bind("socket")
s.close()
os.mknod("device", stat.S_IFBLK | 0o660, os.makedev(7, 42))
os.symlink("nowhere/at all", "symlink")
write("owned")
os.chown("owned", 1234, 5678)
os.lchown("symlink", 12, 34)
write("setuid")
os.chmod("setuid", 0o4755)
write("dated")
os.utime("dated", ns=(10**18 + 123456789, 10**18 + 987654321))
os.mkdir("empty", 0o700)
write("name with \n newline and \xff".encode("latin-1"))
"""


class Storage(FerryCase):
    def setUp(self):
        super().setUp()
        self.volumes = []

    def python(self, name, program, *options, arguments=(), shm=None):
        """A container that runs a program; it exists under the same name on h2 after its move."""
        self.remove_later(self.h2, name)
        self.h1.image("python")
        script = os.path.join(self.h1.tmp, f"{name}.py")
        with open(script, "w", encoding="utf-8") as f:
            f.write(program)
        self.addCleanup(os.unlink, script)
        self.container(name, "--network", "none", *options, command="create", image="python",
                       argv=["/usr/bin/python3", "-u", "/program.py", *arguments])
        self.h1.docker("cp", script, f"{name}:/program.py")
        self.h1.docker("start", name)
        return name

    def sleeper(self, name, *options):
        self.remove_later(self.h2, name)
        return self.counting(name, "--network", "none", *options)

    def volume(self, name):
        for host in (self.h1, self.h2):
            self.addCleanup(host.try_docker, "volume", "rm", "--force", name)
        return name

    def said(self, name, word, host=None, timeout=20):
        host = host or self.h1
        wait_until(lambda: word in host.docker("logs", name), timeout,
                   lambda: f"{name} to say {word}; it says {host.docker('logs', name)[-300:]}", 0.05)

    def move(self, name, *options):
        done = self.h1.run(["ferry", "migrate", "--json", *options, name, "h2"], merge=False, check=False, timeout=110)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def place(self, volume, host):
        return host.path(host.docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume))

    def upper(self, name, host):
        return host.path(host.inspect(name)["GraphDriver"]["Data"]["UpperDir"])

    def has_volume(self, name, host):
        return host.try_docker("volume", "inspect", name).returncode == 0

    def exists(self, name, host):
        return host.try_docker("inspect", "--type", "container", name).returncode == 0

    def assert_stayed(self, name):
        self.assertTrue(self.running(name, self.h1))
        wait_until(lambda: not self.exists(name, self.h2), 20, "the twin to be removed")

    # ---- looking at trees ----

    def tree(self, top):
        """All that a copy has to have in common with its original, by path."""
        out, names = {}, {}
        for directory, below, files in os.walk(os.fsencode(top)):
            for entry in [directory, *(os.path.join(directory, n) for n in below + files)]:
                info = os.lstat(entry)
                path = os.path.relpath(entry, os.fsencode(top))
                facts = {"mode": oct(info.st_mode), "owner": (info.st_uid, info.st_gid), "xattrs": self.xattrs(entry)}
                facts["mtime"] = info.st_mtime_ns
                if stat.S_ISREG(info.st_mode):
                    facts["size"] = info.st_size
                    with open(entry, "rb") as f:
                        facts["sha256"] = hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") \
                            else hashlib.sha256(f.read()).hexdigest()
                    names.setdefault(info.st_ino, set()).add(path)
                elif stat.S_ISLNK(info.st_mode):
                    facts["target"] = os.readlink(entry)
                elif stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
                    facts["device"] = info.st_rdev
                out[path] = facts
        for same in names.values():
            for path in same:
                out[path]["names"] = sorted(same)
        return out

    def xattrs(self, entry):
        return {n: os.getxattr(entry, n, follow_symlinks=False) for n in os.listxattr(entry, follow_symlinks=False)
                if n not in NOT_CARRIED}

    def assert_same_trees(self, before, after):
        self.assertEqual(sorted(before), sorted(after))
        for path, facts in before.items():
            self.assertEqual(facts, after[path], path)

    # ---- volumes ----

    def test_a_volume_goes_along_with_everything_in_it(self):
        self.volume("zoo")
        self.h1.docker("volume", "create", "--label", "colour=blue", "zoo")
        self.python("keeper", ZOO + "\nprint('ready'); import time\nwhile True: time.sleep(1)", "--volume", "zoo:/zoo", arguments=["/zoo"])
        self.said("keeper", "ready")
        before = self.tree(self.place("zoo", self.h1))
        self.assertGreater(len(before), 12)
        self.move("keeper")
        self.assert_same_trees(before, self.tree(self.place("zoo", self.h2)))
        labels = json.loads(self.h2.docker("volume", "inspect", "zoo"))[0]
        self.assertEqual((labels["Labels"], labels["Driver"]), ({"colour": "blue"}, "local"))
        blocks = os.stat(os.path.join(self.place("zoo", self.h2), "sparse")).st_blocks * 512
        self.assertLess(blocks, MIB, "a sparse file is sparse no more")
        self.assertTrue(self.has_volume("zoo", self.h1), "the source's volume was removed")

    def test_an_anonymous_volume_goes_along_and_leaves_nothing_behind(self):
        self.sleeper("anon", "--volume", "/data")
        self.h1.docker("exec", "anon", "sh", "-c", "echo mine >/data/file")
        volume = self.h1.inspect("anon")["Mounts"][0]["Name"]
        self.volume(volume)
        self.move("anon")
        self.assertEqual(self.h2.docker("exec", "anon", "cat", "/data/file"), "mine")
        self.assertEqual(self.h2.inspect("anon")["Mounts"][0]["Name"], volume)
        self.assertFalse(self.has_volume(volume, self.h1))

    def test_what_the_image_has_does_not_come_back_into_a_volume(self):
        self.volume("emptied")
        self.sleeper("emptier", "--volume", "emptied:/bin")
        self.h1.docker("exec", "emptier", "rm", "/bin/vi")
        self.move("emptier")
        self.assertFalse(os.path.lexists(os.path.join(self.place("emptied", self.h2), "vi")))
        self.assert_same_trees(self.tree(self.place("emptied", self.h1)), self.tree(self.place("emptied", self.h2)))

    @deadline(120)
    def test_a_writer_that_syncs_all_the_time_loses_nothing(self):
        self.volume("ledger")
        self.python("writer", r"""
import os, sys
fd = os.open("/data/log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
n = 0
while True:
    for i in range(20):
        os.write(fd, b"%d\n" % n)
        n += 1
    os.fsync(fd)
    for d in ("a", "b"):
        os.makedirs("/data/" + d, exist_ok=True)
    os.rename("/data/a", "/data/c"); open("/data/c/%d" % (n % 100), "w").write(str(n)); os.rename("/data/c", "/data/a")
    size = os.fstat(fd).st_size
    whole = os.pread(fd, size, 0) if n % 2000 == 0 else None
    if whole is not None and whole != b"".join(b"%d\n" % i for i in range(n)):
        print("wrong", flush=True)
    if n % 200 == 0:
        print(n, flush=True)
""", "--volume", "ledger:/data")
        self.said("writer", "2000\n")
        self.move("writer")
        said = self.h2.docker("logs", "writer").split()
        self.assertRegex(said[-1], r"^\d+$", " ".join(said[-60:]))
        last = int(said[-1])
        self.said("writer", f"{last - last % 2000 + 4000}\n", self.h2, 60)
        self.assertNotIn("wrong", self.h2.docker("logs", "writer"))
        self.h2.docker("kill", "writer")
        with open(os.path.join(self.place("ledger", self.h2), "log"), "rb") as f:
            lines = f.read().split()
        self.assertEqual(lines, [b"%d" % n for n in range(len(lines))])

    MAPPED = r"""
import mmap, os, time
fd = os.open("%s", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 << 20)
m = mmap.mmap(fd, 8 << 20)
os.close(fd)
n = 0
while True:
    for at in range(0, 8 << 20, 1 << 20):
        m[at:at + 8] = n.to_bytes(8, "little")
    for at in range(0, 8 << 20, 1 << 20):
        if int.from_bytes(m[at:at + 8], "little") != n:
            print("wrong", flush=True)
    n += 1
    if n %% 5000 == 0:
        print(n, flush=True)
"""

    def mapped(self, name, path, *options):
        self.python(name, self.MAPPED % path, *options)
        self.said(name, "5000\n")
        self.move(name)
        last = int(self.h2.docker("logs", name).split()[-1])
        self.said(name, f"{last + 5000}\n", self.h2)
        self.assertNotIn("wrong", self.h2.docker("logs", name))

    def test_a_shared_mapping_of_a_volume_that_changes_until_the_freeze(self):
        self.volume("map")
        self.mapped("mapper-v", "/data/map", "--volume", "map:/data")

    def test_a_shared_mapping_of_the_writable_layer_that_changes_until_the_freeze(self):
        self.mapped("mapper-l", "/map")

    @deadline(150)
    def test_of_a_large_file_only_what_changed_crosses_in_the_pause(self):
        self.volume("database")
        self.python("database", r"""
import os, time
fd = os.open("/data/base", os.O_RDWR | os.O_CREAT)
for i in range(300):
    os.write(fd, os.urandom(1 << 20))
print("filled", flush=True)
n = 0
while True:
    n += 1
    os.pwrite(fd, n.to_bytes(8, "little"), (n % 50) * 4096 * 100)
    if int.from_bytes(os.pread(fd, 8, (n % 50) * 4096 * 100), "little") != n:
        print("wrong", flush=True)
    if n % 100 == 0: print(n, flush=True)
    time.sleep(0.001)
""", "--volume", "database:/data")
        self.said("database", "filled", timeout=60)
        report = self.move("database", "--keep-source")
        files = [p for p in report["pause_parts"] if "changed files" in p["name"]]
        self.assertEqual(len(files), 1)
        self.assertLess(files[0]["bytes"], 8 * MIB)
        last = int(self.h2.docker("logs", "database").split()[-1])
        self.said("database", f"{last + 500}\n", self.h2)
        self.h2.docker("kill", "database")
        self.assertNotIn("wrong", self.h2.docker("logs", "database"))
        with open(os.path.join(self.place("database", self.h1), "base"), "rb") as f, \
                open(os.path.join(self.place("database", self.h2), "base"), "rb") as g:
            for block in range(300 * 256):
                here, there = f.read(4096), g.read(4096)
                if block % 100 or block >= 5000:
                    self.assertEqual(here, there, f"block {block}")

    # ---- the writable layer ----

    @deadline(120)
    def test_the_writable_layer_arrives_as_it_was(self):
        # Half of it before the move, so that it is in the first copy, and all of it again and again meanwhile.
        self.python("layered", r"""
import os, shutil, sys
def zoo(top):
    os.makedirs(top)
    sys.argv[1] = top
    exec(ZOO)
    os.chdir("/")
ZOO = open("/program.py").read().split("#" * 8)[1]
zoo("/first")
os.remove("/etc/group")
if os.path.isdir("/usr/lib/python3/dist-packages"):
    shutil.rmtree("/usr/lib/python3/dist-packages")
print("ready", flush=True)
n = 0
while True:
    n += 1
    zoo("/root/%d" % n)
    os.rename("/root/%d" % n, "/root/n%d" % n)
    if n > 1:
        shutil.rmtree("/root/n%d" % (n - 1))
    open("/first/plain", "w").write(str(n))
    shutil.rmtree("/srv", ignore_errors=True); os.makedirs("/srv/again")
    if open("/first/deep/linked-too").read() != str(n) or sorted(os.listdir("/root")) != ["n%d" % n] or len(os.listdir("/root/n%d" % n)) != 14:
        print("wrong", n, os.listdir("/root"), flush=True)
    if n % 10 == 0: print(n, flush=True)
""" + "\n" + "#" * 8 + "".join("\n" + line for line in ZOO.splitlines()) + "\n" + "#" * 8, arguments=["x"])
        self.skip_unless_layered("layered")
        self.move("layered", "--keep-source")
        # Where it stopped here it went on there: what it leaves alone has to be the same.
        here, there = self.upper("layered", self.h1), self.upper("layered", self.h2)
        self.assert_same_trees({p: f for p, f in self.tree(os.path.join(here, "first")).items() if not self.rewritten(p)},
                               {p: f for p, f in self.tree(os.path.join(there, "first")).items() if not self.rewritten(p)})
        whiteout = os.lstat(os.path.join(there, "etc/group"))
        self.assertTrue(stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0)
        last = int(self.h2.docker("logs", "layered").split()[-1])
        self.said("layered", f"\n{last + 50}\n", self.h2)
        self.assertNotIn("wrong", self.h2.docker("logs", "layered"))

    def rewritten(self, path):
        return path in (b"plain", b"linked", b"deep/linked-too")

    def skip_unless_layered(self, name):
        self.said(name, "ready")
        self.said(name, "\n20\n")

    def test_a_hard_link_is_one_file_also_when_it_is_written_by_its_other_name(self):
        self.volume("pair")
        self.sleeper("pairs", "--volume", "pair:/data")
        self.h1.docker("exec", "pairs", "sh", "-c", "mkdir /data/d; echo 1 >/data/a; ln /data/a /data/d/b; echo 2 >/data/d/b")
        self.move("pairs")
        self.h2.docker("exec", "pairs", "sh", "-c", "echo 3 >/data/a")
        self.assertEqual(self.h2.docker("exec", "pairs", "cat", "/data/d/b"), "3")

    @deadline(120)
    def test_an_unchanged_layer_of_many_files_costs_nothing_in_the_pause(self):
        self.sleeper("many")
        self.h1.docker("exec", "many", "sh", "-c",
                       "mkdir /srv/many; cd /srv/many; i=0; while [ $i -lt 200 ]; do mkdir $i; j=0; "
                       "while [ $j -lt 100 ]; do echo $j >$i/$j; j=$((j+1)); done; i=$((i+1)); done")
        report = self.move("many")
        self.assertEqual(self.h2.docker("exec", "many", "sh", "-c", "cat /srv/many/*/* | wc -l"), "20000")
        spent = [p["ms"] for p in report["pause_parts"] if "changed files" in p["name"]]
        self.assertEqual(len(spent), 1)
        self.assertLess(spent[0], 5, report["pause_parts"])
        self.assertFalse([n for n in report["notes"] if "looked at" in n], report["notes"])

    # ---- what lies in memory ----

    SCRATCH = r"""
import os, sys
os.chdir(sys.argv[1])
n = 0
while True:
    n += 1
    with open("new", "w") as f:
        f.write(str(n))
    os.rename("new", "now")
    os.makedirs("d%d" % n)
    if n > 1:
        os.rmdir("d%d" % (n - 1))
    if open("now").read() != str(n) or sorted(os.listdir(".")) != sorted(["now", "d%d" % n]):
        print("wrong", n, os.listdir("."), flush=True)
    if n % 1000 == 0:
        print(n, flush=True)
"""

    def scratch(self, name, path, *options):
        self.python(name, self.SCRATCH, *options, arguments=[path])
        self.said(name, "\n3000\n")
        self.move(name)
        last = int(self.h2.docker("logs", name).split()[-1])
        self.said(name, f"\n{last + 3000}\n", self.h2)
        self.assertNotIn("wrong", self.h2.docker("logs", name))

    def test_a_tmpfs_that_changes_until_the_freeze(self):
        self.scratch("tmp", "/scratch", "--tmpfs", "/scratch:size=10m")

    def test_shared_memory_that_changes_until_the_freeze(self):
        self.scratch("shm", "/dev/shm")

    def test_shared_memory_of_the_host_s_that_changes_until_the_freeze(self):
        self.scratch("shareable", "/dev/shm", "--ipc", "shareable")

    def test_a_shared_mapping_in_dev_shm(self):
        self.mapped("mapper-s", "/dev/shm/map", "--ipc", "shareable")

    # ---- choices and refusals ----

    def test_a_volume_that_the_destination_has_is_not_overwritten(self):
        self.volume("taken")
        self.sleeper("guest", "--volume", "taken:/data")
        self.h1.docker("exec", "guest", "sh", "-c", "echo new >/data/file")
        self.h2.docker("volume", "create", "taken")
        with open(os.path.join(self.place("taken", self.h2), "old"), "w", encoding="ascii") as f:
            f.write("old")
        self.refused(self.try_ferry("migrate", "guest", "h2"), "taken", "not empty", "--replace-volumes")
        self.assert_stayed("guest")
        self.move("guest", "--replace-volumes")
        place = self.place("taken", self.h2)
        self.assertEqual(os.listdir(place), ["file"])
        self.assertEqual(os.listdir(os.path.dirname(place)), ["_data"])

    def test_no_volumes(self):
        self.volume("left")
        self.sleeper("light", "--volume", "left:/data")
        self.h1.docker("exec", "light", "sh", "-c", "echo here >/data/file")
        report = self.move("light", "--no-volumes")
        self.assertTrue([n for n in report["notes"] if "left" in n and "not copied" in n], report["notes"])
        self.assertEqual(os.listdir(self.place("left", self.h2)), [])

    def test_one_volume_of_two(self):
        self.volume("one"), self.volume("two")
        self.sleeper("chooser", "--volume", "one:/one", "--volume", "two:/two")
        self.h1.docker("exec", "chooser", "sh", "-c", "echo 1 >/one/file; echo 2 >/two/file")
        self.refused(self.try_ferry("migrate", "--volume", "three", "chooser", "h2"), "three")
        self.move("chooser", "--volume", "two")
        self.assertEqual((os.listdir(self.place("one", self.h2)), os.listdir(self.place("two", self.h2))), ([], ["file"]))

    def test_a_volume_that_another_container_uses_is_named(self):
        self.volume("common")
        self.sleeper("mover", "--volume", "common:/data")
        self.counting("stayer", "--volume", "common:/data")
        self.refused(self.try_ferry("migrate", "mover", "h2"), "common", "stayer", "--no-volumes")
        self.assertFalse(self.has_volume("common", self.h2))

    # ---- bad luck ----

    @deadline(120)
    def test_ctrl_c_in_the_middle_leaves_no_volume(self):
        self.volume("heavy"), self.volume("held")
        self.sleeper("heavy", "--volume", "heavy:/data", "--volume", "held:/held")
        self.h1.docker("exec", "heavy", "sh", "-c", "dd if=/dev/urandom of=/data/big bs=1M count=400 2>/dev/null; echo 1 >/held/new")
        self.h2.docker("volume", "create", "held")
        with open(os.path.join(self.place("held", self.h2), "old"), "w", encoding="ascii") as f:
            f.write("old")
        before = self.tree(self.place("heavy", self.h1))
        move = self.h1.popen(["ferry", "migrate", "--replace-volumes", "heavy", "h2"], stdout=-3)
        self.addCleanup(move.kill)
        wait_until(lambda: self.has_volume("heavy", self.h2) and os.listdir(self.place("heavy", self.h2)), 30, "the volume to arrive", 0.01)
        move.send_signal(signal.SIGINT)
        self.assertEqual(move.wait(60), 1)
        self.assert_stayed("heavy")
        wait_until(lambda: not self.has_volume("heavy", self.h2), 20, "the volume to be removed")
        self.assert_same_trees(before, self.tree(self.place("heavy", self.h1)))
        place = self.place("held", self.h2)
        wait_until(lambda: os.listdir(os.path.dirname(place)) == ["_data"], 20, "what was put aside to be back")
        self.assertEqual(os.listdir(place), ["old"])

    @deadline(120)
    def test_a_full_disk_at_the_destination_leaves_the_container_where_it_was(self):
        self.volume("large")
        self.sleeper("large", "--volume", "large:/data")
        self.h1.docker("exec", "large", "sh", "-c", "dd if=/dev/urandom of=/data/big bs=1M count=40 2>/dev/null")
        volumes = os.path.join(self.h2.data_root, "volumes", "large")
        self.h2.docker("volume", "create", "large")
        self.h2.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", volumes])
        try:
            os.makedirs(os.path.join(self.h2.path(volumes), "_data"), exist_ok=True)
            done = self.try_ferry("migrate", "large", "h2")
            self.assertNotEqual(done.returncode, 0, done.stdout)
            self.assertIn("No space left", done.stdout.splitlines()[-1])
            self.assert_stayed("large")
        finally:
            self.h2.run(["umount", volumes])
        self.move("large")
        self.assertEqual(self.tree(self.place("large", self.h1)), self.tree(self.place("large", self.h2)))
