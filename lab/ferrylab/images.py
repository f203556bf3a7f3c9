"""Container images made of the programs that are installed on this machine.

No registry is needed: an image is a tar of files for `docker import`.  Each holds busybox for a
shell, and one program from its Debian package with the shared libraries that ldd names.
"""

import glob
import hashlib
import os
import subprocess
import tempfile

from . import services
from .tree import base, resolver

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))

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
    services.own(tree, "service.py", "/srv/service.py")
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
    tree.bytes("/usr/bin/gap", content, 0o755)
    return (["CMD [\"/usr/bin/gap\", \"1\", \"0\", \"3600\"]"], tree)


RECIPES = {"busybox": (busybox, ["busybox-static"]), "redis": (redis, ["busybox-static", "redis-server", "redis-tools"]),
           "nginx": (nginx, ["busybox-static", "nginx-light"]), "python": (python, ["busybox-static", "python3"]),
           "gap": (gap, ["busybox-static"]), **services.RECIPES}


def sources():
    """The files that an image is made by, besides the packages."""
    return [*(os.path.join(HERE, name) for name in ("images.py", "services.py", "tree.py")),
            *sorted(glob.glob(os.path.join(services.PROGRAMS, "*"))), os.path.join(REPOSITORY, "bench", "gap.c")]


def archive(name, cache):
    """(changes for docker import, path of the tar) of an image; made once per machine and version."""
    recipe, packages = RECIPES[name]
    versions = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", "libc6", *packages],
                              stdout=subprocess.PIPE, text=True, check=True, timeout=30).stdout
    key = hashlib.sha256(versions.encode())
    for source in sources():
        with open(source, "rb") as f:
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
