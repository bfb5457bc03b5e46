"""Options of commands that open a gallery, for galleries on a Milvus server."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.errors import InputError

_SCHEME = "milvus://"
_GALLERIES = ("gallery", "other")  # options that name one
_PREFIX = "milvus_"
_OPTIONS = {
    "user": ("NAME", "user (default: $MILVUS_USER, or root)"),
    "password": ("TEXT", "password (default: $MILVUS_PASSWORD, which other users of the machine cannot see)"),
    "token": ("TEXT", "instead of both: USER:PASSWORD or an API key (default: $MILVUS_TOKEN)"),
    "db_name": ("NAME", "database (default: that of the server)"),
    "server_pem_path": ("FILE", "TLS: certificate of the server, or of the authority that signed it"),
    "ca_pem_path": ("FILE", "TLS with a client certificate: certificate of the authority"),
    "client_pem_path": ("FILE", "TLS with a client certificate: the certificate"),
    "client_key_path": ("FILE", "TLS with a client certificate: its key"),
    "server_name": ("NAME", "TLS: name in the certificate, if it is not the host"),
    "consistency_level": (
        "LEVEL",
        "consistency of searches: Strong (default), Session, Bounded or Eventually",
    ),
}


def add_milvus_options(parser: ArgumentParser) -> None:
    """Add the options of a connection to Milvus, which are named as the arguments of ``pymilvus.MilvusClient``."""
    group = parser.add_argument_group("Milvus server, see docs/milvus.md")
    group.add_argument(
        "--milvus-uri",
        metavar="URI",
        help="address, such as https://HOST:19530; --gallery is then the name of a collection",
    )
    group.add_argument("--milvus-secure", action="store_true", help="use TLS, as https:// does")
    for name, (metavar, meaning) in _OPTIONS.items():
        group.add_argument(f"--milvus-{name.replace('_', '-')}", metavar=metavar, help=meaning)


def locate_galleries(options: Namespace) -> None:
    """Replace the galleries on Milvus servers in parsed options by locations that know how to connect.

    Raises:
        InputError: an option of Milvus without such a gallery, or a value that is not accepted.
    """
    for value in list(vars(options).values()):
        if isinstance(value, Namespace):
            locate_galleries(value)
    if f"{_PREFIX}uri" not in options:
        return
    names = ["uri", "secure", *_OPTIONS]
    given: dict[str, Any] = {name: options.pop(_PREFIX + name) for name in names}
    given = {name: value for name, value in given.items() if value}
    found = False
    for key in _GALLERIES:
        location = options.get(key)
        if location is not None and ("uri" in given or location.startswith(_SCHEME)):
            options[key], found = _locate(location, given), True
    if given and not found:
        option = f"--milvus-{next(iter(given)).replace('_', '-')}"
        raise InputError(f"{option}: goes with --milvus-uri, or with a gallery milvus://HOST:PORT/COLLECTION")


def _locate(location: str, given: dict[str, Any]) -> Any:
    from rga_reid.gallery.milvus_uri import MilvusURI, parse_milvus

    others = {name: value for name, value in given.items() if name != "uri"}
    if location.startswith(_SCHEME):
        return parse_milvus(location, **others)
    return MilvusURI(given["uri"], location, **others)
