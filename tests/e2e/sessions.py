"""Sessions with servers that stay open while the server is moved from checkpoint to checkpoint: each asks all the
time, one request after the other, and checks every answer.  The protocols are spoken just as far as that needs."""

import hashlib
import json
import struct
import threading
import time


class Session(threading.Thread):
    """Calls `ask` with 1, 2, 3 … until it is stopped; an exception ends it and is kept."""

    def __init__(self, name, ask, pause=0.005):
        super().__init__(daemon=True, name=name)
        self.ask, self.pause = ask, pause
        self.count, self.longest, self.error = 0, 0.0, None
        self.stopping = threading.Event()

    def run(self):
        try:
            while not self.stopping.is_set():
                began = time.monotonic()
                self.ask(self.count + 1)
                self.longest = max(self.longest, time.monotonic() - began)
                self.count += 1
                self.stopping.wait(self.pause)
        except Exception as error:  # kept and shown by whoever looks at the session
            self.error = error

    def stop(self):
        self.stopping.set()
        self.join(30)


def expect(what, got, wanted):
    if got != wanted:
        raise ValueError(f"{what} is {got!r} and not {wanted!r}")


def receive(connection, length):
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise EOFError("the server closed the connection")
        data += piece
    return data


class Postgres:
    """The simple query protocol, version 3 (PostgreSQL's documentation, chapter 55)."""

    def __init__(self, connection):
        self.connection, self.notifications = connection, []
        words = b"user\0postgres\0database\0postgres\0\0"
        connection.sendall(struct.pack(">II", 8 + len(words), 3 << 16) + words)
        self._answer()

    def query(self, sql):
        """The rows of the answer, as tuples of text or None."""
        self.connection.sendall(b"Q" + struct.pack(">I", len(sql) + 5) + sql.encode() + b"\0")
        return self._answer()

    def one(self, sql):
        ((value,),) = self.query(sql)
        return value

    def _answer(self):
        rows, error = [], None
        while True:
            kind, length = struct.unpack(">cI", receive(self.connection, 5))
            body = receive(self.connection, length - 4)
            if kind == b"D":
                rows.append(self._row(body))
            elif kind == b"E":
                error = body.replace(b"\0", b" ").decode()
            elif kind == b"A":
                self.notifications.append(body[4:].split(b"\0")[1].decode())
            elif kind == b"Z":
                if error:
                    raise ValueError(error)
                return rows

    @staticmethod
    def _row(body):
        (columns,), at, values = struct.unpack_from(">h", body), 2, []
        for _ in range(columns):
            (length,) = struct.unpack_from(">i", body, at)
            at += 4
            if length < 0:
                values.append(None)
            else:
                values.append(body[at:at + length].decode())
                at += length
        return tuple(values)


class MariaDb:
    """The client/server protocol of MySQL as MariaDB documents it; a user without a password."""

    LONG_PASSWORD, WITH_DATABASE, PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH = 1, 8, 1 << 9, 1 << 15, 1 << 19

    def __init__(self, connection):
        self.connection = connection
        greeting = self._packet()
        expect("the version of the protocol", greeting[0], 10)
        able = self.LONG_PASSWORD | self.WITH_DATABASE | self.PROTOCOL_41 | self.SECURE_CONNECTION | self.PLUGIN_AUTH
        self._send(1, struct.pack("<IIB23x", able, 1 << 24, 45) + b"ferry\0" + b"\0" + b"ferry\0"
                   + b"mysql_native_password\0")
        self._check(self._packet())

    def query(self, sql):
        self._send(0, b"\x03" + sql.encode())
        head = self._packet()
        self._check(head)
        if head[0] == 0:
            return []
        columns, rows = head[0], []
        for _ in range(columns):
            self._packet()
        self._packet()
        while True:
            packet = self._packet()
            self._check(packet)
            if packet[0] == 0xfe and len(packet) < 9:
                return rows
            rows.append(self._row(packet, columns))

    def one(self, sql):
        ((value,),) = self.query(sql)
        return value

    def _send(self, number, body):
        self.connection.sendall(struct.pack("<I", len(body))[:3] + bytes([number]) + body)

    def _packet(self):
        head = receive(self.connection, 4)
        return receive(self.connection, int.from_bytes(head[:3], "little"))

    @staticmethod
    def _check(packet):
        if packet[0] == 0xff:
            raise ValueError(packet[3:].decode(errors="replace"))

    @staticmethod
    def _row(packet, columns):
        at, values = 0, []
        for _ in range(columns):
            length, at = packet[at], at + 1
            if length == 0xfb:
                values.append(None)
                continue
            if length == 0xfc:
                (length,), at = struct.unpack_from("<H", packet, at), at + 2
            values.append(packet[at:at + length].decode())
            at += length
        return tuple(values)


class Lines:
    """A protocol of lines; what a program says on a pipe or a socket."""

    def __init__(self, write, read):
        self.write, self.read = write, read

    def ask(self, line):
        self.write(line.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self.read(65536)
            if not piece:
                raise EOFError(f"it ended after {answer!r}")
            answer += piece
        return answer.decode().rstrip("\r\n")

    @classmethod
    def over(cls, connection):
        return cls(connection.sendall, connection.recv)


class Visits:
    """What the services in lab/services answer to a visit; each session has a key of its own."""

    def __init__(self, key, visit):
        self.key, self.visit = key, visit
        self.sum = self.ticks = 0
        self.last = {}

    def __call__(self, number):
        answer = json.loads(self.visit(self.key, number))
        expect("the count", answer["count"], number)
        expect("the hash", answer["hash"], hashlib.sha256(f"{self.key}{number}".encode()).hexdigest())
        expect("what was kept", answer["kept"], str(number))
        if answer["sum"] <= self.sum or answer["ticks"] < self.ticks:
            raise ValueError(f"a counter went back: from {self.sum} and {self.ticks} to {answer}")
        self.sum, self.ticks, self.last = answer["sum"], answer["ticks"], answer
