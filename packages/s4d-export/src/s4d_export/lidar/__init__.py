"""From a LiDAR encoder checkpoint to a file that the sparse engine (or libspconv) runs.

::

    encoder = fold_batchnorm(load_encoder(folder))
    ranges = calibrate(encoder, frames, method="mse")
    export_encoder(encoder, "lidar.s4d", ranges=ranges)          # int8, first block half
"""

from .calibration import CalibrationFrame, calibrate
from .export import export_encoder, verify_export
from .layers import AddLayer, ConvLayer, encoder_layers
from .quantize import FakeQuantizer, Ranges, prepare_qat, ranges_of, remove_quantizers
from .sensitivity import LayerSensitivity, sensitivity
from .writer import encoder_to_onnx

__all__ = [
    "AddLayer",
    "CalibrationFrame",
    "ConvLayer",
    "FakeQuantizer",
    "LayerSensitivity",
    "Ranges",
    "calibrate",
    "encoder_layers",
    "encoder_to_onnx",
    "export_encoder",
    "prepare_qat",
    "ranges_of",
    "remove_quantizers",
    "sensitivity",
    "verify_export",
]
