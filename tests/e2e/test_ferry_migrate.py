"""ferry migrate: one command moves the container to another host."""

import json
import os
import shutil
import signal
import subprocess

import ferrylab
from ferrylab import wait_until
from support import COUNT, SMALL_MEMORY, deadline
from test_ferry_checkpoint import FerryCase
from watching import arguments_of, group_of, is_held

# About 5,000 lines a second, each of which shows when it is torn.
CHATTER = ("i=0; while true; do n=0; while [ $n -lt 50 ]; do echo \"line $i of the chatter ends here\"; "
           "i=$((i+1)); n=$((n+1)); done; sleep 0.01; done")

# Writes, appends, replaces, renames, removes, and looks whether all is as it was left.
SCRIBE = """i=0; mkdir /root/d0; echo 0 >/root/now; echo >/root/all
while true; do
  [ $(cat /root/now) = $i ] && [ $(ls -d /root/d*) = /root/d$i ] && [ $(wc -l </root/all) = $((i+1)) ] || { echo wrong; exit; }
  echo $i; i=$((i+1))
  echo $i >/root/new; mv /root/new /root/now
  mkdir /root/d$i; rm -r /root/d$((i-1)); ln -s nowhere /root/d$i/link
  echo >>/root/all
done"""

# Speaks for `through`, reading the frames of the protocol (docs/migration.md) on their way to it.
CUTTER = """#!/usr/bin/python3
import os, struct, subprocess, sys, threading
command = ["{through}", *sys.argv[1:]]
if os.path.exists("{directory}/used"):
    if not os.path.exists("{directory}/open"):
        sys.exit("no route to host")
    os.execv(command[0], command)
open("{directory}/used", "w").close()
there = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
cut = threading.Event()
def back():
    while data := os.read(there.stdout.fileno(), 65536):
        if cut.is_set():
            return
        os.write(1, data)
threading.Thread(target=back, daemon=True).start()
source = sys.stdin.buffer
GIVEN = 14 << 3 | 2  # the field of Message, as protobuf writes it
while head := source.read(16):
    kind, _, length = struct.unpack("<IIQ", head)
    body = source.read(length)
    if kind == 1 and body[0] == GIVEN:
        cut.set()
        if "{when}" == "before":
            break
    there.stdin.write(head + body)
    there.stdin.flush()
    if cut.is_set():
        break
there.stdin.close()
there.wait()
os._exit(1)
"""


