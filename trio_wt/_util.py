"""Small helpers that know nothing of any protocol."""

from __future__ import annotations

from collections.abc import Awaitable

import trio

__all__ = ["Wakeup", "safe_text"]


class Wakeup:
    """Parks one task until another wakes it: the cheapest wait Trio has.

    A wake-up with nobody parked is not remembered: whoever parks checks its condition first, and nothing runs in
    between. Two tasks may not park at once; that is the owner's to prevent.

    Attributes:
        task: the task that is parked.
    """

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: trio.lowlevel.Task | None = None

    @property
    def parked(self) -> bool:
        """Whether a task is waiting."""
        return self.task is not None

    def park(self) -> Awaitable[None]:
        """Wait for `wake`; to be called and awaited in one. A checkpoint."""
        # Not async itself: that would cost each idle connection two more frames.
        self.task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Let the parked task go on, if there is one."""
        task = self.task
        if task is not None:
            self.task = None
            trio.lowlevel.reschedule(task)


def safe_text(text: str, limit: int = 200) -> str:
    """What a peer sent, fit for one line of a log: control characters escaped, cut after ``limit``."""
    cut = text[:limit]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return escaped + ("..." if len(text) > limit else "")
