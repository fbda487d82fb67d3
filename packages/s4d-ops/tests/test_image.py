"""Resize and crop: against Pillow, OpenCV where it is installed, and a formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s4d_ops import InvalidInputError
from s4d_ops.image import FILTERS, ResizeCrop, plan_resize_crop, resize_crop

SIZES = [
    ((900, 1600), (256, 704)),
    ((97, 131), (64, 96)),
    ((20, 30), (64, 96)),  # enlarged
    ((37, 53), (11, 40)),
    ((64, 64), (64, 64)),
    ((33, 200), (32, 48)),  # cut at the sides
]


def image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def pillow(raw, plan: ResizeCrop, name: str):
    """Pillow's resize, along x and then along y: one call may take the other order since 13."""
    from PIL import Image

    kind = {
        "pillow_bicubic": Image.Resampling.BICUBIC,
        "pillow_bilinear": Image.Resampling.BILINEAR,
    }[name]
    height, width = plan.resized_size
    resized = Image.fromarray(raw).resize((width, raw.shape[0]), kind).resize((width, height), kind)
    right, bottom = plan.left + plan.width, plan.top + plan.height
    return np.asarray(resized.crop((plan.left, plan.top, right, bottom)))


def four_neighbours(raw, plan: ResizeCrop):
    """Bilinear at pixel centres with the border repeated, in double precision."""

    def axis(size, resized, first, count):
        x = (np.arange(first, first + count) + 0.5) * (size / resized) - 0.5
        x = np.clip(x, 0, size - 1)
        low = np.floor(x).astype(int)
        return low, np.minimum(low + 1, size - 1), x - low

    top, bottom, fy = axis(raw.shape[0], plan.resized_size[0], plan.top, plan.height)
    left, right, fx = axis(raw.shape[1], plan.resized_size[1], plan.left, plan.width)
    raw, fy, fx = raw.astype(float), fy[:, None, None], fx[None, :, None]
    above = raw[top][:, left] * (1 - fx) + raw[top][:, right] * fx
    below = raw[bottom][:, left] * (1 - fx) + raw[bottom][:, right] * fx
    return above * (1 - fy) + below * fy


def largest_difference(a, b):
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).max()


@pytest.mark.parametrize("name", ["pillow_bicubic", "pillow_bilinear"])
@pytest.mark.parametrize(("raw", "network"), SIZES)
def test_equals_pillow(raw, network, name):
    source = image(raw)
    plan = plan_resize_crop(raw, network)
    assert np.array_equal(resize_crop(source, plan, name), pillow(source, plan, name))


def test_equals_one_call_of_pillow_at_the_size_of_nuscenes():
    from PIL import Image

    source = image((900, 1600))
    plan = plan_resize_crop((900, 1600), (256, 704))
    whole = np.asarray(Image.fromarray(source).resize((704, 396), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_crop(source, plan, "pillow_bicubic"), whole[140:])


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.integers(-20, 60),
    st.integers(-20, 60),
    st.sampled_from(["pillow_bicubic", "pillow_bilinear"]),
)
def test_any_plan_equals_pillow(raw, resized, top, left, name):
    """Also crops that stick out: black there."""
    plan = ResizeCrop(raw, 1.0, resized, top, left, 23, 31)
    source = image(raw)
    assert np.array_equal(resize_crop(source, plan, name), pillow(source, plan, name))


@pytest.mark.parametrize(("raw", "network"), SIZES)
def test_cv2_linear_is_the_formula(raw, network):
    source = image(raw)
    plan = plan_resize_crop(raw, network)
    ours = resize_crop(source, plan, "cv2_linear")
    assert largest_difference(ours, four_neighbours(source, plan)) <= 1


@pytest.mark.parametrize(("raw", "network"), SIZES)
def test_cv2_linear_is_opencv(raw, network):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    source = image(raw)
    plan = plan_resize_crop(raw, network)
    resized = cv2.resize(source, plan.resized_size[::-1], interpolation=cv2.INTER_LINEAR)
    rows = slice(plan.top, plan.top + plan.height)
    columns = slice(plan.left, plan.left + plan.width)
    ours = resize_crop(source, plan, "cv2_linear")
    assert largest_difference(ours, resized[rows, columns]) <= 1


