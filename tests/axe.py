"""Faults of accessibility that axe-core finds in a page in a browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

#: `npm install --prefix build axe-core` puts it there; the variable AXE_CORE names another file
AXE_CORE = Path(__file__).parents[1] / "build" / "node_modules" / "axe-core" / "axe.min.js"
_RUN = """
const done = arguments[0];
axe.run(document, { resultTypes: ["violations"] }).then(
  ({ violations }) => done(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html.slice(0, 200))])),
  (error) => done([[String(error), []]]),
);
"""


def find_faults(browser: Any) -> list[list[Any]]:
    """Return the rules of axe-core that the open page breaks, WCAG 2.2 AA among them, each with its elements.

    Skips the test if axe-core is not installed.
    """
    script = Path(os.environ.get("AXE_CORE", AXE_CORE))
    if not script.is_file():
        pytest.skip("axe-core not found: npm install --prefix build axe-core")
    browser.set_script_timeout(600)
    browser.execute_script(script.read_text(encoding="utf-8"))
    return list(browser.execute_async_script(_RUN))
