"""What a run does to its folder first, once nothing can keep it from training any more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from rga_reid.files import make_folder, write_text
from rga_reid.signals import undisturbed

_EARLIER = ".earlier-"  # before the name of a version of the logs that may come back
#: In the folder of a run that has not begun, seen by all its processes. It holds the configuration, so that a
#: disk without room is found at once, before loggers write in threads of theirs.
_MARK = ".beginning"


class Beginning(Callback):
    """Replaces what an earlier run left when the first step is due, and not before.

    Until then images are decoded and options meet the data, and anything may turn out to be wrong. A run
    that does not begin leaves its folder as it found it.

    Args:
        folder: of the run.
        logs: folders of logs, each with versions ``version_N``.
        replaced: files of an earlier run that go, and with them all versions of its logs; None for a run that
            goes on with them.
        config: a file, and its text, that tell how the run was made.
    """

    def __init__(
        self,
        folder: Path,
        logs: Sequence[Path],
        *,
        replaced: Sequence[Path] | None,
        config: tuple[Path, str] | None,
    ) -> None:
        self.folder, self.logs, self.replaced, self.config = folder, logs, replaced, config

    @property
    def begun(self) -> bool:
        """Whether the first step was due, in whichever process."""
        return not (self.folder / _MARK).exists()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Around the run, in the process that writes.

        Raises:
            DiskError: the folder cannot be made, or has no room.
        """
        places = [*self.logs, self.folder, *self.folder.parents]
        made = [place for place in places if not place.exists()]
        make_folder(self.folder)
        self._tidy()
        write_text(self.folder / _MARK, "" if self.config is None else self.config[1])
        kept = {version for log in self.logs for version in log.glob("version_*")}
        try:
            if self.replaced is not None:
                for version in kept:  # loggers count on from the versions that are there
                    os.replace(version, _earlier(version))
            yield
        finally:
            if not self.begun:
                with undisturbed():
                    self._put_back(kept, made)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        mark = self.folder / _MARK
        if self.config is None:
            mark.unlink()
        else:
            os.replace(mark, self.config[0])
        for file in self.replaced or ():
            file.unlink(missing_ok=True)
        for log in self.logs:
            for version in log.glob(f"{_EARLIER}version_*"):
                _remove(version)

    def _tidy(self) -> None:
        """Put right what a run left that was killed: before it began, or while it removed the earlier one."""
        for log in self.logs:
            for earlier in log.glob(f"{_EARLIER}version_*"):
                version = earlier.with_name(earlier.name.removeprefix(_EARLIER))
                if self.begun:
                    _remove(earlier)
                    continue
                if os.path.lexists(version):
                    _remove(version)
                os.replace(earlier, version)

    def _put_back(self, kept: set[Path], made: Sequence[Path]) -> None:
        for log in self.logs:
            for version in set(log.glob("version_*")) - (kept if self.replaced is None else set()):
                _remove(version)
        for version in kept:
            if os.path.lexists(_earlier(version)):
                os.replace(_earlier(version), version)
        (self.folder / _MARK).unlink()
        for place in made:
            with suppress(OSError):  # it was not made, or holds something now
                place.rmdir()


def _earlier(version: Path) -> Path:
    return version.with_name(_EARLIER + version.name)


def _remove(version: Path) -> None:
    if version.is_dir() and not version.is_symlink():
        shutil.rmtree(version)
    else:
        version.unlink()
