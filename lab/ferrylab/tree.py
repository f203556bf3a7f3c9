"""The files of an image: programs that are installed on this machine, with what they load."""

import functools
import io
import os
import re
import shutil
import subprocess
import tarfile

PASSWD = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"


class Tree:
    """Files of an image, written in the order of their names and without dates, so that the same
    packages give the same tar and thereby the same layer id on every host."""

    def __init__(self):
        self.entries = {}

    def directory(self, path, mode=0o755, owner=0):
        self._parents(path)
        info = tarfile.TarInfo(path.strip("/"))
        info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
        self.entries[info.name] = (info, None)

    def bytes(self, path, content, mode=0o644):
        self._parents(path)
        info = tarfile.TarInfo(path.strip("/"))
        info.mode, info.size = mode, len(content)
        self.entries[info.name] = (info, content)

    def text(self, path, text, mode=0o644):
        self.bytes(path, text.encode(), mode)

    def append(self, path, text):
        info, content = self.entries[path.strip("/")]
        self.bytes(path, content + text.encode(), info.mode)

    def link(self, path, target):
        self._parents(path)
        info = tarfile.TarInfo(path.strip("/"))
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        self.entries[info.name] = (info, None)

    def file(self, source, path=None):
        """Copies a file of the machine; of a symbolic link, what it leads to."""
        path = os.path.normpath(path or source)  # ldd names some as bin/../lib
        self._parents(path)
        real = os.path.realpath(source)
        info = tarfile.TarInfo(path.strip("/"))
        info.mode, info.size = os.stat(real).st_mode & 0o755, os.stat(real).st_size
        self.entries[info.name] = (info, real)

    def program(self, source, path=None):
        self.file(source, path)
        for library in libraries(os.path.realpath(source)):
            self.file(library)

    def folder(self, source, skip=(), without=()):
        """All files of a directory but those in directories of the names in skip, or of the names in without."""
        for directory, names, files in os.walk(source):
            names[:] = [n for n in names if n not in skip]
            for name in files:
                if name in without:
                    continue
                full = os.path.join(directory, name)
                if os.path.isfile(full):
                    if ".so" in name:
                        self.program(full)
                    else:
                        self.file(full)

    def _parents(self, path):
        parts = path.strip("/").split("/")[:-1]
        for i in range(1, len(parts) + 1):
            name = "/".join(parts[:i])
            if name not in self.entries:
                info = tarfile.TarInfo(name)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                self.entries[name] = (info, None)

    def write(self, path):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted(self.entries):
                info, content = self.entries[name]
                if isinstance(content, str):
                    with open(content, "rb") as f:
                        tar.addfile(info, f)
                else:
                    tar.addfile(info, io.BytesIO(content) if content is not None else None)


@functools.lru_cache(maxsize=None)
def libraries(program):
    """Shared libraries by the paths the program will look for them, the loader among them."""
    done = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          timeout=30, check=False)
    return tuple(re.findall(r"(?:=>\s+|^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE))


def base():
    tree = Tree()
    for path in ("/proc", "/sys", "/dev", "/run", "/root", "/srv", "/mnt", "/etc", "/var/log", "/usr/bin", "/sbin"):
        tree.directory(path)
    tree.directory("/tmp", 0o1777)
    tree.text("/etc/passwd", PASSWD)
    tree.text("/etc/group", GROUP)
    busybox = shutil.which("busybox")
    tree.file(busybox, "/bin/busybox")
    applets = subprocess.run([busybox, "--list-full"], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    for applet in applets.stdout.split():
        if applet != "bin/busybox":
            tree.link("/" + applet, "/bin/busybox")
    return tree


def resolver(tree):
    """What libc loads at run time without naming it: users and host names."""
    tree.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    for directory in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"):
        for name in ("libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1"):
            path = os.path.join(directory, name)
            if os.path.exists(path):
                tree.program(path)
