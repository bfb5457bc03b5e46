"""The audit log: who searched, added, labelled and erased, without pictures and vectors."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from typing import Any

from rga_reid.files import DiskError
from rga_reid.serving.auth import Caller

MAX_BYTES = 10 << 20  #: size at which the file is renamed to NAME.1, NAME.1 to NAME.2, and so on
KEPT = 9  #: renamed files that are kept


class AuditLog:
    """Lines of JSON: time in UTC, name of the token, action, filter, and counts.

    Args:
        path: file, to which lines are appended; None for no log.
        max_bytes: size at which the file is rotated.
        kept: number of older files.

    Raises:
        DiskError: the file cannot be written.
    """

    def __init__(self, path: str | None, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._handler: RotatingFileHandler | None = None
        if path is not None:
            try:
                self._handler = RotatingFileHandler(
                    path, maxBytes=max_bytes, backupCount=kept, encoding="utf-8"
                )
            except OSError as error:
                raise DiskError.of(path, error) from None

    def write(self, caller: Caller, action: str, where: str | None = None, **counts: Any) -> None:
        """Append a line.

        Args:
            caller: who did it.
            action: what was done: search, verify, embed, explain, list, add, label, update, erase, check, compact,
                maintain.
            where: filter, if there was one.
            counts: numbers of images and results; pid of a label.
        """
        if self._handler is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "token": caller.name, "action": action, "where": where, **counts}
        text = json.dumps(line, ensure_ascii=False)
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            self._handler.close()
