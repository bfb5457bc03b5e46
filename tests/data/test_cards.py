"""Cards: the bundled ones say what is published, wrong ones are refused by card and key."""

import re

import pytest
import yaml

from rga_reid.data import Card, load_card
from rga_reid.data.cards import Source, Split
from rga_reid.errors import InputError
from rga_reid.resources import find_resource, list_resources

SPLITS = ("train", "query", "gallery")
VALID = {
    "name": "mine",
    "title": "Mine",
    "layout": "names",
    "pattern": r"(?P<pid>\d+)_(?P<camid>\d)\.jpg",
    "splits": {"train": {"sources": [{"folder": "train"}], "images": 3}},
}


def written(tmp_path, value):
    path = tmp_path / "mine.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return path


def changed(**keys):
    return {**VALID, **keys}


def with_split(**keys):
    return changed(splits={"train": {**VALID["splits"]["train"], **keys}})


#: Images and identities of train, query and gallery as published
PUBLISHED = {
    "market1501": [(12_936, 751), (3_368, 750), (19_732, 750)],
    "msmt17": [(32_621, 1_041), (11_659, 3_060), (82_161, 3_060)],
    "cuhk03_labeled": [(7_368, 767), (1_400, 700), (5_328, 700)],
    "cuhk03_detected": [(7_365, 767), (1_400, 700), (5_332, 700)],
    "market1501_500k": [(12_936, 751), (3_368, 750), (519_732, 750)],
    "dukemtmc": [(16_522, 702), (2_228, 702), (17_661, 1_110)],
    "occluded_duke": [(15_618, 702), (2_210, 519), (17_661, 1_110)],
    "mars": [(509_914, 625), (114_493, 626), (681_089, 634)],
    "ltcc": [(9_576, 77), (493, 75), (7_050, 75)],
    "prcc": [(17_896, 150), (None, 71), (None, 71)],
    "sysu_mm01": [(34_167, 395), (3_803, 96), (6_775, 96)],
    "veri776": [(None, None), (1_678, 200), (11_579, 200)],
}
CAMERAS = {"market1501": 6, "msmt17": 15, "dukemtmc": 8, "occluded_duke": 8, "mars": 6, "ltcc": 12, "prcc": 3}
CAMERAS |= {"sysu_mm01": 6, "veri776": 20}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    card = load_card(name)
    counts = [(card.splits[split].images, card.splits[split].identities) for split in SPLITS]
    assert counts == PUBLISHED[name]
    assert card.cameras == CAMERAS.get(name.removesuffix("_500k"), 2)
    gallery = card.splits["gallery"]
    if name == "market1501":
        assert (gallery.junk, gallery.distractors) == (3_819, 2_798)
        assert (card.junk_pids, card.distractor_pids) == ((-1,), (0,))
    elif name == "market1501_500k":
        assert gallery.distractors == 502_798


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("0002_c1s1_000451_03.jpg", ("0002", "1")),
        ("-1_c6s3_094992_04.jpg.jpg", ("-1", "6")),
        ("0000_c1s6_023071_04.jpg.jpg", ("0000", "1")),
        ("1501_c6s4_001902_01.jpg", ("1501", "6")),
        ("0002_c1s1_000451_03.png", None),
        ("0002_c1s1_000451_03.jpg.part", None),
        ("x0002_c1s1_000451_03.jpg", None),
        ("00020_c1s1_000451_03.jpg", None),
        ("0002_c12s1_000451_03.jpg", None),
    ],
)
def test_market1501_names(name, numbers):
    match = re.fullmatch(load_card("market1501").pattern, name)
    assert (match and (match["pid"], match["camid"])) == numbers


def test_every_bundled_card_loads_under_its_own_name():
    assert {"market1501", "folders"} <= set(list_resources("datasets"))
    for name in list_resources("datasets"):
        assert load_card(name).name == name


def test_counts_name_their_source():
    for name in set(list_resources("datasets")) - {"folders", "synthetic"}:  # not published
        card = load_card(name)
        assert card.counts_from
        assert card.citation
        assert card.url
        assert card.terms


