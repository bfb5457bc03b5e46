"""Run boxmot's trackers with an exported model over a video: ``track.py VIDEO.npz MODEL RESULT.npz``.

Run by the Python of boxmot's environment. VIDEO has frames ``(t, H, W, 3)``, BGR, and detections ``(n, 7)``: frame,
left, top, right, bottom, confidence, class. RESULT gets the embeddings of all detections, and for each tracker rows
of frame, row of the detection, and number of the track.
"""

import sys

import numpy as np
from boxmot import BotSort, StrongSort
from boxmot.reid.core.runtime import ReID

video, model, result = sys.argv[1:]
content = np.load(video)
frames, detections = content["frames"], content["detections"]
crops = [frames[int(row[0])][int(row[2]) : int(row[4]), int(row[1]) : int(row[3])] for row in detections]
output = {"embeddings": ReID(model)(crops)}
for name, tracker in (
    (
        "botsort",
        BotSort(reid_weights=model, device="cpu", half=False, proximity_thresh=1.0),
    ),  # at any distance
    ("strongsort", StrongSort(reid_weights=model, device="cpu", half=False)),
):
    rows = []
    for number, frame in enumerate(frames):
        found = np.flatnonzero(detections[:, 0] == number)
        for track in tracker.update(detections[found, 1:].astype(np.float32), frame):
            rows.append((number, found[int(track[7])], int(track[4])))
    output[name] = np.array(rows)
np.savez(result, **output)
