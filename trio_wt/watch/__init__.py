"""Looking at a running program: who runs under whom."""

from .tree import render_task_tree

__all__ = ["render_task_tree"]
