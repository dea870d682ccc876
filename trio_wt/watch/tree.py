"""The task tree of the running Trio program, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

__all__ = ["render_task_tree"]


def render_task_tree(root: trio.lowlevel.Task | None = None) -> str:
    """Draw tasks under the nurseries that run them, one line a task.

    Args:
        root: where to begin; None for the program's main task. Trio's own system tasks are left out then.

    Raises:
        RuntimeError: Trio does not run in this thread.
    """
    if root is None:
        root = _main_task()
    return "\n".join([_name(root), *_lines(root, "")])


def _main_task() -> trio.lowlevel.Task:
    task: trio.lowlevel.Task = trio.lowlevel.current_task()
    init = trio.lowlevel.current_root_task()
    while task.parent_nursery is not None and task.parent_nursery.parent_task is not init:
        task = task.parent_nursery.parent_task
    return task


def _name(task: trio.lowlevel.Task) -> str:
    name = task.name
    if isinstance(name, str):
        return name.rpartition(".")[2] if "<locals>" in name else name
    describe: Callable[[object], str] = repr
    return describe(name)


def _lines(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    nurseries = [nursery for nursery in task.child_nurseries if nursery.child_tasks]
    for i, nursery in enumerate(nurseries):
        last_nursery = i == len(nurseries) - 1
        yield f"{indent}{'└─' if last_nursery else '├─'} nursery"
        inner = indent + ("   " if last_nursery else "│  ")
        children = sorted(nursery.child_tasks, key=_name)
        for j, child in enumerate(children):
            last = j == len(children) - 1
            yield f"{inner}{'└─' if last else '├─'} {_name(child)}"
            yield from _lines(child, inner + ("   " if last else "│  "))
