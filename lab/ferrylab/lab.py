"""A lab: hosts h1, h2, …, a client host without Docker, and the switch between them.

Everything a lab has is below one directory and in its own namespaces and cgroups.  What has to be
undone is on record in lab.json before it exists, so that a lab whose maker was killed can be taken
down by anybody: the next `lab up` or `lab down` does it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess

from . import network, ssh
from .host import Host
from .processes import Process

STATE = "/var/tmp/ferry-lab"  # a disk, not a tmpfs: overlay2 needs a real filesystem below
CLIENT, SWITCH = "client", "switch"


class LabError(Exception):
    pass


def boot_id():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read().strip()


class Lab:
    """with Lab(hosts=2) as lab: lab["h1"].docker("run", …)

    hosts       how many hosts with Docker, called h1, h2, …
    path        directories to put first on PATH, for the Docker daemons too
    state       directory for everything this lab and its images need
    name        for a lab that shall outlive its maker (`lab up`); else it ends with its maker
    clocks      by how many seconds the monotonic and boot clocks of a host are ahead, e.g. {"h2": 864000}; such a
                host has a boot id of its own too, so that it is another machine to whoever compares clocks
    """

    def __init__(self, hosts=2, path=(), state=None, name=None, clocks=None):
        self.state = os.path.abspath(state or STATE)
        self.id = secrets.token_hex(4)
        self.name = name or f"run-{self.id}"
        self.path = [os.path.abspath(p) for p in path]
        self.owner = Process.of(os.getpid())  # who takes it down; nobody, once `lab up` has made it
        self.lasting = name is not None
        self.children = []
        self._lay_out(hosts)
        for host, ahead in (clocks or {}).items():
            self[host].clocks_ahead = ahead

    def _lay_out(self, count):
        self.directory = os.path.join(self.state, "labs", self.name)
        self.cache = os.path.join(self.state, "cache")
        self.switch = Host(self, SWITCH, None, docker=False)
        self.client = Host(self, CLIENT, "10.77.0.5", docker=False)
        self.hosts = {f"h{i}": Host(self, f"h{i}", f"10.77.0.{10 + i}", docker=True) for i in range(1, count + 1)}

    def __getitem__(self, name):
        if name == CLIENT:
            return self.client
        if name not in self.hosts:
            raise LabError(f"no host {name} in this lab, only {CLIENT} {' '.join(self.hosts)}")
        return self.hosts[name]

    # ---- up ----

    def __enter__(self):
        return self.up()

    def __exit__(self, *_):
        self.destroy()

    def up(self):
        """Brings the lab up, or leaves nothing of it."""
        if os.geteuid() != 0:
            raise LabError("a lab needs root: namespaces, Docker daemons and ptrace")
        os.makedirs(self.state, exist_ok=True)
        sweep(self.state)
        check_overlay(self.state)
        # The directory appears together with the record of whose it is.
        fresh = os.path.join(self.state, "labs", f".new-{self.id}")
        os.makedirs(fresh)
        self.save(fresh)
        try:
            os.rename(fresh, self.directory)
        except OSError:
            shutil.rmtree(fresh)
            raise LabError(f"the lab {self.name} is already up in {self.state}; take it down first") from None
        try:
            self._bring_up()
        except BaseException:
            self.destroy()
            raise
        return self

    def _bring_up(self):
        ssh.make_key(os.path.join(self.directory, "user_key"), "root of the lab")
        for host in self.with_ssh():
            host.prepare()
        self._write_shared_files()
        for host in [self.switch, *self.with_ssh()]:
            host.make_namespaces()
        network.make_switch(self.switch.keeper.pid)
        for host in self.with_ssh():
            network.plug_in(self.switch.keeper.pid, host.keeper.pid, host.name, host.address)
        for host in self.with_ssh():
            host.start()
        if self.lasting:
            self.owner = None
            self.save()

    def with_ssh(self):
        return [self.client, *self.hosts.values()]

    def _write_shared_files(self):
        """Names, keys and ssh settings that are the same in every host."""
        known = os.path.join(self.directory, "known_hosts")
        names = "".join(f"{host.address} {host.name}\n" for host in self.with_ssh())
        ssh.write(os.path.join(self.directory, "hosts"), "127.0.0.1 localhost\n::1 localhost\n" + names)
        ssh.write(known, ssh.known_hosts((h.name, h.address, h.host_key) for h in self.with_ssh()))
        ssh.write(os.path.join(self.directory, "ssh_config"),
                  ssh.client_config(os.path.join(self.directory, "user_key"), known))

    def renew(self, name, clocks_ahead=None):
        """Replaces a host by a fresh one of the same name: for a test that has left it unusable, or one that
        needs it with other clocks."""
        host = self[name]
        host.clocks_ahead = host.clocks_ahead if clocks_ahead is None else clocks_ahead
        network.unplug(self.switch.keeper.pid, name)
        host.destroy()
        host.prepare()
        self._write_shared_files()
        host.make_namespaces()
        network.plug_in(self.switch.keeper.pid, host.keeper.pid, host.name, host.address)
        host.start()
        return host

    # ---- down ----

    def destroy(self):
        # A second Ctrl-C must not cut the clean-up short; every wait in it has a deadline.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for host in [*self.with_ssh(), self.switch]:
                host.destroy()
            shutil.rmtree(self.directory, ignore_errors=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if os.path.exists(self.directory):
            raise LabError(f"something is left in {self.directory}")

    def reap(self):
        """Collects those of our own children that have ended, so that none stays as a zombie."""
        self.children = [c for c in self.children if c.poll() is None]

    # ---- record ----

    def save(self, directory=None):
        everyone = [self.switch, *self.with_ssh()]
        record = {
            "id": self.id, "boot": boot_id(), "path": self.path, "hosts": len(self.hosts),
            "owner": self.owner.to_json() if self.owner else None,
            "processes": {h.name: {"keeper": h.keeper.to_json() if h.keeper else None,
                                   "daemons": {n: p.to_json() for n, p in h.daemons.items()}} for h in everyone},
            "api": {h.name: h.api for h in self.hosts.values()},
        }
        target = os.path.join(directory or self.directory, "lab.json")
        ssh.write(target + ".new", json.dumps(record, indent=1))
        os.replace(target + ".new", target)


def open_lab(name, state=None):
    """A lab that is up, from its record."""
    state = os.path.abspath(state or STATE)
    try:
        with open(os.path.join(state, "labs", name, "lab.json"), encoding="utf-8") as f:
            record = json.load(f)
    except FileNotFoundError:
        raise LabError(f"no lab {name} in {state}; `lab up` makes one") from None
    lab = Lab(hosts=record["hosts"], path=record["path"], state=state, name=name)
    lab.id = record["id"]
    lab._lay_out(record["hosts"])
    lab.owner = Process.from_json(record["owner"]) if record["owner"] else None
    if record["boot"] == boot_id():  # pids of an earlier boot name nobody
        for host in [lab.switch, *lab.with_ssh()]:
            known = record["processes"].get(host.name, {"keeper": None, "daemons": {}})
            host.keeper = Process.from_json(known["keeper"]) if known["keeper"] else None
            host.daemons = {n: Process.from_json(p) for n, p in known["daemons"].items()}
            host.api = record["api"].get(host.name)
    return lab


def down(name, state=None):
    """Takes a lab down from whatever is left of it."""
    state = os.path.abspath(state or STATE)
    directory = os.path.join(state, "labs", name)
    if not os.path.isdir(directory):
        return False
    open_lab(name, state).destroy()
    return True


def sweep(state):
    """Takes down the labs whose maker has died without doing so."""
    directory = os.path.join(state, "labs")
    os.makedirs(directory, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = os.open(os.path.join(state, "sweep.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in os.listdir(directory):
            with contextlib.suppress(LabError, ValueError):
                lab = open_lab(name, state)
                if lab.owner is not None and not lab.owner.alive():
                    lab.destroy()


def check_overlay(directory):
    """overlay2 puts its upper directories below the data root; an overlay or NFS cannot hold them."""
    probe = os.path.join(directory, f"overlay-probe-{os.getpid()}")
    for part in ("lower", "upper", "work", "merged"):
        os.makedirs(os.path.join(probe, part))
    try:
        options = f"lowerdir={probe}/lower,upperdir={probe}/upper,workdir={probe}/work"
        done = subprocess.run(["unshare", "--mount", "--propagation", "private", "--",
                               "mount", "-t", "overlay", "-o", options, "overlay", f"{probe}/merged"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise LabError(f"{directory} cannot hold Docker's overlay2 storage ({done.stdout.strip()}); "
                           "give a directory on ext4 or xfs with --state")
    finally:
        shutil.rmtree(probe, ignore_errors=True)
