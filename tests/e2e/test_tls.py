"""The page server and lazy pages inside TLS, with certificates made here."""

import os
import shutil
import subprocess

import test_lazy
from support import deadline


def certificates(directory):
    """An authority, and a server and a client that it vouches for; a second authority that vouches for a stranger."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    def signed(name, authority, subject, extension):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key",
                "-out", f"{name}.csr", "-subj", f"/CN={subject}")
        with open(os.path.join(directory, f"{name}.ext"), "w", encoding="ascii") as f:
            f.write(extension)
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                "-CAcreateserial", "-days", "2", "-out", f"{name}.pem", "-extfile", f"{name}.ext")

    for authority in ("authority", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority} of a test")
    signed("server", "authority", "127.0.0.1", "subjectAltName=IP:127.0.0.1\n")
    signed("elsewhere", "authority", "elsewhere.test", "subjectAltName=DNS:elsewhere.test\n")
    signed("client", "authority", "client.test", "subjectAltName=DNS:client.test\n")
    signed("stranger", "other", "127.0.0.1", "subjectAltName=IP:127.0.0.1\n")


class Tls(test_lazy.PagesCase):
    def setUp(self):
        super().setUp()
        self.keys = os.path.join(self.scratch, "keys")
        os.mkdir(self.keys)
        certificates(self.keys)

    def tls(self, name, authority="authority"):
        path = lambda file: os.path.join(self.keys, file)
        return ["--tls", "--tls-cacert", path(f"{authority}.pem"), "--tls-cert", path(f"{name}.pem"), "--tls-key",
                path(f"{name}.key")]

    def serve(self, *tls):
        self.criu("page-server", "--daemon", "-D", self.there, "--port", self.port, "-o", "ps.log", "-v4", *tls)

    def send(self, pid, *tls, check=True):
        return self.dump(pid, "--page-server", "--address", "127.0.0.1", "--port", self.port, *tls, check=check)

    def test_page_server(self):
        pid = self.program()
        self.serve(*self.tls("server"))
        self.send(pid, *self.tls("client"))
        self.reaped(pid)
        for name in os.listdir(self.there):
            if name.startswith("page"):
                shutil.move(os.path.join(self.there, name), self.images)
        self.restore()
        self.goes_on()

    def test_a_server_of_another_authority_is_not_trusted(self):
        pid = self.program(64)
        self.serve(*self.tls("stranger", "authority"))
        self.refused(self.send(pid, *self.tls("client"), check=False), "TLS handshake")
        self.goes_on(3)

    def test_a_server_with_another_name_needs_consent(self):
        pid = self.program(64)
        self.serve(*self.tls("elsewhere"))
        self.refused(self.send(pid, *self.tls("client"), check=False), "not for 127.0.0.1", "--tls-no-cn-verify")
        self.goes_on(3)
        self.port = str(test_lazy.free_port())
        self.serve(*self.tls("elsewhere"))
        self.send(pid, *self.tls("client"), "--tls-no-cn-verify")
        self.reaped(pid)

    def test_a_client_without_tls_gets_nowhere(self):
        pid = self.program(64)
        self.serve(*self.tls("server"))
        self.assertEqual(self.send(pid, check=False).returncode, 1)
        self.assertFalse([n for n in os.listdir(self.there) if n.startswith("page")])
        self.goes_on(3)

    def test_files_that_are_not_there_are_named(self):
        pid = self.program(64)
        self.serve(*self.tls("server"))
        tls = self.tls("client")
        self.refused(self.send(pid, *tls[:-1], "/nowhere/key.pem", check=False), "/nowhere/key.pem")
        self.goes_on(3)

    @deadline(60)
    def test_lazy_dump(self):
        pid = self.program(16384)
        dump = self.lazy_dump(pid, *self.tls("server"))
        self.page_source(*self.tls("client"))
        self.lazy_restore()
        self.goes_on()
        self.assertEqual(dump.wait(20), 0)
        self.reaped(pid)
