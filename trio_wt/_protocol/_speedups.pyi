from typing_extensions import Buffer

def apply_mask(
    data: Buffer, key: Buffer, start: int = 0, stop: int = -1, phase: int = 0, /
) -> bytes: ...