def test_a_random_split_is_chosen_by_its_number(tmp_path):
    path = written(tmp_path, changed(splits={}))
    value = changed(
        random_split={"test_identities": 2}, splits=dict.fromkeys(SPLITS[1:], VALID["splits"]["train"])
    )
    path = written(tmp_path, value)
    for name, source in (("viper", "viper"), (str(path), path)):
        numbers = [load_card(f"{name}:{number}").random_split.number for number in ("0", "7", "all")]
        assert numbers == [0, 7, None]
        assert load_card(source).random_split.number == 0
    for name in ("market1501:1", "market1501:all"):
        with pytest.raises(InputError, match="market1501: has fixed splits"):
            load_card(name)
    with pytest.raises(InputError, match="viper:x"):
        load_card("viper:x")


def test_a_card_by_path_by_text_and_as_it_is(tmp_path):
    path = written(tmp_path, VALID)
    card = load_card(path)
    assert card == load_card(str(path)) == load_card(card)
    assert card.splits == {"train": Split((Source(("train",)),), images=3)}
    assert load_card(find_resource("datasets", "market1501")) == load_card("market1501")


def without(key):
    return {name: value for name, value in VALID.items() if name != key}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "the file: expected keys and values, got None"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (without("title"), "title: this key is missing"),
        (changed(tittle="x"), r"tittle: unknown key; did you mean title\?"),
        (changed(title=" "), "title: expected a text"),
        (changed(cameras="six"), r"cameras: expected a count \(a whole number, not negative\), got 'six'"),
        (changed(junk_pids=-1), "junk_pids: expected a list .*, got -1"),
        (changed(layout="flat"), "layout: expected one of .*cuhk03.*, got 'flat'"),
        (changed(pattern="(?P<pid>"), "pattern: not a regular expression"),
        (without("pattern"), "pattern: the layout 'names' needs a pattern"),
        (changed(pattern=r"(?P<pid>\d+)(?P<cam>\d)"), "pattern: the column 'cam' .*camid"),
        (changed(pattern=r"(?P<pid>\d+)(?P<split>\d)"), "pattern: the column 'split'"),
        (with_split(sources=[{"folder": "a", "columns": {"cloths": 1}}]), r"columns: .*'cloths' .*clothes"),
        (with_split(sources=[{"folder": "a", "columns": {"a b": 1}}]), r"columns: .*'a b'"),
        (
            with_split(sources=[{"folder": "a", "columns": {"clothes": [1]}}]),
            r"columns: expected a whole number",
        ),
        (
            with_split(sources=[{"folder": "a", "camid": None}]),
            r"sources\[0\]\.camid: expected a whole number",
        ),
        (with_split(sources=[{"folder": "a", "pattern": "x"}]), r"sources\[0\]\.pattern: .*needs a pattern"),
        (changed(random_split={"test_identities": 2}), "random_split: expected the splits query and gallery"),
        (changed(random_split={"test_identities": 0}), "random_split.test_identities"),
        (changed(random_split={}), "random_split.test_identities: this key is missing"),
        (changed(splits={}), "splits: expected at least one of train, query, gallery"),
        (changed(splits={"test": VALID["splits"]["train"]}), r"splits\.test: unknown split"),
        (changed(splits={"train": {}}), r"splits\.train\.sources: this key is missing"),
        (with_split(optional="yes"), r"splits\.train\.optional: expected true or false"),
        (with_split(sources="train"), r"splits\.train\.sources: expected a list of sources"),
        (with_split(sources=[]), r"splits\.train\.sources: expected at least one source"),
        (with_split(sources=[{"folder": 3}]), r"sources\[0\]\.folder: expected a folder name"),
        (with_split(sources=[{"folder": "/etc"}]), r"sources\[0\].*within the data set's root, got '/etc'"),
        (with_split(sources=[{"folder": "a/../.."}]), "within the data set's root"),
        (with_split(sources=[{"folder": "a", "list": "b.txt"}]), r"list: the layout 'names' does not take"),
        (
            {**with_split(sources=[{"folder": "a"}]), "layout": "lists"},
            r"splits\.train\.sources\[0\]\.list: the layout 'lists' needs a list file",
        ),
    ],
)
def test_a_wrong_card_is_refused_by_card_and_key(tmp_path, value, words):
    path = written(tmp_path, value)
    with pytest.raises(InputError, match=words) as error:
        load_card(path)
    assert "mine" in str(error.value)


def test_a_card_made_in_python_validates_itself():
    with pytest.raises(InputError, match="card x: layout"):
        Card("x", "X", "nothing", {"train": Split((Source(("train",)),))})
