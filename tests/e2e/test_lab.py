"""The lab itself: hosts apart from each other and from the machine, and nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile

import ferrylab
from ferrylab import cgroups, processes, wait_until
from support import LabCase

LAB = os.path.join(os.path.dirname(os.path.abspath(ferrylab.__file__)), "..", "lab")


def traces(lab_id):
    """Everything of a lab that could be left on the machine."""
    found = [f"process {p.pid}" for name in ("h1", "h2", "client", "switch")
             for p in processes.belonging(f"{lab_id}/{name}", f"/ferry-lab-{lab_id}-{name}", None)]
    for root in cgroups.roots():
        found += [f"cgroup {root}/{name}" for name in os.listdir(root) if lab_id in name]
    return found


class Hosts(LabCase):
    def setUp(self):
        self.h1, self.h2, self.client = self.lab["h1"], self.lab["h2"], self.lab.client

    def test_ssh_between_hosts_with_strict_keys(self):
        self.assertEqual(self.h1.run(["ssh", "h2", "hostname"]).stdout, "h2\n")
        self.assertEqual(self.client.run(["ssh", "h1", "hostname"]).stdout, "h1\n")
        forged = self.h1.run(["ssh", "-o", "HostKeyAlias=client", "h2", "hostname"], check=False)
        self.assertEqual(forged.returncode, 255, "a host with another host's name was believed")

    def test_daemons_and_run_are_apart(self):
        self.container("only-here")
        self.assertIn("only-here", self.h1.docker("ps", "--all"))
        self.assertNotIn("only-here", self.h2.docker("ps", "--all"))
        self.assertEqual(self.client.run(["ls", "/run/docker.sock"], check=False).returncode, 2)
        self.h1.run(["touch", "/run/mine"])
        self.assertFalse(os.path.exists("/run/mine"))
        self.assertFalse(os.path.exists(self.h2.path("/run/mine")))

    def test_same_image_has_the_same_layers_on_both_hosts(self):
        layers = []
        for host in (self.h1, self.h2):
            host.image("busybox")
            layers.append(host.docker("image", "inspect", "--format", "{{.RootFS.Layers}}", "busybox"))
        self.assertEqual(layers[0], layers[1])

    def test_a_container_on_the_switch_is_reachable(self):
        self.h1.image("nginx")
        self.container("web", "--network", self.h1.macvlan(), "--ip", "10.77.0.150", image="nginx")

        def fetched():
            try:
                with self.client.connect("10.77.0.150", 80, timeout=2) as s:
                    s.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
                    return s.makefile("rb").read().endswith(b"\r\n\r\nferry\n")
            except OSError:
                return False
        wait_until(fetched, 15, "nginx to answer the client host")

    def test_a_renewed_host_is_empty_and_works(self):
        self.h2.image("busybox")
        self.h2.docker("run", "--detach", "--name", "doomed", "--restart", "always", "busybox", "sleep", "1000")
        self.lab.renew("h2")
        self.assertEqual(self.h2.docker("ps", "--all", "--quiet"), "")
        self.assertEqual(self.h1.run(["ssh", "h2", "hostname"]).stdout, "h2\n")


class Command(LabCase):
    """lab/lab, with a state directory and therefore a lab of its own."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory(dir=self.lab.directory)
        self.addCleanup(scratch.cleanup)
        self.state = scratch.name
        self.addCleanup(self.command, "down")

    def command(self, *arguments, check=True):
        done = subprocess.run([sys.executable, LAB, "--state", self.state, *arguments], text=True, check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=90)
        if check:
            self.assertEqual(done.returncode, 0, done.stdout)
        return done

    def the_id(self):
        return ferrylab.open_lab("default", self.state).id

    def test_up_run_ssh_down(self):
        self.assertIn("h1", self.command("up", "1").stdout)
        lab_id = self.the_id()
        self.assertTrue(traces(lab_id))
        self.assertEqual(self.command("run", "h1", "--", "docker", "ps", "--quiet").stdout, "")
        self.assertEqual(self.command("ssh", "h1", "hostname").stdout, "h1\n")
        self.assertIn("already up", self.command("up", "1", check=False).stdout)
        self.command("image", "h1", "busybox")
        self.command("run", "h1", "--", "docker", "run", "--detach", "--restart", "always", "busybox", "sleep", "1000")
        self.command("down")
        self.assertEqual(traces(lab_id), [])
        self.assertEqual(os.listdir(os.path.join(self.state, "labs")), [])

    def begin(self, code):
        """A program with a lab of its own, which says ready when the lab is up."""
        child = subprocess.Popen([sys.executable, "-c", code, self.state, os.path.dirname(LAB)], text=True,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                 start_new_session=True)
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        line = child.stdout.readline()
        self.assertTrue(line.startswith("ready"), f"the lab did not come up: {line}")
        return child, line.split()[1]

    PROGRAM = ("import sys, signal; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[2]); import ferrylab\n"
               "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
               "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background ignores it
               "with ferrylab.Lab(hosts=1, state=sys.argv[1]) as lab:\n"
               "    lab['h1'].image('busybox'); lab['h1'].docker('run', '--detach', 'busybox', 'sleep', '1000')\n"
               "    print('ready', lab.id, flush=True)\n"
               "    signal.pause()\n")

    def test_nothing_is_left_after_sigterm_and_ctrl_c(self):
        for signum in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=signum.name):
                child, lab_id = self.begin(self.PROGRAM)
                self.assertTrue(traces(lab_id))
                child.send_signal(signum)
                child.wait(60)
                self.assertEqual(traces(lab_id), [])

    def test_what_a_killed_maker_leaves_is_removed_by_the_next_up(self):
        child, lab_id = self.begin(self.PROGRAM)
        child.kill()
        child.wait(10)
        self.assertTrue(traces(lab_id), "the lab ended by itself: this test proves nothing")
        self.command("up", "1")
        self.assertEqual(traces(lab_id), [])
        self.assertEqual(os.listdir(os.path.join(self.state, "labs")), ["default"])
