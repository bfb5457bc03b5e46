"""How a gallery lies in Milvus: which collections it has, and what is noted of it.

``NAME`` is a collection of notes: number 0 says what the gallery is and which collection holds its images,
``NAME__images_1``, ``NAME__images_2``, ...; number 1 is the same of an unfinished build; from 2 on they are
the log of removals. Replacing note 0 switches from one state to the next at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from rga_reid.errors import InputError
from rga_reid.inputs import shortened
from rga_reid.retrieval.contents import Removal
from rga_reid.retrieval.indexes import IndexPlan
from rga_reid.retrieval.manifest import FORMAT, METRIC
from rga_reid.retrieval.milvus_server import MilvusServer
from rga_reid.retrieval.model_record import ModelRecord, is_same_model
from rga_reid.retrieval.places import IMAGES, MilvusPlace

VERSION = 2  #: raised when an older program could no longer read the collections
CURRENT, UNFINISHED, FIRST_REMOVAL = 0, 1, 2  #: numbers of notes


@dataclass(frozen=True)
class State:
    """What note 0 says of a gallery.

    Args:
        generation: number of the collection of its images.
        dimension, plan, model, next_id: as in ``Contents``.
    """

    generation: int
    dimension: int
    plan: IndexPlan
    model: ModelRecord | None
    next_id: int = 0

    def is_like(self, other: State) -> bool:
        """Whether features of one model fit both."""
        return is_same_model(self.model, other.model) and self.dimension == other.dimension

    def to_text(self) -> str:
        """As JSON."""
        plan = {"kind": self.plan.kind, "settings": dict(self.plan.settings)}
        model = None if self.model is None else self.model.to_json()
        known = {"format": FORMAT, "version": VERSION, "metric": METRIC}
        return json.dumps({**known, **asdict(self), "plan": plan, "model": model})

    @classmethod
    def from_text(cls, text: str, place: MilvusPlace) -> State:
        """What ``to_text`` wrote.

        Raises:
            InputError: another text.
        """
        try:
            value = json.loads(text)
            if (value["format"], value["version"], value["metric"]) != (FORMAT, VERSION, METRIC):
                raise ValueError(f"version {value['version']}; this program reads {VERSION}")
            return cls(
                int(value["generation"]),
                int(value["dimension"]),
                IndexPlan(value["plan"]["kind"], value["plan"]["settings"]),
                None if value["model"] is None else ModelRecord.from_json(value["model"]),
                int(value["next_id"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{place}: not a gallery of this program ({shortened(error)})") from None


def images_name(name: str, generation: int) -> str:
    """The collection of a gallery's images."""
    return f"{name}{IMAGES}{generation}"


def clean(server: MilvusServer, state: State) -> None:
    """Delete the collections of images that a gallery's state does not name: of writes that were killed."""
    name = server.place.collection
    if server.notes(name).get(UNFINISHED):
        server.write_notes(name, {UNFINISHED: ""})
    ours = re.compile(rf"{re.escape(name + IMAGES)}[0-9]+")  # a name that no gallery can have
    for other in server.collections():
        if ours.fullmatch(other) and other != images_name(name, state.generation):
            server.drop(other)


def log_notes(server: MilvusServer, name: str, removals: Iterable[Removal]) -> dict[int, str]:
    """Notes that carry on the log of removals."""
    first = max([FIRST_REMOVAL - 1, *server.notes(name)]) + 1
    return {number: removal.to_line() for number, removal in enumerate(removals, first)}


def read_log(notes: Mapping[int, str], place: MilvusPlace) -> tuple[Removal, ...]:
    """The log of removals.

    Raises:
        InputError: a note that ``log_notes`` did not write.
    """
    try:
        return tuple(Removal.from_line(notes[key]) for key in sorted(notes) if key >= FIRST_REMOVAL)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{place}: damaged: not a log of removals ({shortened(error)})") from None


def unused_generation(server: MilvusServer, name: str) -> int:
    """A number that no collection of a gallery's images has."""
    prefix = name + IMAGES
    numbers = [other.removeprefix(prefix) for other in server.collections() if other.startswith(prefix)]
    return max([0, *(int(number) for number in numbers if number.isdecimal())]) + 1
