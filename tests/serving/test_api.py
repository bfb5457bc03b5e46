"""The API against the gallery in this process."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rga_reid.data.columns import plain_records
from rga_reid.gallery import Gallery
from rga_reid.models import load_model
from tests.serving.conftest import EMBEDDER, Served, draw

FEATURES = np.asarray(EMBEDDER.embed([draw(1, 9), draw(2, 9)]))


def encode(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def matches_of(answer: Any) -> list[list[dict[str, Any]]]:
    assert answer.status_code == 200, answer.text
    return [query["matches"] for query in answer.json()["queries"]]


def expected(served: Served, features: np.ndarray = FEATURES, top_k: int = 10, **options: Any) -> list[Any]:
    """Matches by ``Gallery.search`` in this process."""
    found = Gallery.open(served.location).search(features, top_k, with_ids=True, **options)
    answers: list[list[dict[str, Any]]] = [[] for _ in features]
    for match in plain_records(found):
        answers[match.pop("query")].append(match)
    return answers


# ---------- search ----------


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"where": "camera == 1 and time > '2026-11-20T10:05Z'"}]
)
def test_search_finds_what_the_gallery_finds(shared: Served, options: dict[str, Any]) -> None:
    wanted = expected(shared, **options)
    pictures = [draw(1, 9), draw(2, 9)]
    found = [
        shared.post("/v1/search", *pictures, **options),
        shared.http.post("/v1/search", json={"images": [encode(one) for one in pictures], **options}),
        shared.http.post("/v1/search", json={"features": FEATURES.tolist(), **options}),
    ]
    for answer in found:
        assert matches_of(answer) == wanted
    first = wanted[0][0]
    assert {"rank", "score", "id", "path", "pid", "camera", "camid", "time", "track", "zone"} == set(first)
    assert (first["pid"], first["rank"]) == (1, 1)
    assert first["time"].endswith("+00:00")


def test_several_pictures_of_one_person_are_one_query(shared: Served) -> None:
    mean = FEATURES.mean(axis=0, keepdims=True)
    answer = shared.post("/v1/search", draw(1, 9), draw(2, 9), multi="true", top_k=4)
    assert matches_of(answer) == expected(shared, mean, 4)


def test_groups_are_those_of_the_gallery(shared: Served) -> None:
    answer = shared.post("/v1/search", draw(1, 9), group_by="track", per_group=1, top_k=2).json()
    (query,) = answer["queries"]
    assert [match["id"] for match in query["matches"]] == [
        match["id"] for match in expected(shared, FEATURES[:1], 2, group_by="track", per_group=1)[0]
    ]
    assert [group["track"] for group in query["groups"]] == [match["track"] for match in query["matches"]]
    assert shared.post("/v1/search", draw(1, 9)).json()["queries"][0]["groups"] == []


def test_threshold_leaves_out_lower_scores(shared: Served) -> None:
    scores = [match["score"] for match in expected(shared, FEATURES[:1])[0]]
    answer = shared.post("/v1/search", draw(1, 9), threshold=scores[2])
    assert [match["score"] for match in matches_of(answer)[0]] == scores[:3]
    (nobody,) = shared.post("/v1/search", draw(1, 9), threshold=1).json()["queries"]
    assert (nobody["matches"], nobody["nobody"], nobody["best_score"]) == ([], True, scores[0])


def test_images_of_the_gallery_are_queries_that_do_not_find_themselves(shared: Served) -> None:
    gallery = Gallery.open(shared.location)
    vector = EMBEDDER.embed([draw(1, 0)])
    (found,) = matches_of(shared.http.post("/v1/search", json={"ids": [3], "top_k": 12}))
    others = gallery.search(vector, 12, with_ids=True, where="id != 3")
    assert [match["id"] for match in found] == others["id"].tolist()
    assert np.allclose([match["score"] for match in found], others["score"], atol=1e-6)
    both = shared.http.post(
        "/v1/search", json={"ids": [3, 6], "images": [encode(draw(1, 9))], "multi": True, "top_k": 12}
    )
    mean = np.mean([vector[0].numpy(), EMBEDDER.embed([draw(2, 0)])[0].numpy(), FEATURES[0]], axis=0)
    wanted = gallery.search(mean[None], 12, with_ids=True, where="id not in (3, 6)")
    assert [match["id"] for match in matches_of(both)[0]] == wanted["id"].tolist()


def test_images_of_another_person_drive_out_those_that_are_more_like_them(shared: Served) -> None:
    features = np.asarray(EMBEDDER.embed([draw(1, 9), draw(2, 0)]))
    vectors = np.asarray(EMBEDDER.embed([draw(person, shot) for person in range(4) for shot in range(3)]))
    scores, likeness = vectors @ features[0], vectors @ features[1]
    kept = {row for row in range(12) if scores[row] >= likeness[row] and row != 6}
    body = {"images": [encode(draw(1, 9))], "not_ids": [6], "top_k": 12}
    (found,) = matches_of(shared.http.post("/v1/search", json=body))
    assert {match["id"] for match in found} == kept
    assert {7, 8} & kept == set()
    assert [match["rank"] for match in found] == list(range(1, len(kept) + 1))


def test_images_of_another_person_beside_a_short_list(shared: Served) -> None:
    body = {"images": [encode(draw(1, 9))], "not_ids": [6], "top_k": 7, "rerank": True}
    (found,) = matches_of(shared.http.post("/v1/search", json={**body, "shortlist": 7}))
    (more,) = matches_of(shared.http.post("/v1/search", json={**body, "shortlist": 14}))
    assert [match["id"] for match in found] == [match["id"] for match in more]
    assert shared.http.post("/v1/search", json={**body, "shortlist": 6}).status_code == 422


def test_rerank_is_that_of_the_gallery(shared: Served) -> None:
    from rga_reid.evaluation import ReRanking

    answer = shared.post("/v1/search", draw(1, 9), rerank="true", top_k=5)
    assert matches_of(answer) == expected(shared, FEATURES[:1], 5, rerank=ReRanking())


def test_verify_and_embed_use_the_model(serve: Callable[..., Served]) -> None:
    from rga_reid.inference.verify import Threshold

    served = serve(threshold=Threshold(0.5))
    embedded = served.post("/v1/embed", draw(1, 9), draw(2, 9)).json()["features"]
    assert np.allclose(embedded, FEATURES, atol=1e-6)
    compared = served.post("/v1/verify", draw(1, 9), draw(2, 9)).json()
    assert compared["score"] == pytest.approx(float(FEATURES[0] @ FEATURES[1]), abs=1e-6)
    assert (compared["threshold"], compared["same"]) == (0.5, compared["score"] >= 0.5)
    assert served.post("/v1/verify", draw(1), draw(1), threshold="0.9").json()["same"] is True
    assert serve(read_only=True).post("/v1/verify", draw(1), draw(1)).json()["same"] is None


# ---------- images ----------


def test_added_crops_are_found_shown_and_erased(served: Served) -> None:
    crop = draw(7, kind="JPEG")
    rows = [{"pid": 70, "camera": 5, "time": "2026-11-21T08:00+01:00", "path": "../../etc/passwd"}, {}]
    answer = served.post("/v1/images", crop, draw(8), rows=json.dumps(rows))
    assert (answer.status_code, answer.json()) == (201, {"ids": [12, 13]})
    (found,) = matches_of(served.post("/v1/search", crop, top_k=1))
    assert (found[0]["id"], found[0]["path"], found[0]["pid"]) == (12, "../../etc/passwd", 70)
    assert found[0]["time"] == "2026-11-21T07:00:00+00:00"
    file = served.location.parent / "uploads" / (name := hashlib.sha256(crop).hexdigest())[:2] / f"{name}.jpg"
    assert file.read_bytes() == crop
    shown = served.http.get("/v1/images/12/thumbnail")
    assert shown.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(shown.content)).size == (32, 64)
    reopened = Gallery.open(served.location)  # by another program
    assert reopened.ids.tolist() == list(range(14))

    assert served.post("/v1/images", crop).json() == {"ids": [14]}
    assert served.http.request("DELETE", "/v1/images", json={"ids": [12]}).json() == {"deleted": 1}
    assert file.exists()  # image 14 has the same content
    assert served.http.get("/v1/images/12/thumbnail").status_code == 404
    assert served.http.get("/v1/images/14/thumbnail").status_code == 200
    assert served.http.delete("/v1/images", params={"where": "id = 14"}).json() == {"deleted": 1}
    assert not list(served.location.parent.glob(f"uploads/*/*{name}*"))


def test_features_are_added_without_a_picture(served: Served) -> None:
    path = str(served.location.parent / "pictures" / "0_0.png")
    body = {"features": (3 * FEATURES).tolist(), "rows": [{"path": path, "pid": None}, {"height": 1.8}]}
    assert served.http.post("/v1/images", json=body).json() == {"ids": [12, 13]}
    (found,) = matches_of(
        served.http.post("/v1/search", json={"features": FEATURES[1:].tolist(), "top_k": 1})
    )
    assert (found[0]["id"], found[0]["height"], found[0]["score"]) == (13, 1.8, pytest.approx(1))
    assert served.http.get("/v1/images/12/thumbnail").status_code == 404  # the path is a label


def test_thumbnails_are_files_below_the_images_root_only(serve: Callable[..., Served], people: Path) -> None:
    (root := people.parent / "other").mkdir()
    inside = root / "inside.png"
    inside.write_bytes(draw(3))
    (root / "link.png").symlink_to(people.parent / "pictures" / "0_0.png")
    gallery = Gallery.open(people)
    table = gallery.table.head(3)[["path"]].assign(path=[str(inside), str(root / "link.png"), "inside.png"])
    gallery.add(FEATURES[[0, 0, 0]], table)
    served = serve(images_root=root)
    status = [served.http.get(f"/v1/images/{id}/thumbnail").status_code for id in (0, 12, 13, 14)]
    assert status == [404, 200, 404, 200]
    served.engine.close()
    without = serve(read_only=True)
    assert without.http.get("/v1/images/12/thumbnail").status_code == 404


def test_labels_by_ids_and_by_filter(served: Served) -> None:
    patch = served.http.patch
    assert patch("/v1/images", json={"ids": [0, 3], "pid": 9}).json() == {"changed": 2}
    assert patch("/v1/images", json={"where": "pid = 9", "pid": 9}).json() == {"changed": 0}
    assert patch("/v1/images", json={"where": "pid = 9 and id = 3", "pid": "Anna"}).json() == {"changed": 1}
    assert Gallery.open(served.location).table["pid"].tolist()[:4] == ["9", "0", "0", "Anna"]
    assert patch("/v1/images", json={"where": "pid = 'Anna'", "pid": None}).json() == {"changed": 1}
    assert served.http.get("/v1/images/3").json()["pid"] is None
    for wrong in ({"ids": [0]}, {"ids": [0], "pid": ""}, {"ids": [0], "pid": 5, "rows": [{"zone": "a"}]}):
        assert patch("/v1/images", json=wrong).status_code == 422
    assert patch("/v1/images", json={"ids": [0], "pid": None, "rows": [{"zone": "a"}]}).status_code == 200
    unknown = patch("/v1/images", json={"ids": [0, 99], "pid": 5})
    assert (unknown.status_code, served.http.get("/v1/images/0").json()["pid"]) == (404, "9")


def test_erasure_by_person_filter_and_ids(served: Served) -> None:
    erase = served.http.request
    assert erase("DELETE", "/v1/images", params={"pid": "1"}).json() == {"deleted": 3}
    assert erase("DELETE", "/v1/images", json={"pid": 2}).json() == {"deleted": 3}
    assert erase("DELETE", "/v1/images", params={"where": "pid = 77"}).json() == {"deleted": 0}
    assert erase("DELETE", "/v1/images", json={"ids": [0, 1]}).json() == {"deleted": 2}
    assert erase("DELETE", "/v1/images", json={"ids": [0, 2]}).status_code == 404
    for wrong in ({}, {"ids": [2], "where": "pid = 0"}):
        assert erase("DELETE", "/v1/images", json=wrong).status_code == 422
    nothing = erase("DELETE", "/v1/images")
    assert nothing.status_code == 422
    assert "pids or paths" in nothing.json()["detail"]
    assert Gallery.open(served.location).ids.tolist() == [2, 9, 10, 11]


def test_labels_in_a_form_may_have_spaces(served: Served) -> None:
    for number, pid in enumerate(("Anna", "Smith", "Anna Smith")):
        assert served.http.patch("/v1/images", json={"ids": [number], "pid": pid}).status_code == 200

    def erase(**fields: list[str]) -> Any:
        parts = [(name, (None, value)) for name, values in fields.items() for value in values]
        return served.http.request("DELETE", "/v1/images", files=parts)

    erased = erase(pids=["Anna Smith", "1"])
    assert erased.json() == {"deleted": 1 + 3}, erased.text
    assert Gallery.open(served.location).ids.tolist() == [0, 1, *range(6, 12)]
    assert erase(ids=["0, 1 6"]).json() == {"deleted": 3}


def test_an_empty_gallery_is_listed_with_features(served: Served) -> None:
    assert served.http.request("DELETE", "/v1/images", json={"where": "id >= 0"}).json() == {"deleted": 12}
    answer = served.http.post("/v1/images/find", json={"where": "id >= 0", "features": True})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["images"], answer.json()["features"]) == ([], [])


def test_ids_stay_when_the_gallery_is_compacted(serve: Callable[..., Served], people: Path) -> None:
    served = serve(images_root=people.parent)
    served.post("/v1/images", draw(5))
    served.http.request("DELETE", "/v1/images", json={"ids": [0, 4]})
    before = served.http.get("/v1/images").json()["images"]
    served.engine.close()
    Gallery.open(people).compact()
    after = serve(images_root=people.parent)
    assert after.http.get("/v1/images").json()["images"] == before
    assert after.http.get("/v1/images/12/thumbnail").status_code == 200


def test_listed_pages_are_the_table(shared: Served) -> None:
    pages, after = [], -1
    while after is not None:
        page = shared.http.get("/v1/images", params={"where": "pid > 0", "limit": 4, "after": after}).json()
        pages.append([image["id"] for image in page["images"]])
        after = page["next"]
    assert pages == [[3, 4, 5, 6], [7, 8, 9, 10], [11]]
    one = shared.http.get("/v1/images/11").json()
    assert (one["id"], one["pid"], one["zone"]) == (11, 3, "north")
    assert shared.http.get("/v1/images", params={"limit": 0}).json() == {
        "count": 12,
        "images": [],
        "next": None,
    }


# ---------- the server ----------


def test_gallery_is_described(served: Served) -> None:
    described = served.http.get("/v1/gallery").json()
    own = json.loads(json.dumps(Gallery.open(served.location).describe()))
    assert {name: described[name] for name in own} == own
    assert (described["thumbnails"], described["embeds"], described["explains"]) == (True, True, False)
    served.post("/v1/images", draw(5))
    assert served.http.get("/v1/gallery").json()["count"] == 13


def test_metrics_count_requests_and_batches(served: Served) -> None:
    served.post("/v1/search", draw(1))
    served.http.get("/v1/images/1/thumbnail")
    served.http.get("/nowhere")
    text = served.http.get("/metrics").text
    for line in (
        'rga_reid_requests_total{method="POST",route="/v1/search",status="200"} 1.0',
        'rga_reid_requests_total{method="GET",route="/v1/images/{id}/thumbnail",status="200"} 1.0',
        'rga_reid_requests_total{method="GET",route="other",status="404"} 1.0',
        'rga_reid_batch_rows_sum{stage="embed"} 1.0',
        'rga_reid_waiting_rows{stage="write"} 0.0',
        "rga_reid_gallery_images 12.0",
    ):
        assert line in text.splitlines()


def test_health_and_readiness(shared: Served) -> None:
    assert shared.http.get("/healthz").json() == {"status": "ok"}
    assert shared.http.get("/readyz").json() == {"status": "ready"}


def test_pages_load_nothing_from_elsewhere(shared: Served) -> None:
    for path in ("/", "/docs"):
        answer = shared.http.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        assert "://" not in answer.text.replace("http://www.w3.org/", "")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert shared.http.get("/static/docs.css").status_code == 200
    assert shared.http.get("/static/..%2Fapp.py").status_code == 404
    described = shared.http.get("/openapi.json").json()["paths"]
    assert set(described["/v1/images"]) == {"get", "post", "patch", "delete"}
    form = described["/v1/search"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "top_k", "where", "group_by", "multi"} <= set(form["properties"])
    for path, operations in described.items():
        assert path in shared.http.get("/docs").text
        assert all(path[:3] != "/v1" or "422" in one["responses"] for one in operations.values())
    assert "camera == 3 and time" in shared.http.get("/docs").text  # the description of an optional field


@pytest.mark.parametrize(("field", "hint"), [("topk", "did you mean top_k?"), ("zebra", "group_by")])
def test_unknown_fields_are_named_with_what_was_expected(shared: Served, field: str, hint: str) -> None:
    answers = [
        shared.post("/v1/search", draw(1), **{field: "2"}),
        shared.http.post("/v1/search", json={"ids": [3], field: 2}),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(f"{field}: unknown field")
        assert hint in answer.json()["detail"]


def test_a_match_is_explained_by_maps_of_both_pictures(
    serve: Callable[..., Served], tiny_checkpoint: Path, people: Path
) -> None:
    model = load_model(tiny_checkpoint)
    table = Gallery.open(people).table
    Gallery.build(model.embed(table["path"].tolist()), table).save(people.parent / "deep")
    served = serve(people.parent / "deep", model, images_root=people.parent)
    explained = served.post("/v1/explain", draw(1, 9), id=4).json()
    one, two = model.embed([draw(1, 9), draw(1, 1)])
    assert explained["score"] == pytest.approx(float(one @ two), abs=0.002)
    assert [len(explained["maps"]), explained["maps"][0]["map"][:16]] == [2, "data:image/jpeg;"]
    assert served.post("/v1/explain", draw(1, 9)).status_code == 422
    assert served.post("/v1/explain", draw(1, 9), id=400).status_code == 404


@pytest.mark.slow
def test_a_match_is_explained_by_a_page(
    serve: Callable[..., Served], tiny_checkpoint: Path, people: Path
) -> None:
    served = serve(embedder=load_model(tiny_checkpoint), images_root=people.parent)
    page = served.http.post("/v1/explain?format=html", files={"image": draw(1, 9)}, data={"id": "4"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count("data:image/jpeg;") >= 2


def test_gallery_of_features_is_searched_by_features_only(serve: Callable[..., Served]) -> None:
    served = serve(embedder=None)
    assert matches_of(served.http.post("/v1/search", json={"features": FEATURES.tolist()})) == expected(
        served
    )
    assert served.post("/v1/search", draw(1)).status_code == 422
    assert served.http.get("/v1/gallery").json()["embeds"] is False
