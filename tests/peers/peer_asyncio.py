"""Transfers over an event loop. The protocol is in README.md."""

import asyncio
import hashlib
import struct
import sys

PERIOD = 65521


def pattern(salt, size):
    block = bytes((i * 7 + (i >> 8) * 13 + salt) & 0xFF for i in range(PERIOD))
    return (block * (size // PERIOD + 1))[:size]


async def send(writer, data):
    for at in range(0, len(data), 50_000):
        writer.write(data[at : at + 50_000])
        await writer.drain()


async def serve(reader, writer):
    upward, downward = struct.unpack(">QQ", await reader.readexactly(16))
    sending = asyncio.create_task(send(writer, pattern(2, downward)))
    digest = hashlib.sha256(await reader.readexactly(upward))
    if await reader.read(1):
        raise SystemExit("more came than was announced")
    await sending
    writer.write(digest.digest())
    await writer.drain()
    writer.close()


async def transfer(host, port, upward, downward):
    reader, writer = await asyncio.open_connection(host, port)
    data = pattern(1, upward)

    async def write():
        await send(writer, struct.pack(">QQ", upward, downward) + data)
        writer.write_eof()

    writing = asyncio.create_task(write())
    got = await reader.readexactly(downward)
    digest = await reader.readexactly(32)
    if await reader.read(1):
        raise SystemExit("more came than was announced")
    await writing
    writer.close()
    if got != pattern(2, downward):
        raise SystemExit("the bytes from the server are not the ones it sent")
    if digest != hashlib.sha256(data).digest():
        raise SystemExit("the bytes at the server are not the ones that were sent")


async def main():
    if sys.argv[1] == "server":
        server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[2]))
        print("listening", flush=True)
        await server.serve_forever()
    for sizes in sys.argv[4:]:
        upward, downward = map(int, sizes.split(":"))
        await transfer(sys.argv[2], int(sys.argv[3]), upward, downward)
    print(f"ok {len(sys.argv) - 4}", flush=True)


asyncio.run(main())
