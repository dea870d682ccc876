"""The interop endpoints in an application, and the client's side of the baton."""

from __future__ import annotations

import trio

from trio_wt import ClientTLS, open_webtransport
from trio_wt.app import App, ReloadingTLS
from trio_wt.interop import add_endpoints, baton_url, run_baton


async def main() -> None:
    app = App(origins="any")
    add_endpoints(app)
    tls = ReloadingTLS("cert.pem", "key.pem")
    await app.serve("localhost", 4433, tls=tls)


async def play() -> None:
    url = baton_url("https://localhost:4433", count=3)
    async with open_webtransport(url, tls=ClientTLS(ca="cert.pem")) as session:
        result = await run_baton(session, on_move=print)
    print(result.finished, "batons have come to 0")


if __name__ == "__main__":
    trio.run(main)
