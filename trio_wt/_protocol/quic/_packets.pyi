from .packets import Crypt, Frame, Mask, Outgoing

def open_packet(
    data: bytes,
    cid_length: int,
    key_phase: int,
    expected: int,
    mask: Mask,
    decrypt: Crypt,
    iv: bytes,
    /,
) -> tuple[int, int, bytes] | None: ...
def seal_packet(
    first: int,
    cid: bytes,
    number: int,
    frames: tuple[Outgoing, ...],
    mask: Mask,
    encrypt: Crypt,
    iv: bytes,
    /,
) -> bytes: ...
def read_frames(payload: bytes, /) -> tuple[list[Frame], bool] | None: ...