class Migrate(FerryCase):
    def traveller(self, name, *options, **more):
        self.remove_later(self.h2, name)
        return self.counting(name, *options, **more)

    def migrate(self, name, *options, destination="h2", host=None):
        return self.ferry("migrate", *options, name, destination, host=host, timeout=90)

    def try_migrate(self, name, *options, destination="h2"):
        return self.try_ferry("migrate", *options, name, destination, timeout=90)

    def exists(self, name, host):
        return host.try_docker("inspect", name, timeout=20).returncode == 0

    def runs_on(self, name):
        """Names of the hosts on which the container lives."""
        return [h.name for h in (self.h1, self.h2) if self.exists(name, h) and self.running(name, h)]

    def assert_door_open(self, name, host):
        """Nothing of a move is left in the container's network namespace."""
        pid = host.inspect(name)["State"]["Pid"]
        tables = host.run(["nsenter", "-t", str(pid), "-n", "nft", "list", "tables"]).stdout
        self.assertNotIn("ferry", tables)

    def assert_arrived(self, name, before):
        self.assertEqual(self.runs_on(name), ["h2"])
        self.assert_door_open(name, self.h2)
        self.assert_seamless(self.wait_for_count(name, before[-1] + 5, host=self.h2))

    def assert_stayed(self, name):
        self.assertEqual(self.runs_on(name), ["h1"])
        self.assertFalse(self.exists(name, self.h2), "a failed move left a twin behind")
        self.assert_door_open(name, self.h1)
        self.assert_seamless(self.wait_for_count(name, self.counted(name)[-1] + 5))

    # ---- moves ----

    def test_over_real_ssh(self):
        self.traveller("looper")
        before = self.wait_for_count("looper", 5)
        report = self.migrate("looper", destination="h2")
        self.assertRegex(report, r"(?i)pause")
        self.assert_arrived("looper", before)
        self.assertFalse(self.exists("looper", self.h1), "the source is still there although --keep-source was not given")

    def rsh(self):
        """A remote shell that is not ssh: called as COMMAND DEST ferry receive …, as rsync does."""
        path = os.path.join(self.h1.tmp, "rsh")
        environment = " ".join(f"{k}='{v}'" for k, v in self.h2.session_environment().items())
        with open(path, "w", encoding="ascii") as f:
            f.write("#!/bin/sh\n[ \"$1\" = other ] || { echo \"no such host: $1\" >&2; exit 1; }\nshift\n"
                    f"exec {' '.join(self.h2.command([]))} env {environment} \"$@\"\n")
        os.chmod(path, 0o755)
        self.addCleanup(os.unlink, path)
        return path

    def test_over_rsh(self):
        self.traveller("shelled")
        before = self.wait_for_count("shelled", 5)
        self.migrate("shelled", "--rsh", self.rsh(), destination="other")
        self.assert_arrived("shelled", before)

    def test_keep_source(self):
        self.traveller("kept")
        before = self.wait_for_count("kept", 5)
        self.migrate("kept", "--keep-source")
        self.assert_arrived("kept", before)
        self.assertTrue(self.exists("kept", self.h1))
        self.assertFalse(self.running("kept"))

    @deadline(180)
    def test_there_and_back_again(self):
        self.traveller("wanderer")
        self.wait_for_count("wanderer", 5)
        here, there = self.h1, self.h2
        for _ in range(4):
            before = self.counted("wanderer", here)
            self.migrate("wanderer", destination=there.name, host=here)
            here, there = there, here
            self.assert_seamless(self.wait_for_count("wanderer", before[-1] + 5, host=here))

    def test_json_report(self):
        self.traveller("reported")
        before = self.wait_for_count("reported", 5)
        done = self.h1.run(["ferry", "migrate", "--json", "reported", "h2"], merge=False, timeout=90)
        report = json.loads(done.stdout)
        self.assertGreater(report["pause_ms"], 0)
        self.assertTrue(report["phases"])
        self.assertGreater(report["bytes"], 0)
        self.assert_arrived("reported", before)

    def test_the_twin_is_the_same_container(self):
        volume = os.path.join(self.h1.tmp, "shared-by-both")
        os.makedirs(volume, exist_ok=True)
        self.traveller("dressed", "--hostname", "dressed-up", "--env", "GREETING=hello", "--workdir", "/srv",
                       "--label", "colour=blue", "--restart", "unless-stopped", "--user", "1234:5678",
                       "--memory", str(SMALL_MEMORY), "--volume", f"{volume}:/data", "--publish", "18080:80")
        before = self.wait_for_count("dressed", 5)
        was = self.h1.inspect("dressed")
        self.migrate("dressed")
        self.assert_arrived("dressed", before)
        now = self.h2.inspect("dressed")
        for part in ("Hostname", "Env", "Cmd", "Entrypoint", "WorkingDir", "Labels", "User", "Image"):
            self.assertEqual(now["Config"][part], was["Config"][part], part)
        for part in ("RestartPolicy", "Memory", "Binds", "PortBindings", "NetworkMode"):
            self.assertEqual(now["HostConfig"][part], was["HostConfig"][part], part)
        self.assertEqual(now["Name"], was["Name"])
        self.assertEqual(self.h2.docker("exec", "dressed", "hostname"), "dressed-up")

    def test_groups_below_its_own_go_along_and_its_own_is_what_docker_made_it(self):
        self.remove_later(self.h2, "grouped")
        self.container("grouped", "--pids-limit", "55", argv=["/bin/sh", "-c", "sleep 1000 & " + COUNT.format("0.1")])
        before = self.wait_for_count("grouped", 5)

        def look(host):
            """The container's group, its limit, and the process that does nothing but sleep."""
            pid = host.inspect("grouped")["State"]["Pid"]
            group, limit = group_of(pid)
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
                sleeper = next(int(child) for child in f.read().split() if arguments_of(child)[:2] == ["sleep", "1000"])
            return group, limit, sleeper

        group, limit, sleeper = look(self.h1)
        below = os.path.join(group, "below")
        os.mkdir(below)
        with open(os.path.join(below, limit), "w", encoding="ascii") as f:
            f.write("7")
        with open(os.path.join(below, "cgroup.procs"), "w", encoding="ascii") as f:
            f.write(str(sleeper))
        self.migrate("grouped")
        self.assert_arrived("grouped", before)
        group, limit, sleeper = look(self.h2)
        self.assertEqual(group_of(sleeper)[0], os.path.join(group, "below"))
        with open(os.path.join(group, "below", limit), encoding="ascii") as f:
            self.assertEqual(f.read().strip(), "7")
        self.assertFalse(os.path.exists(below), "the group of the source is still there")
        if limit == "pids.max":
            with open(os.path.join(group, limit), encoding="ascii") as f:
                self.assertEqual(f.read().strip(), "55")

    def test_the_writable_layer_goes_along(self):
        self.traveller("writer")
        self.h1.docker("exec", "writer", "sh", "-c",
                       "echo kept >/root/file; rm /etc/group; ln -s file /root/link; mkdir -m 700 /srv/deep; "
                       "dd if=/dev/urandom of=/srv/deep/big bs=1M count=8 2>/dev/null")
        digest = self.h1.docker("exec", "writer", "sha256sum", "/srv/deep/big")
        self.migrate("writer")
        self.assertEqual(self.h2.docker("exec", "writer", "sha256sum", "/srv/deep/big"), digest)
        self.assertEqual(self.h2.docker("exec", "writer", "sh", "-c",
                                        "cat /root/file; readlink /root/link; stat -c %a /srv/deep; ls /etc/group "
                                        "2>/dev/null; true"), "kept\nfile\n700")

    def test_files_that_change_until_the_freeze_go_along(self):
        self.remove_later(self.h2, "scribe")
        self.container("scribe", argv=["/bin/sh", "-c", SCRIBE])
        wait_until(lambda: len(self.h1.docker("logs", "scribe").splitlines()) > 100, 20, "the scribe to be busy")
        self.migrate("scribe")
        seen = len(self.h2.docker("logs", "scribe").splitlines())
        wait_until(lambda: len(self.h2.docker("logs", "scribe").splitlines()) > seen + 20, 20, "the scribe to go on")
        # It ends by itself, loudly, when a file is not as it left it.
        self.h2.docker("stop", "--time", "0", "scribe")
        lines = self.h2.docker("logs", "scribe").splitlines()
        self.assertEqual(lines, [str(n) for n in range(len(lines))])

    def test_missing_image_layers_cross_and_only_those(self):
        self.h2.try_docker("image", "rm", "--force", "busybox")
        self.traveller("imageless")
        before = self.wait_for_count("imageless", 5)
        self.migrate("imageless")
        self.assert_arrived("imageless", before)
        layers = [h.docker("image", "inspect", "--format", "{{.RootFS.Layers}}", "busybox") for h in (self.h1, self.h2)]
        self.assertEqual(layers[0], layers[1])

    def test_address_and_mac_stay_on_a_shared_network(self):
        for host in (self.h1, self.h2):
            host.macvlan()
        self.remove_later(self.h2, "web")
        self.container("web", "--network", "lan", "--ip", "10.77.0.160", image="python")
        self.assertEqual(self.ask()[0], 1)
        mac = self.h1.inspect("web")["NetworkSettings"]["Networks"]["lan"]["MacAddress"]
        self.migrate("web")
        self.assertEqual(self.runs_on("web"), ["h2"])
        self.assertEqual(self.ask()[0], 2)
        lan = self.h2.inspect("web")["NetworkSettings"]["Networks"]["lan"]
        self.assertEqual((lan["IPAddress"], lan["MacAddress"]), ("10.77.0.160", mac))

    def ask(self):
        def answered():
            try:
                with self.client.connect("10.77.0.160", 8000, timeout=3) as s:
                    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    return s.makefile("rb").read().split(b"\r\n\r\n", 1)[1]
            except (OSError, IndexError):
                return None
        return [int(n) for n in wait_until(answered, 15, "the server to answer the client").split()]

    def chatter(self, *options):
        self.remove_later(self.h2, "chatter")
        self.container("chatter", *options, argv=["/bin/sh", "-c", CHATTER])
        self.wait_for_lines(self.h1, 5000)
        self.migrate("chatter")
        arrived_with = len(self.h2.docker("logs", "chatter").splitlines())
        self.wait_for_lines(self.h2, arrived_with + 5000)
        self.h2.docker("kill", "chatter")
        lines = self.h2.docker("logs", "chatter").replace("\r", "").splitlines()
        # What the container was writing when it was killed may be half a line.
        for number, line in enumerate(lines[:-1]):
            self.assertEqual(line, f"line {number} of the chatter ends here")

    def wait_for_lines(self, host, count):
        wait_until(lambda: len(host.docker("logs", "chatter").splitlines()) >= count, 30,
                   f"the log on {host.name} to have {count} lines", 0.2)

    @deadline(120)
    def test_no_line_of_a_busy_log_is_lost_or_torn(self):
        self.chatter()

    @deadline(120)
    def test_no_line_of_a_busy_terminal_is_lost_or_torn(self):
        self.chatter("--tty")

    # ---- refusals: nothing was tried ----

    def test_unreachable_destination(self):
        self.traveller("unreached")
        self.wait_for_count("unreached", 5)
        self.refused(self.try_migrate("unreached", destination="h9"), "h9")
        self.assert_stayed("unreached")

    def test_destination_without_docker(self):
        self.traveller("homeless")
        self.wait_for_count("homeless", 5)
        self.refused(self.try_migrate("homeless", destination="client"), "client", "Docker")
        self.assert_stayed("homeless")

    def test_no_such_container(self):
        self.refused(self.try_migrate("nobody"), "nobody")

    def test_stopped_container(self):
        self.remove_later(self.h2, "asleep")
        self.container("asleep", command="create")
        self.refused(self.try_migrate("asleep"), "asleep", "not running")

    def test_name_that_is_taken_on_the_destination(self):
        self.traveller("twice")
        self.wait_for_count("twice", 5)
        self.h2.image("busybox")
        self.h2.docker("create", "--name", "twice", "busybox")
        self.refused(self.try_migrate("twice"), "twice", "h2")
        self.assertEqual(self.runs_on("twice"), ["h1"])
        self.assert_seamless(self.wait_for_count("twice", self.counted("twice")[-1] + 5))

    def test_port_that_is_taken_on_the_destination(self):
        self.traveller("ported", "--publish", "18081:80")
        self.container("squatter", "--publish", "18081:80", host=self.h2, argv=["sleep", "1000"])
        self.wait_for_count("ported", 5)
        self.refused(self.try_migrate("ported"), "18081")
        self.assert_stayed("ported")

    def test_address_that_the_destination_cannot_give(self):
        self.h1.docker("network", "create", "--subnet", "10.99.0.0/24", "only-h1")
        self.addCleanup(self.h1.try_docker, "network", "rm", "only-h1")
        self.traveller("stranded", "--network", "only-h1", "--ip", "10.99.0.17")
        self.wait_for_count("stranded", 5)
        self.refused(self.try_migrate("stranded"), "only-h1")
        self.assert_stayed("stranded")

    def test_exec_session(self):
        self.traveller("visited")
        before = self.wait_for_count("visited", 5)
        session = self.h1.popen(["docker", "exec", "visited", "sleep", "1000"])
        self.addCleanup(session.wait)
        self.addCleanup(session.kill)
        wait_until(lambda: "sleep 1000" in self.h1.docker("top", "visited"), 10, "the exec session to begin")
        self.refused(self.try_migrate("visited"), "exec", "--drop-exec")
        self.assert_stayed("visited")
        self.migrate("visited", "--drop-exec")
        self.assert_arrived("visited", before)

    # ---- bad luck ----

    @deadline(120)
    def test_ferry_killed_while_the_container_is_frozen_leaves_exactly_one_life(self):
        self.traveller("doubtful")
        before = self.wait_for_count("doubtful", 5)
        pid = self.h1.inspect("doubtful")["State"]["Pid"]
        move = self.h1.popen(["ferry", "migrate", "doubtful", "h2"])
        while move.poll() is None:
            if is_held(pid):
                move.kill()  # popen is the program itself: nsenter executes it
        move.wait(30)

        alive = []

        def one_life():
            alive[:] = [h for h in (self.h1, self.h2) if self.counts_on("doubtful", h)]
            return len(alive) == 1
        wait_until(one_life, 40, lambda: "exactly one host to have the container running, not "
                   f"{[h.name for h in alive]}; {self.what_is_left('doubtful')}", 0.5)
        self.assert_seamless(self.wait_for_count("doubtful", before[-1] + 10, host=alive[0]))
        self.assertEqual([h for h in (self.h1, self.h2) if self.counts_on("doubtful", h)], alive)

    def test_ctrl_c_undoes_everything(self):
        self.traveller("stopped-short", "--restart", "always")
        self.wait_for_count("stopped-short", 5)
        move = self.h1.popen(["ferry", "migrate", "stopped-short", "h2"], stdout=subprocess.PIPE)
        self.addCleanup(move.kill)
        wait_until(lambda: self.exists("stopped-short", self.h2), 20, "the twin to be there", 0.01)
        move.send_signal(signal.SIGINT)
        move.stdout.close()
        self.assertEqual(move.wait(30), 1)
        wait_until(lambda: not self.exists("stopped-short", self.h2), 20, "the twin to be removed")
        self.assert_stayed("stopped-short")
        self.assertEqual(self.h1.inspect("stopped-short")["HostConfig"]["RestartPolicy"]["Name"], "always")

    def cutting_rsh(self, when):
        """A remote shell that breaks the connection at the hand-over, `when` being before or after the
        destination has heard of it.  Later calls get through once the file "open" is there."""
        directory = os.path.join(self.h1.tmp, f"cut-{when}")
        os.makedirs(directory)
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, "rsh")
        with open(path, "w", encoding="ascii") as f:
            f.write(CUTTER.format(directory=directory, when=when, through=self.rsh()))
        os.chmod(path, 0o755)
        return path, os.path.join(directory, "open")

    def let_through(self, gate):
        with open(gate, "w", encoding="ascii"):
            pass

    def test_connection_cut_before_the_destination_heard_of_the_hand_over(self):
        self.traveller("called-back")
        before = self.wait_for_count("called-back", 5)
        rsh, gate = self.cutting_rsh("before")
        self.let_through(gate)
        done = self.try_migrate("called-back", "--rsh", rsh, destination="other")
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("has not taken the container", done.stdout)
        self.assert_stayed_after(before, "called-back")

    def assert_stayed_after(self, before, name):
        wait_until(lambda: not self.exists(name, self.h2), 20, "the twin to be removed")
        self.assert_stayed(name)
        self.assertGreater(self.counted(name)[-1], before[-1])

    def test_connection_cut_after_the_destination_took_the_container(self):
        self.traveller("cut-off")
        before = self.wait_for_count("cut-off", 5)
        rsh, gate = self.cutting_rsh("after")
        self.let_through(gate)
        self.migrate("cut-off", "--rsh", rsh, destination="other")
        self.assertEqual(self.runs_on("cut-off"), ["h2"])
        self.wait_for_count("cut-off", before[-1] + 5, host=self.h2)
        self.assertFalse(self.exists("cut-off", self.h1))

    @deadline(120)
    def test_source_stays_frozen_until_the_destination_answers(self):
        self.traveller("in-doubt")
        before = self.wait_for_count("in-doubt", 5)
        rsh, gate = self.cutting_rsh("before")
        move = self.h1.popen(["ferry", "migrate", "--rsh", rsh, "in-doubt", "other"], stderr=subprocess.PIPE)
        self.addCleanup(move.kill)
        self.assertIn(b"stays frozen", move.stderr.readline())
        self.assertFalse(self.counts_on("in-doubt", self.h1))
        move.send_signal(signal.SIGINT)
        self.assertIn(b"ferry resolve", move.stderr.readline())
        self.assertEqual(move.wait(30), 1)
        move.stderr.close()
        self.assertFalse(self.counts_on("in-doubt", self.h1), "the tree runs although nobody knows who has it")
        self.let_through(gate)
        # The guard of the move goes on asking.
        wait_until(lambda: self.counts_on("in-doubt", self.h1), 30, "the source to run again")
        self.assert_stayed_after(before, "in-doubt")

    def what_is_left(self, name):
        """For a message: what Docker and ferry say of the container on both hosts."""
        def told(host):
            docker = host.try_docker("inspect", "--format", "{{json .State}}", name, timeout=20)
            ferry = self.try_ferry("ps", host=host)
            return f"{host.name}: {docker.stdout} {docker.stderr} {ferry.stdout}"
        return "\n".join(told(host) for host in (self.h1, self.h2))

    def counts_on(self, name, host):
        """Whether the container's count grows there; a container that Docker calls running may be a
        stopped twin or a frozen source."""
        if not self.exists(name, host):
            return False
        try:
            first = len(self.counted(name, host))
            wait_until(lambda: len(self.counted(name, host)) > first, 1, "a further number")
        except ferrylab.WaitedTooLong:
            return False
        except ferrylab.CommandFailed as failed:
            if "No such container" in failed.output or "marked for removal" in failed.output:
                return False  # a twin that is being removed
            raise
        return True
