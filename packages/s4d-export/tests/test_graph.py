"""The exported graph keeps its contract: names, order, types, shapes, operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from s4d_export import GraphError, check_graph, describe, export_graph, graph_contract
from s4d_export.graph.naming import module_of
from s4d_export.inspection import format_description, load_graph
from s4d_runtime.artifact import read_artifact

OPS = ("plugin", "standard")


@pytest.fixture(scope="module", params=OPS)
def artifact(request, exported):
    return request.param, exported.artifacts[request.param]


def test_inputs_and_outputs_are_those_of_the_design(exported, artifact):
    _, path = artifact
    graph = load_graph(path)[0].graph
    table = [
        (v.name, v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in [*graph.input, *graph.output]
    ]
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    assert table == [
        ("images", TensorProto.UINT8, [6, 64, 176, 3]),
        ("lidar2img", f32, [6, 4, 4]),
        ("prev_to_current", f32, [4, 4]),
        ("time_interval", f32, [1]),
        ("state_valid", i32, [1]),
        ("state_feature", f32, [60, 32]),
        ("state_anchor", f32, [60, 11]),
        ("state_confidence", f32, [60]),
        ("state_track_id", i32, [60]),
        ("state_id_counter", i32, [1]),
        ("boxes", f32, [40, 10]),
        ("scores", f32, [40]),
        ("labels", i32, [40]),
        ("track_ids", i32, [40]),
        ("next_feature", f32, [60, 32]),
        ("next_anchor", f32, [60, 11]),
        ("next_confidence", f32, [60]),
        ("next_track_id", i32, [60]),
        ("next_id_counter", i32, [1]),
    ]


def test_manifest_says_what_the_graph_has(exported, artifact):
    op, path = artifact
    config = exported.model.config
    with read_artifact(path) as opened:
        manifest = opened.manifest
        assert opened.names() == ["model.onnx"]
    contract = graph_contract(config)
    assert manifest.inputs == contract.inputs and manifest.outputs == contract.outputs
    assert manifest.op == op and manifest.precision == "fp32" and manifest.opset == 20
    assert manifest.state["state_feature"] == "next_feature" and len(manifest.state) == 5
    assert manifest.preprocessing.image_size == (64, 176)
    assert manifest.preprocessing.resize_filter == config.image.resize_filter
    assert manifest.thresholds.max_time_interval == config.max_time_interval


def test_operators(artifact):
    op, path = artifact
    model = load_graph(path)[0]
    kinds = [(node.domain, node.op_type) for node in model.graph.node]
    domains = {entry.domain: entry.version for entry in model.opset_import}
    assert domains == ({"": 20, "s4d": 1} if op == "plugin" else {"": 20})
    assert kinds.count(("s4d", "DeformableAggregation")) == (3 if op == "plugin" else 0)
    assert ("", "BatchNormalization") not in kinds and ("", "LayerNormalization") in kinds
    assert not {"If", "Loop", "Scan", "NonZero"} & {kind for _, kind in kinds}
    assert not model.functions and model.ir_version <= 10


def test_aggregation_node_carries_the_attributes_of_the_plugin(exported):
    graph = load_graph(exported.artifacts["plugin"])[0].graph
    nodes = [node for node in graph.node if node.op_type == "DeformableAggregation"]
    for node in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"plugin_version": b"1", "plugin_namespace": b""}
    constants = {value.name: value for value in graph.initializer}
    assert constants[nodes[0].input[1]].data_type == TensorProto.INT32
    assert list(constants[nodes[0].input[1]].dims) == [6, 4, 2]


def test_names_carry_the_module_and_nothing_of_this_machine(exported, artifact):
    graph = load_graph(artifact[1])[0].graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    modules = {name for name, _ in exported.model.named_modules()} | {"graph"}
    found = {module_of(name) for name in names}
    assert found <= modules
    assert "backbone.layer1.0.conv1" in found
    assert "head.layers.2.temporal_attention.out_proj" in found
    assert "head.anchor_encoder.position.0" in found
    data = graph.SerializeToString()
    assert b".py" not in data and b"torch.ops" not in data


def test_export_is_reproducible(exported):
    again = export_graph(exported.model, "plugin")
    with read_artifact(exported.artifacts["plugin"]) as opened:
        assert again.SerializeToString(deterministic=True) == opened.read("model.onnx")


def test_inspect(exported, artifact):
    info = describe(artifact[1])
    parameters = sum(p.numel() for p in exported.model.parameters())
    assert 0.9 * parameters < info["parameters"]["float32"]["count"] < 1.3 * parameters
    assert info["state"]["state_anchor"] == "next_anchor"
    assert info["opset"]["ai.onnx"] == 20
    assert info["flops"]["backbone.layer1"] > 0
    # 3x3 convolution, 8 to 8 channels on 6 maps of 16 x 44, twice per block
    assert info["flops"]["backbone.layer1"] == 2 * 2 * 6 * 16 * 44 * 8 * 8 * 9
    text = format_description(info)
    assert "state_feature" in text and "next_feature" in text


def _value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def _edited(exported, edit):
    model, _ = load_graph(exported.artifacts["plugin"])
    edit(model.graph)
    return model


def test_checks_name_what_is_wrong(exported):
    contract = graph_contract(exported.model.config)

    def unknown_operator(graph):
        graph.node[5].op_type = "Frobnicate"

    def foreign_domain(graph):
        graph.node[5].domain = "com.microsoft"

    def other_output(graph):
        graph.output[0].name = "bboxes"

    def data_dependent(graph):
        graph.node.append(helper.make_node("NonZero", ["scores"], ["where"], name="x/NonZero"))

    def wrong_shape(graph):
        graph.input[2].type.tensor_type.shape.dim[0].dim_value = 3

    def half_done_cast(graph):
        node = next(n for n in graph.node if n.op_type == "Softmax")
        graph.node.append(helper.make_node("Cast", [node.output[0]], ["d"], to=11, name="x/Cast"))

    for edit, words in (
        (unknown_operator, "Frobnicate"),
        (foreign_domain, "com.microsoft"),
        (other_output, "bboxes"),
        (data_dependent, "NonZero"),
        (wrong_shape, "prev_to_current"),
        (half_done_cast, "float64"),
    ):
        with pytest.raises(GraphError, match=words) as caught:
            check_graph(_edited(exported, edit), contract, "plugin")
        assert "\n" not in str(caught.value)
    with pytest.raises(GraphError, match="operator sets"):
        check_graph(load_graph(exported.artifacts["plugin"])[0], contract, "standard")


def test_atan2_and_boolean_where_on_every_quadrant(tmp_path):
    """The translations that replace the exporter's own, against torch."""
    import onnxruntime
    import torch

    from s4d_export.graph.translations import translation_table

    class Part(torch.nn.Module):
        def forward(self, y, x, flag):
            both = torch.where(flag, y > x, x > 0)
            return torch.atan2(y, x), torch.where(both, x, y)

    values = [-2.0, -1.0, 0.0, 0.5, 3.0]
    y, x = (
        t.flatten()
        for t in torch.meshgrid(torch.tensor(values), torch.tensor(values), indexing="ij")
    )
    flag = torch.arange(len(y)) % 2 == 0
    program = torch.onnx.export(
        Part().eval(),
        (y, x, flag),
        dynamo=True,
        opset_version=20,
        custom_translation_table=translation_table(False),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feeds = dict(zip([i.name for i in session.get_inputs()], (y, x, flag), strict=True))
    got = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    for expected, result in zip(Part()(y, x, flag), got, strict=True):
        np.testing.assert_allclose(result, expected.numpy(), atol=1e-6)
    onnx.checker.check_model(program.model_proto)
