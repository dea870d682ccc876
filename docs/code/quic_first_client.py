"""The first QUIC client."""

from __future__ import annotations

import trio

import trio_wt


async def main() -> None:
    tls = trio_wt.ClientTLS(ca="cert.pem")
    async with (
        trio_wt.open_quic("localhost", 4433, alpn=["echo"], tls=tls) as connection,
        connection.open_stream() as stream,
    ):
        await stream.send_all(b"hello")
        await stream.send_eof()
        print(await stream.receive_all())


if __name__ == "__main__":
    trio.run(main)
