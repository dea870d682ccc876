import os, trio, pytest
from contextlib import suppress
import trio_wt
from tests.robustness.quic_target import *
from tests.robustness.test_quic_random import *
from tests.robustness.test_quic_random import _busy
S=int(os.environ.get("SEED0","100")); N=int(os.environ.get("SEEDS","60"))
@pytest.mark.parametrize("boldness", [0, 0.003, 0.03])
@pytest.mark.parametrize("seed", range(S,S+N))
async def test_c(seed, boldness):
    async with attacked_server(busy, memory=None, patience=45, bystander=False) as target:
        peer = await target.shaken()
        peer.claim(40)
        peer.connection._local_active_connection_id_limit = 2**30
        await speak(peer, target.served[0], seed, boldness)
        v=target.served[0]
        print("OUT c", boldness, v.is_gone or v.closed, v.is_gone or v.statistics().packets_received, peer.end)
@pytest.mark.parametrize("boldness", [0, 0.01])
@pytest.mark.parametrize("seed", range(S,S+N))
async def test_s(seed: int, boldness: float) -> None:
    async with attacked_client(memory=None) as (peer, connection):
        peer.claim(40)
        peer.connection._local_active_connection_id_limit = 2**30
        with suppress(trio_wt.ConnectionClosed, ExceptionGroup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_busy, connection)
                await speak(peer, connection, seed, boldness)
                print("OUT s", boldness, connection.closed, connection.statistics().packets_received, peer.end)
                nursery.cancel_scope.cancel()
