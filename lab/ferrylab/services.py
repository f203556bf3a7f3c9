"""Images of the programs that people run: databases, runtimes, servers.  What runs in them is in lab/services."""

import glob
import os
import subprocess
import tempfile

from .tree import base, resolver

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = os.path.join(os.path.dirname(HERE), "services")

POSTGRES = 70  # users of the images; no program cares for the number
MYSQL = 71
MEMCACHED = 72
SSHD = 73
GUEST = 1000

JAVA = "/usr/lib/jvm/java-17-openjdk-amd64"
# What a machine may have besides the headless runtime.
NO_DISPLAY = ("src.zip", "ct.sym", "libawt_xawt.so", "libsplashscreen.so", "libjawt.so", "libatk-wrapper.so")


def own(tree, name, path, mode=0o644):
    with open(os.path.join(PROGRAMS, name), encoding="utf-8") as f:
        tree.text(path, f.read(), mode)


def user(tree, name, number, shell="/bin/sh"):
    tree.append("/etc/passwd", f"{name}:x:{number}:{number}:{name}:/home/{name}:{shell}\n")
    tree.append("/etc/group", f"{name}:x:{number}:\n")


def postgres():
    tree = base()
    for name in ("postgres", "initdb"):
        tree.program(f"/usr/lib/postgresql/15/bin/{name}")
    tree.program("/usr/lib/postgresql/15/bin/psql", "/usr/bin/psql")
    # The compiler of queries would bring the whole of LLVM with it; PostgreSQL does without.
    tree.folder("/usr/lib/postgresql/15/lib", skip=("bitcode", "pgxs"), without=("llvmjit.so",))
    tree.folder("/usr/share/postgresql/15", skip=("man",))
    tree.file("/usr/share/zoneinfo/Etc/UTC")
    resolver(tree)
    user(tree, "postgres", POSTGRES)
    tree.directory("/data", 0o700, POSTGRES)
    own(tree, "postgres.sh", "/srv/start", 0o755)
    return ["USER postgres", "WORKDIR /data", "CMD [\"/srv/start\"]"], tree


def mariadb():
    tree = base()
    tree.program("/usr/sbin/mariadbd")
    tree.folder("/usr/share/mysql")
    resolver(tree)
    user(tree, "mysql", MYSQL)
    tree.directory("/data", 0o700, MYSQL)
    own(tree, "mariadb.sh", "/srv/start", 0o755)
    tree.text("/srv/users.sql", "CREATE USER IF NOT EXISTS ferry@'%';\nGRANT ALL ON *.* TO ferry@'%';\n"
                                "CREATE DATABASE IF NOT EXISTS ferry;\n")
    return ["USER mysql", "WORKDIR /data", "CMD [\"/srv/start\"]"], tree


def memcached():
    tree = base()
    tree.program("/usr/bin/memcached")
    resolver(tree)
    user(tree, "memcache", MEMCACHED)
    return ["USER memcache", "CMD [\"/usr/bin/memcached\", \"-m\", \"64\", \"-t\", \"4\"]"], tree


def node():
    tree = base()
    tree.program("/usr/bin/node")
    resolver(tree)
    own(tree, "service.js", "/srv/service.js")
    return ["CMD [\"/usr/bin/node\", \"/srv/service.js\"]"], tree


def java():
    tree = base()
    for name in ("bin/java", "lib/jspawnhelper"):
        tree.program(f"{JAVA}/{name}")
    # Debian keeps a part of the runtime's settings under /etc and links to it.
    for folder in ("conf", "lib"):
        tree.folder(f"{JAVA}/{folder}", skip=("jfr",), without=NO_DISPLAY)
    with tempfile.TemporaryDirectory() as scratch:
        # The compiler is a module of the runtime, so a runtime is enough.
        subprocess.run([f"{JAVA}/bin/java", "-m", "jdk.compiler/com.sun.tools.javac.Main", "-d", scratch,
                        os.path.join(PROGRAMS, "Service.java")], check=True, timeout=120)
        for path in sorted(glob.glob(os.path.join(scratch, "*.class"))):
            with open(path, "rb") as f:
                tree.bytes("/srv/" + os.path.basename(path), f.read())
    resolver(tree)
    return ["CMD [\"%s/bin/java\", \"-Xmx96m\", \"-cp\", \"/srv\", \"Service\"]" % JAVA], tree


def terminfo(tree):
    for name in ("s/screen", "s/screen-256color", "t/tmux", "t/tmux-256color", "x/xterm", "x/xterm-256color"):
        tree.file(f"/lib/terminfo/{name}")


def tmux():
    tree = base()
    tree.program("/usr/bin/tmux")
    tree.program("/usr/bin/vim.tiny", "/usr/bin/vim")  # to its shell "vi" is busybox itself
    terminfo(tree)
    tree.folder("/usr/lib/locale/C.utf8")
    resolver(tree)
    return ["ENV TERM=xterm", "ENV LANG=C.UTF-8", "CMD [\"/usr/bin/tmux\", \"-u\", \"new-session\", \"/bin/sh\"]"], tree


def sshd():
    tree = base()
    tree.program("/usr/sbin/sshd")
    resolver(tree)
    user(tree, "sshd", SSHD, "/bin/false")
    user(tree, "guest", GUEST)
    tree.directory("/home/guest", 0o755, GUEST)
    tree.directory("/run/sshd")
    tree.directory("/etc/ssh")
    tree.text("/etc/shadow", "root:*:19000::::::\nguest:*:19000::::::\n", 0o600)
    tree.text("/etc/ssh/sshd_config", "HostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/keys\nUsePAM no\n"
                                      "PasswordAuthentication no\nSyslogFacility DAEMON\n")
    return ["CMD [\"/usr/sbin/sshd\", \"-D\", \"-e\"]"], tree


RECIPES = {
    "postgres": (postgres, ["busybox-static", "postgresql-15", "postgresql-client-15", "tzdata"]),
    "mariadb": (mariadb, ["busybox-static", "mariadb-server-core"]),
    "memcached": (memcached, ["busybox-static", "memcached"]),
    "node": (node, ["busybox-static", "nodejs"]),
    "java": (java, ["busybox-static", "openjdk-17-jre-headless"]),
    "tmux": (tmux, ["busybox-static", "tmux", "vim-tiny", "ncurses-base"]),
    "sshd": (sshd, ["busybox-static", "openssh-server"]),
}
