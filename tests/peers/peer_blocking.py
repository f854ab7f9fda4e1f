"""Transfers over sockets that block: a thread reads, another writes. The protocol is in README.md."""

import hashlib
import socket
import struct
import sys
import threading

PERIOD = 65521


def pattern(salt, size):
    block = bytes((i * 7 + (i >> 8) * 13 + salt) & 0xFF for i in range(PERIOD))
    return (block * (size // PERIOD + 1))[:size]


def read_exact(connection, size):
    parts, left = [], size
    while left:
        piece = connection.recv(min(left, 1 << 16))
        if not piece:
            raise SystemExit(f"the end came {left} bytes early")
        parts.append(piece)
        left -= len(piece)
    return b"".join(parts)


def serve(connection):
    with connection:
        upward, downward = struct.unpack(">QQ", read_exact(connection, 16))
        writer = threading.Thread(target=connection.sendall, args=(pattern(2, downward),))
        writer.start()
        digest = hashlib.sha256(read_exact(connection, upward))
        if connection.recv(1):
            raise SystemExit("more came than was announced")
        writer.join()
        connection.sendall(digest.digest())


def transfer(address, upward, downward):
    with socket.create_connection(address) as connection:
        data = pattern(1, upward)

        def write():
            connection.sendall(struct.pack(">QQ", upward, downward) + data)
            connection.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        got = read_exact(connection, downward)
        digest = read_exact(connection, 32)
        if connection.recv(1):
            raise SystemExit("more came than was announced")
        writer.join()
        if got != pattern(2, downward):
            raise SystemExit("the bytes from the server are not the ones it sent")
        if digest != hashlib.sha256(data).digest():
            raise SystemExit("the bytes at the server are not the ones that were sent")


def main():
    if sys.argv[1] == "server":
        listener = socket.create_server(("0.0.0.0", int(sys.argv[2])))
        print("listening", flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
    address = (sys.argv[2], int(sys.argv[3]))
    for sizes in sys.argv[4:]:
        upward, downward = map(int, sizes.split(":"))
        transfer(address, upward, downward)
    print(f"ok {len(sys.argv) - 4}", flush=True)


main()
