"""Container images made of the programs that are installed on this machine.

No registry is needed: an image is a tar of files for `docker import`.  Each holds busybox for a
shell, and one program from its Debian package with the shared libraries that ldd names.
"""

import functools
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))

PASSWD = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"

NGINX_CONF = """user www-data;
worker_processes 2;
daemon off;
pid /run/nginx.pid;
error_log stderr notice;
events { worker_connections 64; }
http {
  access_log off;
  server {
    listen 80;
    location / { root /srv; }
    location /worker { default_type text/plain; return 200 "$pid\\n"; }
  }
}
"""

# A threaded server with state that only its memory holds: every answer counts up.
COUNTER_SERVER = """import http.server, threading, time
lock, count = threading.Lock(), 0
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.05)
        ticks += 1
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a client may keep its connection
    def do_GET(self):
        global count
        with lock:
            count += 1
            body = f"{count} {ticks}\\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


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

    def text(self, path, text, mode=0o644):
        self._parents(path)
        info = tarfile.TarInfo(path.strip("/"))
        info.mode, info.size = mode, len(text.encode())
        self.entries[info.name] = (info, text.encode())

    def link(self, path, target):
        self._parents(path)
        info = tarfile.TarInfo(path.strip("/"))
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        self.entries[info.name] = (info, None)

    def file(self, source, path=None):
        """Copies a file of the machine; of a symbolic link, what it leads to."""
        path = path or source
        self._parents(path)
        real = os.path.realpath(source)
        info = tarfile.TarInfo(path.strip("/"))
        info.mode, info.size = os.stat(real).st_mode & 0o755, os.stat(real).st_size
        self.entries[info.name] = (info, real)

    def program(self, source, path=None):
        self.file(source, path)
        for library in libraries(os.path.realpath(source)):
            self.file(library)

    def folder(self, source, skip=()):
        for directory, names, files in os.walk(source):
            names[:] = [n for n in names if n not in skip]
            for name in files:
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


def busybox():
    return ["CMD [\"/bin/sh\"]"], base()


def redis():
    tree = base()
    tree.program("/usr/bin/redis-server")
    tree.program("/usr/bin/redis-cli")
    resolver(tree)
    tree.directory("/data")
    return (["WORKDIR /data",
             "CMD [\"/usr/bin/redis-server\", \"--protected-mode\", \"no\", \"--save\", \"\"]"], tree)


def nginx():
    tree = base()
    tree.program("/usr/sbin/nginx")
    resolver(tree)
    tree.text("/etc/nginx/nginx.conf", NGINX_CONF)
    tree.text("/srv/index.html", "ferry\n")
    tree.directory("/var/log/nginx")
    for part in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        tree.directory(f"/var/lib/nginx/{part}", 0o755, 33)
    return (["CMD [\"/usr/sbin/nginx\"]"], tree)


def python():
    tree = base()
    interpreter = os.path.realpath("/usr/bin/python3")
    tree.program(interpreter, "/usr/bin/python3")
    tree.folder("/usr/lib/" + os.path.basename(interpreter),
                skip=("__pycache__", "test", "idlelib", "lib2to3", "tkinter", "ensurepip", "dist-packages"))
    resolver(tree)
    tree.text("/srv/counter.py", COUNTER_SERVER)
    return (["ENV PYTHONDONTWRITEBYTECODE=1", "CMD [\"/usr/bin/python3\", \"/srv/counter.py\"]"], tree)


def gap():
    """The instrument that measures its own pauses."""
    tree = base()
    with tempfile.TemporaryDirectory() as scratch:
        program = os.path.join(scratch, "gap")
        subprocess.run(["cc", "-O2", "-static", "-pthread", os.path.join(REPOSITORY, "bench", "gap.c"), "-o", program],
                       check=True, timeout=120)
        with open(program, "rb") as f:
            content = f.read()
    info = tarfile.TarInfo("usr/bin/gap")
    info.mode, info.size = 0o755, len(content)
    tree.entries[info.name] = (info, content)
    return (["CMD [\"/usr/bin/gap\", \"1\", \"0\", \"3600\"]"], tree)


RECIPES = {"busybox": (busybox, ["busybox-static"]), "redis": (redis, ["busybox-static", "redis-server", "redis-tools"]),
           "nginx": (nginx, ["busybox-static", "nginx-light"]), "python": (python, ["busybox-static", "python3"]),
           "gap": (gap, ["busybox-static"])}


def archive(name, cache):
    """(changes for docker import, path of the tar) of an image; made once per machine and version."""
    recipe, packages = RECIPES[name]
    versions = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", "libc6", *packages],
                              stdout=subprocess.PIPE, text=True, check=True, timeout=30).stdout
    with open(os.path.abspath(__file__), "rb") as f:
        key = hashlib.sha256(f.read() + versions.encode())
    if name == "gap":
        with open(os.path.join(REPOSITORY, "bench", "gap.c"), "rb") as f:
            key.update(f.read())
    path = os.path.join(cache, f"{name}-{key.hexdigest()[:16]}.tar")
    note = path + ".changes"
    if not (os.path.exists(path) and os.path.exists(note)):
        os.makedirs(cache, exist_ok=True)
        changes, tree = recipe()
        scratch = f"{path}.{os.getpid()}"
        with open(scratch, "w", encoding="utf-8") as f:
            f.write("\n".join(changes))
        os.replace(scratch, note)
        tree.write(scratch)
        os.replace(scratch, path)
    with open(note, encoding="utf-8") as f:
        return f.read().splitlines(), path
