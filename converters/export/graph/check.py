"""Checks of a graph on disk that run nothing: the model checker, and shape inference that accepts no contradiction."""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx


def check_graph(file: Path) -> None:
    """Raises RuntimeError where onnx finds the graph invalid: that is a fault of the export, not of the model."""
    try:
        # By its path: a model in memory may have two gigabytes at most, its external data included.
        onnx.checker.check_model(str(file))
        with TemporaryDirectory() as folder:
            onnx.shape_inference.infer_shapes_path(str(file), str(Path(folder) / file.name), strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(f"{file.name} is not a valid graph: {error}") from error
