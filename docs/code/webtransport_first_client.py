"""The first WebTransport client."""

from __future__ import annotations

import trio

import trio_wt


async def main() -> None:
    tls = trio_wt.ClientTLS(ca="cert.pem")
    async with (
        trio_wt.open_webtransport("https://localhost:4433/echo", tls=tls) as session,
        session.open_stream() as stream,
    ):
        await stream.send_all(b"hello", eof=True)
        print(await stream.receive_all())


if __name__ == "__main__":
    trio.run(main)
