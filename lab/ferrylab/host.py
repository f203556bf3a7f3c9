"""One host of the lab: its namespaces, its Docker daemon, its sshd, and running things in it."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid

from . import cgroups, images, network, processes, ssh
from .processes import MARK, Process, wait_until

# Everything that makes a host: entered by nsenter, kept alive by one sleeping process.  /run is a
# tmpfs of the host's own, so that sockets and pid files of several daemons keep apart.
KEEPER = """set -e
hostname "$1"
ip link set lo up
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /run/lock /run/sshd
# Hosts do not share what they remember.
mkdir -p "$2/$1/var-lib-ferry" /var/lib/ferry
mount --bind "$2/$1/var-lib-ferry" /var/lib/ferry
mount --bind "$2/hosts" /etc/hosts
if [ -e "$2/$1/boot_id" ]; then mount --bind "$2/$1/boot_id" /proc/sys/kernel/random/boot_id; fi
if [ -e /etc/ssh/ssh_config ]; then mount --bind "$2/ssh_config" /etc/ssh/ssh_config; fi
echo ready
exec sleep infinity
"""


class CommandFailed(Exception):
    def __init__(self, where, argv, code, output):
        super().__init__(f"{where}: {shlex.join(argv)}: exit code {code}\n{output.strip()}")
        self.argv, self.code, self.output = argv, code, output


class Host:
    def __init__(self, lab, name, address, docker):
        self.lab, self.name, self.address, self.has_docker = lab, name, address, docker
        self.directory = os.path.join(lab.directory, name)
        self.tmp = os.path.join(self.directory, "tmp")
        self.mark = f"{lab.id}/{name}"
        self.cgroup = f"/ferry-lab-{lab.id}-{name}"
        self.clocks_ahead = 0  # seconds; a host with clocks of its own looks like another boot
        self.keeper = None
        self.daemons = {}
        self.daemon_settings = {}  # of dockerd, as in daemon.json
        self.api = None

    # ---- life ----

    def prepare(self):
        """Directories and keys; no process yet."""
        os.makedirs(self.tmp, exist_ok=True)
        ssh.make_key(self.host_key, f"host {self.name}")

    @property
    def host_key(self):
        return os.path.join(self.directory, "ssh_host_key")

    @property
    def data_root(self):
        return os.path.join(self.directory, "docker")

    def environment(self):
        env = {key: value for key, value in os.environ.items()
               if key in ("TERM", "LANG", "HOME", "USER", "LOGNAME", "SHELL")}
        env.setdefault("HOME", "/root")
        env.update(self.session_environment())
        return env

    def session_environment(self):
        """What a program in this host sees besides the usual, whether started here or by ssh."""
        env = {MARK: self.mark, "TMPDIR": self.tmp, "PATH": ":".join([*self.lab.path, *self._own_bin(), *PATH])}
        if self.has_docker:
            env["DOCKER_HOST"] = "unix:///run/docker.sock"
            if self.api:
                # A client newer than the daemon must be told to speak the daemon's language.
                env["DOCKER_API_VERSION"] = self.api
        return env

    def _own_bin(self):
        directory = os.path.join(self.directory, "bin")
        return [directory] if os.path.isdir(directory) else []

    def make_namespaces(self):
        os.makedirs(os.path.join(self.directory, "log"), exist_ok=True)
        with self._log("keeper") as log:
            keeper = subprocess.Popen(
                ["unshare", "--mount", "--net", "--uts", "--propagation", "private", *self._own_clocks(), "--",
                 "/bin/sh", "-c", KEEPER, "keeper", self.name, self.lab.directory],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                env=self.environment(), start_new_session=True, cwd="/")
        self.lab.children.append(keeper)
        self.keeper = Process.of(keeper.pid)
        self.lab.save()
        line = keeper.stdout.readline()
        keeper.stdout.close()
        if line != b"ready\n":
            raise RuntimeError(f"{self.name}: no namespaces: {self._log_tail('keeper')}")

    def _own_clocks(self):
        if not self.clocks_ahead:
            return []
        ssh.write(os.path.join(self.directory, "boot_id"), f"{uuid.uuid4()}\n")
        return ["--time", "--monotonic", str(self.clocks_ahead), "--boottime", str(self.clocks_ahead)]

    def start(self):
        if self.has_docker:
            self._choose_iptables()
            self.start_docker()
        self.start_sshd()

    def _choose_iptables(self):
        """dockerd takes the iptables it finds on PATH.  Where that speaks nftables to a kernel that
        lacks a piece of the translation, the legacy one usually works."""
        def works(command):
            return shutil.which(command) and all(
                self.run([command, "-w", "-t", "nat", *rule], check=False).returncode == 0
                for rule in (["-A", "POSTROUTING", "-s", "192.0.2.0/24", "!", "-o", "lo", "-j", "MASQUERADE"],
                             ["-A", "OUTPUT", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "ACCEPT"],
                             ["-F"]))
        if works("iptables"):
            return
        if not works("iptables-legacy"):
            raise RuntimeError("neither iptables nor iptables-legacy can make a nat rule with this kernel")
        own = os.path.join(self.directory, "bin")
        os.makedirs(own, exist_ok=True)
        for name in ("iptables", "ip6tables"):
            os.symlink(shutil.which(f"{name}-legacy"), os.path.join(own, name))

    def start_docker(self):
        config = os.path.join(self.directory, "daemon.json")
        ssh.write(config, json.dumps(self.daemon_settings) + "\n")  # the machine's own /etc/docker/daemon.json is none of our business
        self._daemon("dockerd", [
            "dockerd", "--experimental", "--config-file", config, "--data-root", self.data_root,
            "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--host", "unix:///run/docker.sock",
            "--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--cgroup-parent", self.cgroup])
        self.wait_for_docker()

    def wait_for_docker(self):
        def answers():
            if not self.daemons["dockerd"].alive():
                raise RuntimeError(f"{self.name}: dockerd ended: {self._log_tail('dockerd')}")
            try:
                return self.docker_api("GET", "/version")
            except (OSError, ValueError):
                return None
        self.api = wait_until(answers, 60, f"dockerd of {self.name} to answer")["ApiVersion"]
        self.lab.save()

    def stop_docker(self):
        """The polite way: the daemon stops its containers first."""
        daemon = self.daemons.pop("dockerd")
        daemon.kill(signal.SIGTERM)
        wait_until(lambda: not daemon.alive(), 60, f"dockerd of {self.name} to end")

    def start_sshd(self):
        config = os.path.join(self.directory, "sshd_config")
        ssh.write(config, ssh.server_config(self.address, self.host_key,
                                            os.path.join(self.lab.directory, "user_key.pub"),
                                            self.session_environment()))
        # sshd insists on being started by its absolute path: it executes itself for every connection.
        self._daemon("sshd", [shutil.which("sshd", path=":".join(PATH)), "-D", "-e", "-f", config])

        def listens():
            if not self.daemons["sshd"].alive():
                raise RuntimeError(f"{self.name}: sshd ended: {self._log_tail('sshd')}")
            try:
                with self.connect(self.address, 22, timeout=2) as s:
                    return s.recv(4) == b"SSH-"
            except OSError:
                return False
        wait_until(listens, 20, f"sshd of {self.name} to answer")

    def _daemon(self, name, argv):
        with self._log(name) as log:
            child = subprocess.Popen(self.command(argv), stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=subprocess.STDOUT, env=self.environment(), start_new_session=True, cwd="/")
        self.lab.children.append(child)
        self.daemons[name] = Process.of(child.pid)
        self.lab.save()

    def owns(self, pid):
        """Whether the process was started in this host or lives in it."""
        return processes.belongs(pid, self.mark, self.cgroup, processes.namespace(self.keeper.pid, "mnt"))

    def destroy(self):
        """Kills everything that lives in this host and removes what it had, also when only the
        record of it is left."""
        alive = self.keeper is not None and self.keeper.alive()
        mounts = processes.namespace(self.keeper.pid, "mnt") if alive else None

        def rest():
            self.lab.reap()
            cgroups.thaw(self.cgroup)
            left = [p for p in processes.belonging(self.mark, self.cgroup, mounts) if p != self.keeper]
            left += [p for p in self.daemons.values() if p.alive()]
            for process in left:
                process.kill()
            return not left
        wait_until(rest, 30, f"the processes of {self.name} to die")
        if self.keeper is not None:
            self.keeper.kill()

            def gone():
                self.lab.reap()
                return not self.keeper.alive()
            wait_until(gone, 10, f"the keeper of {self.name} to die")
        wait_until(lambda: cgroups.remove(self.cgroup), 10, f"the cgroups {self.cgroup} to be removable")
        self.keeper, self.daemons, self.api = None, {}, None
        shutil.rmtree(self.directory, ignore_errors=True)
        if os.path.isdir(self.directory):
            # A mount that is only just being torn down can hold a directory for a moment.
            wait_until(lambda: shutil.rmtree(self.directory, ignore_errors=True) or not os.path.exists(self.directory),
                       10, f"{self.directory} to be removable")

    # ---- running things ----

    def command(self, argv):
        # Before Linux 6.3 the keeper itself stays in the old time namespace: execve(2) did not change it.
        time = f"/proc/{self.keeper.pid}/ns/time_for_children"
        times = [f"--time={time}"] if os.path.exists(time) else []
        return ["nsenter", "--target", str(self.keeper.pid), "--mount", "--net", "--uts", *times, "--", *argv]

    def popen(self, argv, **options):
        """Starts a program in this host; the caller ends it."""
        options.setdefault("stdin", subprocess.DEVNULL)
        environment = {**self.environment(), **options.pop("env", {})}
        return subprocess.Popen(self.command(argv), env=environment, **options)

    def run(self, argv, timeout=60, check=True, text=None, env=None, merge=True):
        """Runs a program in this host to its end.  With merge its two outputs come as one stdout."""
        argv = [str(a) for a in argv]
        try:
            done = subprocess.run(self.command(argv), env={**self.environment(), **(env or {})},
                                  input=text if text is not None else "", text=True, errors="replace",
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT if merge else subprocess.PIPE,
                                  timeout=timeout, check=False)
        except subprocess.TimeoutExpired as late:
            output = late.output or b""
            raise CommandFailed(self.name, argv, f"none after {timeout} s",
                                output.decode(errors="replace") if isinstance(output, bytes) else output) from None
        if check and done.returncode != 0:
            raise CommandFailed(self.name, argv, done.returncode, done.stdout + (done.stderr or ""))
        return done

    def docker(self, *args, timeout=60):
        """Runs a docker command and returns what it printed, stripped."""
        return self.run(["docker", *args], timeout=timeout).stdout.strip()

    def try_docker(self, *args, timeout=60):
        return self.run(["docker", *args], timeout=timeout, check=False)

    def inspect(self, container):
        return json.loads(self.docker("inspect", container, timeout=20))[0]

    def image(self, name):
        """Makes sure that the lab's image of that name is there, and returns the name."""
        if self.try_docker("image", "inspect", name).returncode != 0:
            changes, archive = images.archive(name, self.lab.cache)
            self.docker("import", *[x for c in changes for x in ("--change", c)], archive, name, timeout=300)
        return name

    def macvlan(self, name="lan"):
        """A Docker network whose containers are on the lab's switch with addresses of their own."""
        if self.try_docker("network", "inspect", name).returncode != 0:
            self.docker("network", "create", "--driver", "macvlan", "--subnet", network.SUBNET,
                        "--opt", f"parent={network.INTERFACE}", name)
        return name

    def path(self, inside):
        """A path of this host as the machine sees it."""
        return f"/proc/{self.keeper.pid}/root{inside}"

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        return network.socket_in(self.keeper.pid, family, kind)

    def connect(self, address, port, timeout=10):
        s = self.socket()
        s.settimeout(timeout)
        try:
            s.connect((address, port))
        except BaseException:
            s.close()
            raise
        return s

    def docker_api(self, method, path, timeout=10):
        """One plain request to the Docker Engine API over its socket; the decoded JSON answer."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(timeout)
            s.connect(self.path("/run/docker.sock"))
            s.sendall(f"{method} {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
            answer = b""
            deadline = time.monotonic() + timeout
            while chunk := s.recv(65536):
                answer += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{method} {path} took more than {timeout} s")
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(None, 2)[1])
        if status >= 400:
            raise ValueError(f"{method} {path}: {body.decode(errors='replace')}")
        return json.loads(body) if body else None

    # ---- logs ----

    def log_path(self, name):
        return os.path.join(self.directory, "log", f"{name}.log")

    def _log(self, name):
        return open(self.log_path(name), "ab")

    def _log_tail(self, name, lines=8):
        try:
            with open(self.log_path(name), encoding="utf-8", errors="replace") as f:
                return "\n".join(f.read().splitlines()[-lines:])
        except OSError:
            return "(no log)"


# sshd, dockerd and ip live in sbin, which a user's PATH need not have.
PATH = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