@pytest.mark.parametrize("name", FILTERS)
def test_threads_strides_and_given_output(name):
    source = image((180, 322))
    plan = plan_resize_crop((180, 322), (52, 140))
    expected = resize_crop(source, plan, name, threads=1)
    out = np.full((52, 140, 3), 7, np.uint8)
    assert resize_crop(source, plan, name, out, threads=3) is out
    assert np.array_equal(out, expected)
    wide = np.zeros((180, 400, 3), np.uint8)
    wide[:, :322] = source
    assert np.array_equal(resize_crop(wide[:, :322], plan, name), expected)
    planar = np.ascontiguousarray(source.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert np.array_equal(resize_crop(planar, plan, name), expected)
    assert np.array_equal(resize_crop(source[::-1][::-1], plan, name), expected)


def test_plan_of_the_nuscenes_camera():
    plan = plan_resize_crop((900, 1600), (256, 704))
    assert (plan.resize, plan.resized_size) == (0.44, (396, 704))
    assert (plan.top, plan.left, plan.height, plan.width) == (140, 0, 256, 704)
    expected = [[0.44, 0, 0], [0, 0.44, -140], [0, 0, 1]]
    assert np.array_equal(plan.matrix, np.array(expected))
    assert plan.matrix.dtype == np.float64
    side = plan_resize_crop((33, 200), (32, 48))
    assert side.left == (int(200 * 32 / 33) - 48) // 2 and side.top == 0
    assert np.array_equal(side.matrix[:2, 2], [-side.left, 0])


def test_what_rounding_leaves_out_is_black():
    """47 * (48 / 47) is a little less than 48: a column or a row is missing."""
    narrow = plan_resize_crop((470, 47), (8, 48))
    assert narrow.resized_size[1] == 47 and narrow.left == 0
    given = resize_crop(np.full((470, 47, 3), 200, np.uint8), narrow)
    assert (given[:, :47] == 200).all() and (given[:, 47] == 0).all()
    low = plan_resize_crop((47, 1410), (48, 9))
    assert low.resized_size[0] == 47 and low.top == -1
    given = resize_crop(np.full((47, 1410, 3), 200, np.uint8), low)
    assert (given[1:] == 200).all() and (given[0] == 0).all()
    assert plan_resize_crop((49, 100), (1, 1)).resized_size == (1, 2)  # not (0, 2)


@pytest.mark.parametrize("sizes", [((0, 5), (4, 4)), ((5, 5), (4,)), ((5, 5.5), (4, 4)), (3, 4)])
def test_wrong_sizes_are_named(sizes):
    with pytest.raises(InvalidInputError):
        plan_resize_crop(*sizes)


def test_wrong_input_is_named():
    plan = plan_resize_crop((20, 30), (10, 15))
    good = image((20, 30))
    with pytest.raises(InvalidInputError, match=r"expected an image \(20, 30, 3\) uint8"):
        resize_crop(image((21, 30)), plan)
    with pytest.raises(InvalidInputError, match="float32"):
        resize_crop(good.astype(np.float32), plan)
    with pytest.raises(InvalidInputError, match="filter"):
        resize_crop(good, plan, "lanczos")
    with pytest.raises(InvalidInputError, match="out"):
        resize_crop(good, plan, out=np.zeros((10, 15), np.uint8))
    with pytest.raises(InvalidInputError, match="out"):
        resize_crop(good, plan, out=np.zeros((10, 30, 3), np.uint8)[:, ::2])
    with pytest.raises(InvalidInputError, match="sides"):
        resize_crop(good, ResizeCrop((20, 30), 1.0, (0, 15), 0, 0, 10, 15))
    with pytest.raises(InvalidInputError):
        resize_crop(None, plan)
