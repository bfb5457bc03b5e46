"""Run an exported model in OpenVINO or OpenCV: ``infer.py (openvino | opencv) MODEL INPUT.npy RESULT.npy``.

Run by the Python of the environment ``deploy``. INPUT is one array that the model takes.
"""

import sys

import numpy as np

runtime, model, source, result = sys.argv[1:]
images = np.load(source)
if runtime == "openvino":
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.save(result, compiled(images)[0])
else:
    import cv2

    network = cv2.dnn.readNetFromONNX(model)
    network.setInput(images)
    np.save(result, network.forward())
