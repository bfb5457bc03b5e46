"""Galleries built from a memory-mapped feature matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, segments
from rga_reid.gallery.build import save_features


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_matrix_in_a_file_is_built_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("SEGMENT_ROWS", "INDEXED_ROWS"):
        monkeypatch.setattr(segments, name, 1500)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2600, 32)).astype(np.float32)
    table = pd.DataFrame(
        {"path": [f"{row}.jpg" for row in range(2600)], "pid": generator.integers(0, 40, 2600)}
    )
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    saved = save_features(tmp_path / "saved", mapped, table, index=kind)
    built = Gallery.build(features, table, index=kind)
    pd.testing.assert_frame_equal(saved.table, built.table)
    assert saved.ids.tolist() == built.ids.tolist()
    assert saved.describe() == built.describe()
    # written once: parts that are joined afterwards would take the first numbers
    names = sorted(path.name for path in (tmp_path / "saved" / "segments").iterdir())
    assert names == ["000001-0", "000001-1"]
    pd.testing.assert_frame_equal(saved.search(features[:20]), built.search(features[:20]))
    assert saved.check() > 0
    features[2000, 3] = np.nan
    with pytest.raises(InputError, match="row 2000"):
        save_features(tmp_path / "broken", features, table, index=kind)
    with pytest.raises(InputError, match="row 2000"):
        save_features(tmp_path / "saved", features, table, index=kind, overwrite=True)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["features.npy", "saved"]
    assert len(Gallery.open(tmp_path / "saved")) == 2600
