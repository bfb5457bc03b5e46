"""Addresses of Milvus, and the options of commands that contain them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from rga_reid.commands import main
from rga_reid.commands._milvus import add_milvus_options, locate_galleries
from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.gallery.location import parse_location
from rga_reid.gallery.milvus_uri import MilvusURI

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MILVUS_TOKEN", "MILVUS_USER", "MILVUS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("uri", "address", "fields"),
    [
        ("http://host:1234", "http://host:1234", {}),
        ("tcp://host", "http://host:19530", {}),
        ("https://host", "https://host:443", {"secure": True}),
        ("http://[::1]:1234/", "http://[::1]:1234", {}),
        ("http://host:1/base", "http://host:1", {"db_name": "base"}),
        (
            f"https://ann:{SECRET}%2F%40@h-1.lan:1",
            "https://h-1.lan:1",
            {"user": "ann", "password": f"{SECRET}/@", "secure": True},
        ),
        (f"http://{SECRET}@host:1", "http://host:1", {"token": SECRET}),
    ],
)
def test_an_address_is_split_into_fields(uri: str, address: str, fields: dict[str, Any]) -> None:
    found = MilvusURI(uri, "people")
    expected = {"uri": address, "user": "", "password": "", "token": "", "db_name": "", "secure": False}
    assert {name: getattr(found, name) for name in expected} == expected | fields
    assert SECRET not in repr(found) + str(found)
    assert parse_location(found).target is found
    assert parse_location(str(found)).target.db_name == found.db_name


@pytest.mark.parametrize(
    "uri",
    [
        "host:1234",
        "ftp://host",
        f"http://a:{SECRET}@host:99999",
        f"http://a:{SECRET}@ho st:1",
        f"http://a:{SECRET}@host:1/a/b",
        f"http://a:{SECRET}@host:1/b?x=1",
        f"//a:{SECRET}@host",
        f"http://a:{SECRET}@",
    ],
)
def test_a_wrong_address_is_shown_without_the_password(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        MilvusURI(uri, "people")
    assert uri.rpartition("@")[2] in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "rest", ["host/people", "host:99999/people", "host:1/", "host:1/a b", "host:1/a/b/c"]
)
def test_a_wrong_location_is_shown_without_the_password(rest: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_location(f"milvus://a:{SECRET}@{rest}")
    assert rest in str(caught.value)
    assert SECRET not in str(caught.value)


def test_names_certificates_and_levels_are_checked(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.touch()
    assert MilvusURI("http://host", "people", server_pem_path=str(pem)).secure
    for wrong in (
        {"collection": "a b"},
        {"collection": "x" * 201},
        {"consistency_level": "strong"},
        {"client_pem_path": str(pem)},
        {"client_pem_path": str(pem), "client_key_path": str(pem)},
        {"uri": "http://host/one", "db_name": "two"},
    ):
        with pytest.raises(InputError):
            MilvusURI(**{"uri": "http://host", "collection": "people", "password": SECRET, **wrong})
    with pytest.raises(InputError, match=r"none\.pem"):
        Gallery.open(MilvusURI("http://127.0.0.1:9", "people", server_pem_path=str(tmp_path / "none.pem")))


@pytest.mark.parametrize(
    ("fields", "variables", "token"),
    [
        ({}, {}, ""),
        ({}, {"MILVUS_TOKEN": "t", "MILVUS_PASSWORD": "p"}, "t"),
        ({}, {"MILVUS_PASSWORD": "p"}, "root:p"),
        ({}, {"MILVUS_USER": "u", "MILVUS_PASSWORD": "p"}, "u:p"),
        ({"user": "ann"}, {"MILVUS_TOKEN": "t", "MILVUS_USER": "u", "MILVUS_PASSWORD": "p"}, "ann:p"),
        ({"password": "q"}, {"MILVUS_TOKEN": "t", "MILVUS_USER": "u"}, "u:q"),
        ({"token": "mine", "user": "ann"}, {"MILVUS_TOKEN": "t"}, "mine"),
    ],
)
def test_the_token_is_the_given_one_or_that_of_the_environment(
    fields: dict[str, str], variables: dict[str, str], token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert MilvusURI("http://host", "people", **fields).read_token() == token


def locate(*words: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--gallery")
    add_milvus_options(parser)
    options = parser.parse_args(list(words))
    locate_galleries(options)
    return options


def test_options_become_a_location() -> None:
    words = ["--milvus-uri", "https://host:1", "--milvus-user", "ann", "--milvus-password", SECRET]
    words += ["--milvus-db-name", "base", "--milvus-consistency-level", "Bounded"]
    options = locate("--gallery", "people", *words)
    assert options.gallery == MilvusURI(
        "https://host:1",
        "people",
        user="ann",
        password=SECRET,
        db_name="base",
        consistency_level="Bounded",
    )
    assert SECRET not in str(options)
    options = locate("--gallery", f"milvus://ann:{SECRET}@host:1/people", "--milvus-secure")
    assert options.gallery == MilvusURI("https://host:1", "people", user="ann", password=SECRET)
    assert SECRET not in str(options)
    assert locate("--gallery", "folder").gallery == "folder"


def test_commands_take_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is done, since the gallery is a folder."""
    for words in (
        ["gallery", "info", "--gallery", "folder"],
        ["gallery", "build", "--gallery", "folder"],
        ["gallery", "merge", "folder", "other"],
        ["gallery", "group", "--gallery", "folder"],
        ["gallery", "watch", "--gallery", "folder", "--images", "a"],
        ["query", "--gallery", "folder", "--image", "a.jpg"],
        ["serve", "--gallery", "folder"],
    ):
        assert main([*words, "--milvus-password", SECRET]) == 2
        shown = capsys.readouterr().err
        assert "--milvus-password" in shown
        assert SECRET not in shown
        assert shown.count("\n") == 1
