"""What galleries in folders and in Milvus refuse alike, in the same words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rga_reid.errors import InputError
from rga_reid.retrieval.model_record import ModelRecord, is_same_model
from rga_reid.retrieval.places import MilvusPlace

if TYPE_CHECKING:
    from rga_reid.retrieval.indexes import IndexPlan


def require_some(count: int) -> None:
    """Refuse to make a gallery of no row."""
    if count == 0:
        raise InputError("features: expected at least one row, got an empty gallery")


def no_numbers() -> InputError:
    """What to tell of vectors that are not finite, as a stranger's gallery may hold."""
    return InputError("the gallery holds vectors that are no numbers: gallery verify tells where")


def require_dimension(found: int, before: int) -> None:
    """Refuse rows of another length than those that a build took before."""
    if found != before:
        raise InputError(f"features: of dimension {found}, but those before of {before}")


def require_held(column: str, wanted: Iterable[Any], held: Iterable[Any]) -> None:
    """Refuse to remove what the gallery does not have.

    Args:
        column: ``pid`` or ``path``.
        wanted: the values to be removed.
        held: those that there are, or some that hold all of them.
    """
    known = set(held)
    for value in wanted:
        if value not in known:
            raise InputError(f"{column} {value}: the gallery has no image of it; nothing was removed")


def no_camera_known(camera: int) -> InputError:
    """To be raised where a camera is to be left out of a gallery that knows none."""
    return InputError(f"exclude_camera {camera}: this gallery knows the camera of no image")


def require_finished(place: Path | MilvusPlace, unfinished: bool, *, overwrite: bool, resume: bool) -> None:
    """Refuse to begin a build where another was interrupted, unless it is said what becomes of that one."""
    if unfinished and not (overwrite or resume):
        raise InputError(f"{place}: holds an unfinished build; --resume goes on, --overwrite starts over")


def require_same_model(place: Path | MilvusPlace, old: ModelRecord | None, new: ModelRecord | None) -> None:
    """Refuse to go on with a build that another model began."""
    if not is_same_model(old, new):
        raise InputError(f"{place}: the unfinished build used another model; --overwrite starts over")


def require_same_index(place: MilvusPlace, old: IndexPlan, new: IndexPlan) -> None:
    """Refuse to go on with a build that another index was chosen for: Milvus makes it with the first rows."""
    if old != new:
        given = ", ".join([old.kind, *(f"{name} {value}" for name, value in old.settings.items())])
        raise InputError(f"{place}: the unfinished build has index {given}; --overwrite starts over")
