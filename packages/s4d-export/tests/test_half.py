"""Half precision: typed in the graph, by a plan, and close to float32."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from s4d_export import (
    DEFAULT_PLAN,
    PrecisionPlan,
    QuantizationError,
    Rule,
    build_manifest,
    check_graph,
    graph_contract,
    random_frames,
    save_artifact,
    to_half,
    verify,
)
from s4d_export.cli import main
from s4d_export.graph.check import infer_shapes
from s4d_export.graph.naming import module_of
from s4d_export.half.conversion import check_plan
from s4d_export.inspection import load_graph
from s4d_export.verification.report import format_result


def types_by_node(model):
    graph = infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.output]}
    return {node.name: kinds.get(node.output[0]) for node in graph.node}


@pytest.fixture(scope="module", params=["plugin", "standard"])
def halved(request, exported):
    model, _ = load_graph(exported.artifacts[request.param])
    return request.param, to_half(model)


def test_the_plan_decides_the_types(halved):
    _, model = halved
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    for name, kind in types_by_node(model).items():
        operator = name.rsplit("/", 1)[1]
        if operator.startswith("Cast") or kind not in (half, full):
            continue
        module = module_of(name)
        if module.startswith(("backbone", "neck")) or ".ffn" in module:
            assert kind == half, name
        if any(part in module for part in ("anchor_encoder", "refinement", "key_points")):
            assert kind == full, name
        if operator.startswith(("Exp", "TopK")):
            assert kind == full, name
        if operator.startswith("DeformableAggregation"):
            assert kind == half, name
    stored = {value.name: value.data_type for value in model.graph.initializer}
    assert all(kind == half for name, kind in stored.items() if name.startswith("backbone.conv1"))


def test_the_contract_stays(exported, halved):
    op, model = halved
    check_graph(model, graph_contract(exported.model.config), op)
    original, _ = load_graph(exported.artifacts[op])
    assert model.ByteSize() < 0.8 * original.ByteSize()


def test_half_stays_close_over_eight_frames(exported, halved, tmp_path):
    op, model = halved
    config = exported.model.config
    path = tmp_path / "half.s4d"
    save_artifact(path, model, build_manifest(config, "half", op, "fp16"))
    result = verify(exported.model, path, random_frames(config, 8))
    print(format_result(result))
    assert result["passed"], result["reasons"]
    for tensors in (result["step"]["tensors"], result["rollout"]["tensors"]):
        assert tensors["boxes"]["p99.9"] < 2e-2
        assert tensors["boxes"]["max"] > 1e-5  # it is not float32 in disguise
        assert tensors["next_feature"]["cosine"] > 0.9999
    assert result["step"]["ids"]["wrong"] == 0


def test_excluded_modules_are_float32_again(exported):
    model, _ = load_graph(exported.artifacts["plugin"])
    plan = DEFAULT_PLAN.excluding(["backbone.layer2*"], "a test")
    kinds = types_by_node(to_half(model, plan))
    assert kinds["backbone.layer2.0.conv1/Conv"] == TensorProto.FLOAT
    assert kinds["backbone.layer1.0.conv1/Conv"] == TensorProto.FLOAT16
    nothing = to_half(model, PrecisionPlan(()))
    assert nothing.graph.node == model.graph.node


def test_a_constant_beyond_the_range_keeps_its_node(exported):
    from onnx import numpy_helper

    model, _ = load_graph(exported.artifacts["plugin"])
    weight = next(v for v in model.graph.initializer if v.name == "backbone.conv1.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = 1e6
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    kinds = types_by_node(to_half(model))
    assert kinds["backbone.conv1/Conv"] == TensorProto.FLOAT


def test_plans_are_data(exported):
    assert PrecisionPlan.from_json(DEFAULT_PLAN.to_json()) == DEFAULT_PLAN
    assert all(rule.reason for rule in DEFAULT_PLAN.rules)
    model, _ = load_graph(exported.artifacts["plugin"])
    check_plan(model, DEFAULT_PLAN)
    with pytest.raises(QuantizationError, match="bakcbone"):
        check_plan(model, PrecisionPlan((Rule("bakcbone.*", "fp16", "mistyped"),)))
    for text in (
        "[]",
        "no json",
        '{"rules": [{"nodes": "x"}]}',
        '{"rules": [{"nodes": "x", "precision": "fp8", "reason": ""}]}',
    ):
        with pytest.raises(QuantizationError):
            PrecisionPlan.from_json(text)


def test_command_line(exported, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    plan.write_text(DEFAULT_PLAN.excluding(["neck*"], "test").to_json())
    path = tmp_path / "half.s4d"
    command = ["onnx", str(exported.checkpoint), "-o", str(path)]
    assert main([*command, "--plan", str(plan)]) == 1
    assert "--precision fp16" in capsys.readouterr().err
    assert main([*command, "--precision", "fp16", "--plan", "nowhere.json"]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert main([*command, "--precision", "fp16", "--plan", str(plan), "--verify"]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert main(["inspect", str(path)]) == 0
    assert "float16" in capsys.readouterr().out
