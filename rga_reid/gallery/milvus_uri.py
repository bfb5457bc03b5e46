"""Addresses of galleries in Milvus, with everything that a connection needs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from rga_reid.errors import InputError, check_choice

SCHEME = "milvus://"
IMAGES = "__images_"  #: in the names of collections that belong to a gallery; no gallery has it in its name
CONSISTENCY_LEVELS = ("Strong", "Session", "Bounded", "Eventually")
TOKEN, USER, PASSWORD = "MILVUS_TOKEN", "MILVUS_USER", "MILVUS_PASSWORD"  #: environment variables

_PORT, _TLS_PORT = 19530, 443  # as pymilvus
_SCHEMES = ("milvus", "http", "tcp", "https")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[\w.-]+|[0-9a-fA-F:]+")
_MAX_NAME = 200  # characters of a collection's name: of 255, some are for the names of its companions


@dataclass(frozen=True)
class MilvusURI:
    """A gallery in Milvus: a collection on a server, or a folder of Milvus Lite. Accepted where a location is.

    Arguments are those of ``pymilvus.MilvusClient``. Without token, user and password, the environment variables
    ``MILVUS_TOKEN``, or ``MILVUS_USER`` and ``MILVUS_PASSWORD``, are read when it connects.

    Args:
        uri: address of the server, such as ``http://localhost:19530``; or path of Milvus Lite.
        collection: name of the gallery.
        embedded: whether the data are files of this machine (Milvus Lite).
        user, password: credentials for the server.
        token: instead of them, ``user:password`` or an API key.
        db_name: database; the server's default one if empty.
        secure: use TLS; implied by ``https://`` and by certificates.
        server_pem_path: certificate of the server, or of the authority that has signed it.
        ca_pem_path: certificate of the authority, where the client has a certificate too.
        client_pem_path, client_key_path: certificate and key of the client.
        server_name: name in the server's certificate, if it is not the host of the address.
        consistency_level: of searches: ``Strong`` sees everything that was written before. Changes are always
            strongly consistent.

    Raises:
        InputError: an address or a name that Milvus does not accept. The message never contains a password.
    """

    uri: str
    collection: str
    embedded: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    db_name: str = ""
    secure: bool = False
    server_pem_path: str = ""
    ca_pem_path: str = ""
    client_pem_path: str = ""
    client_key_path: str = ""
    server_name: str = ""
    consistency_level: str = "Strong"

    def __post_init__(self) -> None:
        check_choice("consistency_level", self.consistency_level, CONSISTENCY_LEVELS)
        if self.embedded:
            return
        self._parse_address()
        if _NAME.fullmatch(self.collection) is None or len(self.collection) > _MAX_NAME:
            raise InputError(
                f"{self}: expected a name of at most {_MAX_NAME} letters, digits and _, got {self.collection!r}"
            )
        if IMAGES in self.collection:
            raise InputError(
                f"{self}: expected a name without {IMAGES!r}, which marks the images of a gallery"
            )
        if bool(self.client_pem_path) != bool(self.client_key_path):
            raise InputError(f"{self}: client_pem_path and client_key_path go together")
        if self.client_pem_path and not self.ca_pem_path:
            raise InputError(f"{self}: client_pem_path goes with ca_pem_path")

    def _parse_address(self) -> None:
        """Leave host and port in ``uri``; user, password and database become fields."""
        shown = _without_password(self.uri)
        try:
            parts = urlsplit(self.uri)
            port = parts.port or (_TLS_PORT if parts.scheme == "https" else _PORT)
        except ValueError:
            parts, port = urlsplit(""), 0
        host, database = parts.hostname or "", parts.path.strip("/")
        if parts.scheme not in _SCHEMES or _HOST.fullmatch(host) is None or parts.query or parts.fragment:
            raise InputError(f"{shown}: expected an address such as http://localhost:19530")
        if database and (_NAME.fullmatch(database) is None or self.db_name not in ("", database)):
            raise InputError(f"{shown}: expected one database, got {database!r} and {self.db_name!r}")
        files = self.server_pem_path or self.ca_pem_path or self.client_pem_path
        secure = self.secure or parts.scheme == "https" or bool(files)
        found: dict[str, str | bool] = {"secure": secure, "db_name": database or self.db_name}
        if parts.password is not None:
            found |= {"user": unquote(parts.username or ""), "password": unquote(parts.password)}
        elif parts.username:
            found["token"] = unquote(parts.username)
        bracketed = f"[{host}]" if ":" in host else host
        found["uri"] = f"{'https' if secure else 'http'}://{bracketed}:{port}"
        for name, value in found.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def __str__(self) -> str:
        if self.embedded:
            return self.uri
        address = self.uri.partition("//")[2]
        return SCHEME + "/".join(part for part in (address, self.db_name, self.collection) if part)

    def __fspath__(self) -> str:
        return str(self)

    def read_token(self) -> str:
        """Return the token to connect with, from the fields or the environment; empty if none is set."""
        if self.token:
            return self.token
        password = self.password or os.environ.get(PASSWORD)
        known = f"{self.user or os.environ.get(USER) or 'root'}:{password}" if password else ""
        return known if self.user or self.password else os.environ.get(TOKEN) or known


def parse_milvus(text: str, **options: Any) -> MilvusURI:
    """Parse ``milvus://HOST:PORT/COLLECTION``.

    There may be ``USER:PASSWORD@`` before the host, and a database before the collection.

    Args:
        text: location.
        options: other arguments of ``MilvusURI``.

    Raises:
        InputError: another text; the message does not contain the password.
    """
    address, _, collection = text.rpartition("/")
    port = re.fullmatch(rf"{SCHEME}[^/]+:(\d{{1,5}})(/[^/]+)?", address)
    if port is None or not 0 < int(port[1]) < 65_536 or not _NAME.fullmatch(collection):
        shown = _without_password(text)
        raise InputError(
            f"{shown}: expected milvus://HOST:PORT/COLLECTION, such as milvus://localhost:19530/people"
        )
    return MilvusURI(address, collection, **options)


def _without_password(text: str) -> str:
    return re.sub(r"//.*@", "//", text)
