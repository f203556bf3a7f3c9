"""OCI bundles on a lab host, and what the programs in them say."""

import array
import json
import os
import shutil
import socket
import tarfile
import threading

from ferrylab import images, wait_until


def make(host, directory, image, argv, change=None):
    """A bundle with the files of a lab image and a configuration like that of `runc spec`."""
    os.makedirs(directory)
    rootfs = os.path.join(directory, "rootfs")
    with tarfile.open(images.archive(image, host.lab.cache)[1]) as tar:
        tar.extractall(rootfs, filter="tar") if hasattr(tarfile, "tar_filter") else tar.extractall(rootfs)
    host.run(["runc", "spec", "--bundle", directory])
    path = os.path.join(directory, "config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    config["process"]["args"] = argv
    config["process"]["terminal"] = False
    config["root"]["readonly"] = False
    config["linux"]["cgroupsPath"] = f"{host.cgroup}/{os.path.basename(directory)}"
    if change:
        change(config)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f)
    return directory


def without_namespace(config, kind):
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != kind]


class Output:
    """The read end of a pipe that a container writes to, and everything that came out of it."""

    def __init__(self):
        self.text = b""
        self._reader, self.fd = os.pipe()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            while data := os.read(self._reader, 65536):
                self.text += data
        except OSError:
            pass
        os.close(self._reader)

    def close_ours(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def numbers(self):
        return [int(line) for line in self.text.decode().splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(self, at_least):
        def reached():
            numbers = self.numbers()
            return numbers if numbers and numbers[-1] >= at_least else None
        return wait_until(reached, 15, lambda: f"the container to count to {at_least}, it said {self.text[-60:]!r}", 0.02)


class ConsoleSocket:
    """Takes the one terminal that runc sends, as containerd's shim does."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen(1)
        self.socket.settimeout(20)
        self.path = path

    def take(self):
        connection, _ = self.socket.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[:4])
                return fds[0]
        raise AssertionError("runc sent no terminal")

    def close(self):
        self.socket.close()


def remove(directory):
    shutil.rmtree(directory, ignore_errors=True)
