"""From nodes of a file to a checked graph: what is refused, and what a graph says of points."""

import pytest
from lidar_reference import example_path

from s4d_runtime.lidar import LidarGraphError, SparseEngine, VoxelRules
from s4d_runtime.lidar.graph import build_graph
from s4d_runtime.lidar.onnx_file import read_onnx


def edited(change):
    source = read_onnx(example_path())
    change({node.name: node for node in source.nodes}, source)
    return source


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda n, s: setattr(n["relu0"], "op_type", "Gelu"), "Gelu 'relu0'"),
        (lambda n, s: n["conv3"].attributes.update(kernel_size=[3, 3]), "conv3"),
        (lambda n, s: n["conv3"].attributes.update(out_channels=5), "weight"),
        (lambda n, s: n["conv3"].attributes.update(activation="Swish"), "Swish"),
        (lambda n, s: n["conv3"].attributes.update(precision="int8"), "calibrate"),
        (lambda n, s: n["conv3"].attributes.update(groups=2), "groups"),
        (lambda n, s: n["conv3"].attributes.update(transposed=1), "transposed"),
        (lambda n, s: n["conv3"].inputs.__setitem__(0, "nowhere"), "before it is computed"),
        (lambda n, s: n["conv3"].outputs.__setitem__(0, "1"), "second time"),
        (lambda n, s: n["add1"].inputs.pop(), "2 inputs"),
        (lambda n, s: n["scatter0"].attributes.update(format="yzx"), "format"),
        (lambda n, s: s.outputs.__setitem__(0, "99"), "graph output"),
        (lambda n, s: s.weights.pop("spconv4.weight"), "spconv4"),
        (lambda n, s: s.nodes.clear(), "graph output"),
    ],
)
def test_bad_graphs_are_named(change, match):
    with pytest.raises(LidarGraphError, match=match):
        build_graph(edited(change))


@pytest.mark.parametrize("order", ["zyx", "xyz"])
def test_points_become_rows_in_the_order_of_the_file(order):
    source = read_onnx(example_path())
    next(n for n in source.nodes if n.op_type == "ScatterDense").attributes["format"] = order
    assert SparseEngine(build_graph(source)).voxel_rules == VoxelRules(index_order=order)
