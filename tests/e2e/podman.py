"""Podman on a lab host: everything it keeps in the host's own directory, runc as its runtime."""

import json
import os

import ferrylab
from ferrylab import images, wait_until

# Podman's own default limits need CAP_SYS_RESOURCE, which not every machine grants.  The locks are
# files, because the shared memory of the default would be one for all hosts of the lab.
CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[network]
network_backend = "cni"
network_config_dir = "{directory}/net.d"
cni_plugin_dirs = ["/usr/lib/cni", "/usr/libexec/cni"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "/run/podman"
static_dir = "{directory}/static"
volume_path = "{directory}/volumes"
"""
STORAGE_CONF = """[storage]
driver = "vfs"
graphroot = "{directory}/storage"
runroot = "/run/podman-storage"
"""


class Podman:
    """One for each host and run of the tests; made on first use."""

    made = {}

    def __init__(self, host):
        self.host = host
        self.directory = os.path.join(host.directory, "podman")
        os.makedirs(self.directory, exist_ok=True)
        for name, text in (("containers.conf", CONTAINERS_CONF), ("storage.conf", STORAGE_CONF),
                           ("registries.conf", "unqualified-search-registries = []\n")):
            with open(os.path.join(self.directory, name), "w", encoding="ascii") as f:
                f.write(text.format(directory=self.directory))
        self.environment = {"CONTAINERS_CONF": os.path.join(self.directory, "containers.conf"),
                            "CONTAINERS_STORAGE_CONF": os.path.join(self.directory, "storage.conf"),
                            "CONTAINERS_REGISTRIES_CONF": os.path.join(self.directory, "registries.conf")}
        # The address pool of the bridge is in one fixed place.
        own = os.path.join(self.directory, "cni")
        os.makedirs(own, exist_ok=True)
        os.makedirs("/var/lib/cni", exist_ok=True)
        host.run(["mount", "--bind", own, "/var/lib/cni"])

    @classmethod
    def of(cls, host):
        # A host that was made anew has another keeper, and nothing of what was in its directory.
        key = (host.mark, host.keeper.pid)
        if key not in cls.made:
            cls.made[key] = cls(host)
        return cls.made[key]

    def run(self, *arguments, check=True, timeout=60):
        return self.host.run(["podman", *arguments], env=self.environment, check=check, timeout=timeout, merge=False)

    def __call__(self, *arguments, timeout=60):
        return self.run(*arguments, timeout=timeout).stdout.strip()

    def image(self, name):
        reference = f"localhost/{name}:latest"
        if self.run("image", "exists", reference, check=False).returncode != 0:
            changes, archive = images.archive(name, self.host.lab.cache)
            self("import", *[x for c in changes for x in ("--change", c)], archive, reference, timeout=300)
        return reference

    def inspect(self, container):
        return json.loads(self("container", "inspect", container))[0]

    def counted(self, container):
        return [int(line) for line in self("logs", container).split()]

    def wait_for_count(self, container, at_least):
        def reached():
            numbers = self.counted(container)
            return numbers if numbers and numbers[-1] >= at_least else None
        return wait_until(reached, 15, f"{container} to count to {at_least}", 0.1)

    def remove(self, container):
        done = self.run("rm", "--force", "--time", "0", container, check=False)
        if done.returncode != 0 and "no such container" not in done.stderr.lower() and "no container" not in done.stderr.lower():
            raise ferrylab.CommandFailed(self.host.name, ["podman", "rm", container], done.returncode, done.stderr)
