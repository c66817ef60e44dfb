"""As much of gRPC over a unix socket as benchmarks need to ask a daemon for something thousands of times:
one connection, one request at a time, and messages of strings."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(*strings):
    """A protocol buffer whose fields, from 1 on, are short strings."""
    out = b""
    for number, text in enumerate(strings, 1):
        text = text.encode()
        assert len(text) < 128
        out += bytes([number << 3 | 2, len(text)]) + text
    return out


class Refused(Exception):
    pass


class Admin:
    """The admin API of the daemon with this folder."""

    def __init__(self, folder):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(f"{folder}/admin.sock")
        self.file = self.socket.makefile("rb")
        self.stream = 1
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))

    def close(self):
        self.file.close()
        self.socket.close()

    def ask(self, method, *strings):
        """Gives the answer's bytes."""
        names = [(":method", "POST"), (":scheme", "http"), (":path", f"/esker.admin.v1.Admin/{method}"),
                 (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers")]
        block = b"".join(b"\0" + bytes([len(part)]) + part.encode() if n == 0 else bytes([len(part)]) + part.encode()
                         for pair in names for n, part in enumerate(pair))
        body = message(*strings)
        stream, self.stream = self.stream, self.stream + 2
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, block)
                            + frame(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(body)) + body))
        answer = b""
        while True:
            head = self.file.read(9)
            if len(head) < 9:
                raise Refused("the daemon closed the connection")
            length, (kind, flags), at = int.from_bytes(head[:3], "big"), head[3:5], int.from_bytes(head[5:], "big")
            payload = self.file.read(length)
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == GOAWAY or kind == RESET and at == stream:
                raise Refused(f"{method}: the daemon ended the request")
            elif at == stream and kind in (DATA, HEADERS):
                if kind == DATA:
                    answer += payload
                    if payload:
                        grown = struct.pack(">I", len(payload))
                        self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, grown))
                if flags & END_STREAM:
                    break
        if len(answer) < 5:  # an error comes without a message
            raise Refused(f"{method} {strings} was refused")
        return answer[5:]
