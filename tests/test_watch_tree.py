"""The picture of the task tree."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from trio_wt.testing import websocket_pair
from trio_wt.watch import render_task_tree


async def leaf() -> None:
    await trio.sleep_forever()


async def branch() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaf, name="second leaf")
        nursery.start_soon(leaf, name="first leaf")
        await trio.sleep_forever()


async def twice(ready: trio.Event) -> None:
    """A task with two nurseries."""
    async with trio.open_nursery() as outer, trio.open_nursery() as inner:
        outer.start_soon(leaf, name="outer leaf")
        inner.start_soon(branch, name="a branch")
        await trio.testing.wait_all_tasks_blocked()
        ready.set()
        await trio.sleep_forever()


async def test_tasks_are_drawn_under_the_nurseries_that_run_them() -> None:
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(twice, ready, name="the task")
        nursery.start_soon(leaf, name="z leaf")
        await ready.wait()
        (root,) = [task for task in nursery.child_tasks if task.name == "the task"]
        assert render_task_tree(root).splitlines() == [
            "the task",
            "├─ nursery",
            "│  └─ outer leaf",
            "└─ nursery",
            "   └─ a branch",
            "      └─ nursery",
            "         ├─ first leaf",
            "         └─ second leaf",
        ]
        tree = render_task_tree()
        nursery.cancel_scope.cancel()
    # From the main task on, and nothing above it.
    lines = tree.splitlines()
    assert lines[0] == trio.lowlevel.current_task().name.rpartition(".")[2]
    assert lines[1:3] == ["└─ nursery", "   ├─ the task"]
    assert lines[-1] == "   └─ z leaf"
    assert "   │  ├─ nursery" in lines
    assert "<init>" not in tree


async def test_a_task_alone_is_one_line() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaf, name="alone")
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        assert render_task_tree(task) == "alone"
        nursery.cancel_scope.cancel()


async def test_an_empty_nursery_is_left_out() -> None:
    task = trio.lowlevel.current_task()
    async with trio.open_nursery():
        assert len(render_task_tree(task).splitlines()) == 1


async def test_it_begins_at_the_main_task_wherever_it_is_called() -> None:
    trees: list[str] = []

    async def deep() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deepest, name="deepest")

    async def deepest() -> None:
        trees.append(render_task_tree())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deep)
    (tree,) = trees
    assert tree.splitlines()[1:] == [
        "└─ nursery",
        "   └─ deep",
        "      └─ nursery",
        "         └─ deepest",
    ]


async def test_names_are_short_for_local_functions_and_whole_for_others() -> None:
    async def local() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(local)
        nursery.start_soon(leaf)
        await trio.testing.wait_all_tasks_blocked()
        lines = render_task_tree(trio.lowlevel.current_task()).splitlines()
        nursery.cancel_scope.cancel()
    names = [line.partition("─ ")[2] for line in lines[2:]]
    assert names == ["local", "tests.test_watch_tree.leaf"]


async def test_a_websocket_shows_its_reader_and_writer() -> None:
    async with websocket_pair():
        tree = render_task_tree()
    assert tree.count("trio_wt reader") == tree.count("trio_wt writer") == 2


def test_outside_of_trio_there_is_nothing_to_draw() -> None:
    with pytest.raises(RuntimeError):
        render_task_tree()


def test_other_threads_are_outside_too() -> None:
    outcomes: list[object] = []

    def draw() -> None:
        try:
            outcomes.append(render_task_tree())
        except RuntimeError as exc:
            outcomes.append(type(exc))

    async def main() -> None:
        thread = threading.Thread(target=draw)
        thread.start()
        await trio.to_thread.run_sync(thread.join)

    trio.run(main)
    assert outcomes == [RuntimeError]
