"""Which cases to run, cut into batches that each have a fuzzer and a peer of their own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from .verdicts import Side

__all__ = ["Batch", "parse_groups", "plan"]

# As a server, the fuzzer asks our client here for client_no_context_takeover. RFC 7692 section
# 7.1.1.2 lets it do so whatever was offered, but kosoku does only when the offer has the parameter,
# and else goes uncompressed.
_NEED_NO_CONTEXT: Final = ("13.2.", "13.5.", "13.6.", "13.7.")


@dataclass(frozen=True)
class Batch:
    """Cases that run against one peer process.

    Args:
        side: what is under test.
        cases: the cases' numbers, in order.
        offer_no_context: the client under test offers client_no_context_takeover.
    """

    side: Side
    cases: tuple[str, ...]
    offer_no_context: bool = False

    @property
    def limit(self) -> float:
        """Seconds after which the peer is killed, which fails the cases still to come."""
        return 60 + 15 * len(self.cases)


def parse_groups(text: str) -> list[int]:
    """Read "1-7,9,10" as numbers.

    Raises:
        ValueError: the text is anything else.
    """
    groups: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        groups.extend(range(int(first), int(last or first) + 1))
    return groups


def plan(
    side: Side, known: Sequence[str], groups: Collection[int], patterns: Sequence[str]
) -> list[Batch]:
    """One batch a group and, for our client, one more for the cases that need another offer.

    Args:
        side: what is under test.
        known: the cases that the fuzzer has.
        groups: first numbers of the cases to run.
        patterns: run only cases that match one of these globs; all if there are none.
    """
    wanted: dict[tuple[int, bool], list[str]] = {}
    for case in known:
        group = int(case.partition(".")[0])
        if group not in groups:
            continue
        if patterns and not any(fnmatchcase(case, pattern) for pattern in patterns):
            continue
        special = side == "client" and case.startswith(_NEED_NO_CONTEXT)
        wanted.setdefault((group, special), []).append(case)
    return [Batch(side, tuple(cases), special) for (_, special), cases in wanted.items()]
