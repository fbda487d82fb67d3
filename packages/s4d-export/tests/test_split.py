"""SparseEnd2End's cut: its names and shapes, and the whole model again over several frames."""

from __future__ import annotations

import os
import resource
import signal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from s4d_core import BankState, get_config
from s4d_core.bank import temporal_mask
from s4d_core.box import project_boxes
from s4d_export import GraphError, UnwritableOutputError, random_frames
from s4d_export.cli import main
from s4d_export.frames import frame_inputs
from s4d_export.graph.session import GraphSession
from s4d_export.split.graphs import ANCHOR_FILE, FILES, save_split
from s4d_export.split.opset15 import to_opset15

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


@pytest.fixture(scope="module")
def written(exported, tmp_path_factory):
    """What the command writes."""
    folder = tmp_path_factory.mktemp("split") / "new"
    assert main(["onnx", str(exported.checkpoint), "-o", str(folder), "--split"]) == 0
    return folder


@pytest.fixture(scope="module")
def graphs(written):
    return {key: onnx.load(written / name) for key, name in FILES.items()}


def table(values):
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in values
    ]


def test_names_types_and_shapes(exported, graphs):
    config = exported.model.config
    count, carried, width = config.num_anchors, config.num_temporal, config.embed_dims
    rows = 6 * (16 * 44 + 8 * 22 + 4 * 11 + 2 * 6)
    backbone, first, later = (graphs[key].graph for key in ("backbone", "first", "later"))
    assert table(backbone.input) == [("img", FLOAT, [1, 6, 3, 64, 176])]
    assert table(backbone.output) == [("feature", FLOAT, [1, rows, width])]
    shared = [
        ("feature", FLOAT, [1, rows, width]),
        ("spatial_shapes", INT32, [6, 4, 2]),
        ("level_start_index", INT32, [6, 4]),
        ("instance_feature", FLOAT, [1, count, width]),
        ("anchor", FLOAT, [1, count, 11]),
        ("time_interval", FLOAT, [1]),
    ]
    past = [
        ("temp_instance_feature", FLOAT, [1, carried, width]),
        ("temp_anchor", FLOAT, [1, carried, 11]),
        ("mask", INT32, [1]),
        ("track_id", INT32, [1, count]),
    ]
    geometry = [("image_wh", FLOAT, [1, 6, 2]), ("lidar2img", FLOAT, [1, 6, 4, 4])]
    assert table(first.input) == shared + geometry
    assert table(later.input) == shared + past + geometry
    results = [
        ("pred_instance_feature", FLOAT, [1, count, width]),
        ("pred_anchor", FLOAT, [1, count, 11]),
        ("pred_class_score", FLOAT, [1, count, 10]),
        ("pred_quality_score", FLOAT, [1, count, 2]),
    ]
    gathered = [
        (f"tmp_outs{i}", FLOAT, [1, count, width]) for i in range(len(exported.model.head.layers))
    ]
    assert table(first.output) == results + gathered
    ids = [("pred_track_id", INT32, [1, count])]
    assert table(later.output) == results + ids + gathered
    for key, model in graphs.items():
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        assert opsets.pop("", None) == 15 and set(opsets) <= {"custom"}
        onnx.checker.check_model(model)
        nodes = [n for n in model.graph.node if n.domain == "custom"]
        assert len(nodes) == (0 if key == "backbone" else len(gathered))
        for node in nodes:
            assert node.op_type == "DeformableAttentionAggrPlugin" and not node.attribute
            assert list(node.input[1:3]) == ["spatial_shapes", "level_start_index"]


