"""Sparse4D models in plain PyTorch.

One function is the model, in training, export and on board::

    output = model(images, lidar2img, image_wh, timestamp, lidar2global, state)
    boxes = decode(output, model.config)
    state = output.state
"""

from ._version import __version__
from .aggregation_op import FeatureMaps, use_reference_op
from .anchors import default_anchors
from .backbones import EvaConfig, LoadReport, TimmConfig, VoVNetConfig, timm_config
from .checkpoint import load_checkpoint, save_checkpoint
from .config import (
    CAMERA_NAMES,
    CLASS_NAMES,
    AggregationConfig,
    AnchorEncoderConfig,
    DecoderConfig,
    DepthConfig,
    DepthReweightConfig,
    FPNConfig,
    ImageConfig,
    QueueConfig,
    ResNetConfig,
    Sparse4DConfig,
)
from .convert import convert_checkpoint
from .decode import Detections, decode, decode_tensors
from .denoising import DenoisingOutput, DenoisingQueries, TemporalDenoising
from .errors import CheckpointError, ConfigError
from .feature_queue import FeatureQueue
from .inference import CompiledModel, compile_inference
from .model import Sparse4D
from .models import build_model, get_config, list_models, reduced_config
from .observation import Observation
from .outputs import FrameOutput, Sparse4DOutput
from .pretrained import load_backbone
from .reference_names import reference_names
from .state import BankState, BankTrace, State

__all__ = [
    "__version__",
    # models
    "Sparse4D",
    "Sparse4DOutput",
    "FrameOutput",
    "FeatureMaps",
    "build_model",
    "get_config",
    "list_models",
    "reduced_config",
    "default_anchors",
    "use_reference_op",
    # configuration
    "CAMERA_NAMES",
    "CLASS_NAMES",
    "AggregationConfig",
    "AnchorEncoderConfig",
    "DecoderConfig",
    "DepthConfig",
    "DepthReweightConfig",
    "FPNConfig",
    "ImageConfig",
    "QueueConfig",
    "ResNetConfig",
    "EvaConfig",
    "TimmConfig",
    "VoVNetConfig",
    "timm_config",
    "Sparse4DConfig",
    # state
    "BankState",
    "BankTrace",
    "FeatureQueue",
    "Observation",
    "State",
    # decoding
    "Detections",
    "decode",
    "decode_tensors",
    # fast inference
    "CompiledModel",
    "compile_inference",
    # denoising training
    "DenoisingOutput",
    "DenoisingQueries",
    "TemporalDenoising",
    # checkpoints
    "load_checkpoint",
    "save_checkpoint",
    "convert_checkpoint",
    "load_backbone",
    "LoadReport",
    "reference_names",
    # errors
    "CheckpointError",
    "ConfigError",
]
