"""Sphinx directive ``command-help``: the options of a command, as ``rga-reid COMMAND --help`` prints them.

The text comes from the parser when the site is built, so that it always describes the current code.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

WIDTH = 100  #: characters of a line


def help_texts(command: str) -> list[str]:
    """Return the help of a command, and of each of its actions, such as ``gallery build``."""
    parser = importlib.import_module(f"rga_reid.commands.{command}").parser()
    with patch.dict(os.environ, COLUMNS=str(WIDTH)):  # which argparse reads
        return [one.format_help() for one in [*_actions(parser)] or [parser]]


def _actions(parser: Any) -> Iterator[Any]:
    for action in parser._actions:
        if isinstance(action.choices, dict):  # subcommands by name
            yield from action.choices.values()


class CommandHelp(Directive):
    """Insert the help of the command that is the argument."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a literal block for the command, or for each of its actions."""
        return [nodes.literal_block(text, text, language="text") for text in help_texts(self.arguments[0])]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