@torch.no_grad()
def test_three_graphs_are_the_model(exported, graphs):
    """The host's part (projection, choice, ids) is the model's own code; every frame agrees."""
    model, config = exported.model, exported.model.config
    sessions = {key: GraphSession(graph) for key, graph in graphs.items()}
    height, width = config.image.size
    image_wh = torch.tensor([float(width), float(height)]).expand(1, 6, 2)
    constant = {
        "spatial_shapes": model.spatial_shapes.int().numpy(),
        "level_start_index": model.level_start_index.int().numpy(),
        "instance_feature": model.head.bank.feature[None].numpy(),
        "anchor": model.head.bank.anchor[None].numpy(),
        "image_wh": image_wh.numpy(),
    }
    bank, previous = BankState.empty(config, 1), None
    seen = set()
    for frame in random_frames(config, 8):
        inputs = {k: torch.from_numpy(v) for k, v in frame_inputs(frame, previous).items()}
        if frame.reset:
            bank = BankState.empty(config, 1)
        images = model.normalise(inputs["images"][None])
        step = inputs["prev_to_current"][None], inputs["time_interval"]
        expected = model.frame(images, inputs["lidar2img"][None], image_wh, *step, bank)

        (feature,) = sessions["backbone"].run({"img": images.numpy()}).values()
        mask, interval = temporal_mask(bank, step[1], config)
        given = {
            **constant,
            "feature": feature,
            "time_interval": interval.numpy(),
            "lidar2img": inputs["lidar2img"][None].numpy(),
        }
        key = "later" if bool(bank.valid) else "first"
        if key == "later":
            ids = np.full((1, config.num_anchors), -1, np.int32)
            ids[:, : config.num_temporal] = bank.track_id.numpy()
            boxes = project_boxes(bank.anchor, *step, config.legacy_yaw_order)
            given |= {
                "temp_instance_feature": bank.feature.numpy(),
                "temp_anchor": boxes.numpy(),
                "mask": mask.int().numpy(),
                "track_id": ids,
            }
        got = sessions[key].run(given)
        seen.add((key, bool(mask)))
        pairs = {
            "pred_anchor": expected.box[-1],
            "pred_class_score": expected.cls[-1],
            "pred_quality_score": expected.quality[-1],
        }
        for name, value in pairs.items():
            assert np.abs(got[name] - value.numpy()).max() < 1e-3, (name, key)
        chosen = expected.trace.cached_index[0]
        carried = got["pred_instance_feature"][0, chosen]
        assert np.abs(carried - expected.bank.feature[0].numpy()).max() < 1e-3
        if key == "later":
            kept = ids if bool(mask) else np.full_like(ids, -1)
            assert (got["pred_track_id"] == kept).all()
        assert np.abs(got["tmp_outs0"]).max() > 0
        bank, previous = expected.bank, frame
    assert seen == {("first", False), ("later", True), ("later", False)}


def test_command_line(exported, written, tmp_path, capsys):
    folder = written
    assert {path.name for path in folder.iterdir()} == {*FILES.values(), ANCHOR_FILE}
    anchors = np.fromfile(folder / ANCHOR_FILE, np.float32).reshape(-1, 11)
    assert (anchors == exported.model.head.bank.anchor.detach().numpy()).all()
    assert main(["inspect", str(folder / FILES["backbone"])]) == 0
    command = ["onnx", str(exported.checkpoint), "-o", str(folder), "--split"]
    assert main([*command, "--precision", "fp16"]) == 1
    assert "--split writes float32 graphs" in capsys.readouterr().err


def test_other_models_are_refused(tmp_path, capsys):
    from s4d_core import build_model, save_checkpoint
    from s4d_export import ExportError
    from s4d_export.split.modules import check_splittable

    config = get_config("sparse4dv3_tiny")
    coupled = config.replace(decoder=config.decoder.__class__(num_layers=2, decoupled=False))
    with pytest.raises(ExportError, match="no decoupled attention"):
        check_splittable(build_model(coupled))
    save_checkpoint(build_model(coupled), tmp_path / "checkpoint")
    assert main(["onnx", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "x"), "--split"]) == 1
    assert not (tmp_path / "x").exists() and "error: " in capsys.readouterr().err


def test_operators_without_a_form(graphs):
    model = onnx.ModelProto()
    model.CopyFrom(graphs["backbone"])
    model.graph.node[0].op_type = "GridSample"
    with pytest.raises(GraphError, match="has no form in opset 15"):
        to_opset15(model)


def test_a_full_disk_leaves_nothing(exported, graphs, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UnwritableOutputError, match="nothing was left behind"):
            save_split(graphs, exported.model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert os.listdir(tmp_path) == []
