"""Where a gallery is: a folder, or a collection in Milvus."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rga_reid.errors import InputError

SCHEME, EMBEDDED = "milvus://", ".db"
_CLUSTER = re.compile(
    r"milvus://(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})/(?P<name>[A-Za-z_]\w*)"
)
IMAGES = "__images_"  #: in the names of collections that belong to a gallery; no gallery is called so
_LONGEST = 200  # characters of a collection's name: of 255, some are for the names of its companions


@dataclass(frozen=True)
class MilvusURI:
    """A collection in Milvus.

    Args:
        uri: of the server, or the path of an embedded one.
        collection: its name.
        embedded: whether the data are files of this machine.
    """

    uri: str
    collection: str
    embedded: bool

    def __str__(self) -> str:
        return self.uri if self.embedded else f"{self.uri.replace('http://', SCHEME)}/{self.collection}"


def parse_location(location: str | os.PathLike[str]) -> Path | MilvusURI:
    """The place that a location names.

    Raises:
        InputError: a cluster's location that cannot be read.
    """
    text = os.fspath(location)
    if text.startswith(SCHEME):
        parts = _CLUSTER.fullmatch(text)
        if parts is None or len(parts["name"]) > _LONGEST or not 0 < int(parts["port"]) < 65_536:
            raise InputError(
                f"{text}: expected milvus://HOST:PORT/COLLECTION, such as milvus://localhost:19530/people"
            )
        if IMAGES in parts["name"]:
            raise InputError(
                f"{text}: expected a name without {IMAGES!r}, which names the images of a gallery"
            )
        return MilvusURI(f"http://{parts['host']}:{parts['port']}", parts["name"], embedded=False)
    if text.endswith(EMBEDDED):
        return MilvusURI(os.path.abspath(text), "gallery", embedded=True)
    return Path(text)
