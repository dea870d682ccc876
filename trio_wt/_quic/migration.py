"""Moving a client's connection to another socket (RFC 9000 section 9)."""

from __future__ import annotations

import trio

from .._protocol.route import Route
from .._transport.services import Services
from .._transport.udp import DatagramSocket, open_udp_socket
from .driver import Driver

__all__ = ["migrate"]

# For how many probe timeouts a path that was left is still heard.
_LINGER_PTOS = 3


async def migrate(
    driver: Driver,
    services: Services,
    local_address: tuple[str, int] | None,
    socket: DatagramSocket | None,
    patience: float,
) -> None:
    """Try the way through a new socket, and move there; `Connection.migrate` says the rest."""
    await trio.lowlevel.checkpoint()
    driver.check_open()
    engine, endpoint = driver.engine, driver.endpoint
    if driver.migrating:
        raise trio.BusyResourceError("another task is migrating this connection")
    if not driver.can_migrate:
        raise RuntimeError(
            "only a client's connection with an endpoint of its own can migrate (RFC 9000 section 9)"
        )
    old = engine.route
    assert old is not None
    linger = _LINGER_PTOS * engine.probe_timeout
    driver.migrating = True
    try:
        if socket is None:
            host, port = local_address or (None, 0)
            family = endpoint.sockets[old.local].family
            socket = await open_udp_socket(host, port, family=family)
        local = endpoint.add_socket(socket)
        route = Route(old.remote, local)

        async def read(_: trio.CancelScope) -> None:
            await endpoint.read(local)

        async def leave_old(_: trio.CancelScope) -> None:
            # What was under way when the peer heard of the move still comes to the old address.
            await trio.sleep(linger)
            engine.abandon_path(old)
            endpoint.close_socket(old.local)

        services.start_soon(read, name="trio_wt QUIC reader")
        try:
            with trio.move_on_after(patience):
                await _try_path(driver, route)
        finally:
            # The answer may have come together with a cancellation.
            moved = engine.route == route
            if moved:
                services.start_soon(leave_old, name="trio_wt QUIC reader of the old path")
            else:
                engine.abandon_path(route)
                driver.wake()  # the peer gives out an id for the one that was used up
                endpoint.close_socket(local)
    finally:
        driver.migrating = False
    if not moved:
        raise OSError(
            f"the peer has not answered over {socket.local_address} within {patience:g} s, "
            "or gives out no connection ids to migrate with"
        )


async def _try_path(driver: Driver, route: Route) -> None:
    """Ask for an answer over a route until the connection has moved there."""
    engine = driver.engine
    pause = engine.probe_timeout
    while engine.route != route:
        driver.check_open()
        if not engine.probe_path(route):
            # Without a spare connection id there is no asking; the peer gives them out after the handshake.
            await driver.wait_changed()
            continue
        driver.wake()
        with trio.move_on_after(pause):
            while engine.route != route:
                driver.check_open()
                await driver.wait_changed()
        pause *= 2
