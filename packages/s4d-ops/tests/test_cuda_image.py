"""CUDA image kernel against the CPU kernel and the libraries that both imitate."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from s4d_ops import InvalidInputError, image, image_cuda  # noqa: E402
from s4d_ops.image import FILTERS, ResizeCrop, plan_resize_crop  # noqa: E402

PLANS = (
    plan_resize_crop((900, 1600), (256, 704)),
    plan_resize_crop((450, 801), (256, 704)),
    plan_resize_crop((37, 53), (64, 96)),
    plan_resize_crop((5, 7), (9, 9)),
    ResizeCrop((60, 80), 0.5, (30, 40), -3, -2, 40, 50),  # crop reaches outside: black
    ResizeCrop((400, 600), 0.03, (12, 18), 0, 0, 12, 18),  # strong reduction
    ResizeCrop((8, 8), 1.0, (8, 8), 20, 0, 4, 4),  # crop wholly outside
)


def random_image(plan: ResizeCrop, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*plan.raw_size, 3), dtype=np.uint8)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.raw_size}-{plan.resized_size}")
def test_equals_the_cpu_kernel(plan: ResizeCrop, filter: str) -> None:
    pytest.importorskip("s4d_ops.lib._native")
    sources = [random_image(plan, seed) for seed in range(3)]
    expected = np.stack([image.resize_crop(source, plan, filter) for source in sources])
    images = [torch.from_numpy(source).cuda() for source in sources]
    out = torch.full(expected.shape, 77, dtype=torch.uint8, device="cuda")
    image_cuda.resize_crop(images, plan, out, filter)
    assert np.abs(out.cpu().numpy().astype(int) - expected).max() == 0
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    planar = expected.transpose(0, 3, 1, 2).astype(np.float64)
    wanted = (planar - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    for dtype, limit in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
        result = torch.full(wanted.shape, float("nan"), dtype=dtype, device="cuda")
        image_cuda.resize_crop(images, plan, result, filter, mean, std)
        assert np.abs(result.double().cpu().numpy() - wanted).max() <= limit


@pytest.mark.parametrize("plan", PLANS[:3], ids=lambda plan: f"{plan.raw_size}")
def test_within_one_grey_level_of_pillow_and_opencv(plan: ResizeCrop) -> None:
    pil = pytest.importorskip("PIL.Image")
    cv2 = pytest.importorskip("cv2")
    source = random_image(plan)
    height, width = plan.resized_size
    rows = slice(plan.top, plan.top + plan.height)
    columns = slice(plan.left, plan.left + plan.width)
    references = {
        "pillow_bicubic": np.asarray(
            pil.fromarray(source).resize((width, height), pil.Resampling.BICUBIC)
        ),
        "pillow_bilinear": np.asarray(
            pil.fromarray(source).resize((width, height), pil.Resampling.BILINEAR)
        ),
        "cv2_linear": cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR),
    }
    for name, full in references.items():
        out = torch.empty((1, plan.height, plan.width, 3), dtype=torch.uint8, device="cuda")
        image_cuda.resize_crop([torch.from_numpy(source).cuda()], plan, out, name)
        expected = full[rows, columns].astype(int)
        assert np.abs(out[0].cpu().numpy().astype(int) - expected).max() <= 1, name


def test_strided_rows_and_a_stream() -> None:
    plan = PLANS[2]
    wide = torch.randint(0, 256, (plan.raw_size[0], plan.raw_size[1] + 11, 3), device="cuda")
    wide = wide.to(torch.uint8)
    view = wide[:, : plan.raw_size[1]]
    outs = [torch.zeros((1, 64, 96, 3), dtype=torch.uint8, device="cuda") for _ in range(2)]
    image_cuda.resize_crop([view.contiguous()], plan, outs[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    image_cuda.resize_crop([view], plan, outs[1], stream=stream.cuda_stream)
    stream.synchronize()
    torch.cuda.synchronize()
    assert torch.equal(*outs)


def test_bad_input_is_named() -> None:
    plan = PLANS[2]
    good = torch.zeros((*plan.raw_size, 3), dtype=torch.uint8, device="cuda")
    out = torch.zeros((1, 64, 96, 3), dtype=torch.uint8, device="cuda")
    with pytest.raises(InvalidInputError, match="expected images"):
        image_cuda.resize_crop([good[1:]], plan, out)
    with pytest.raises(InvalidInputError, match="expected out"):
        image_cuda.resize_crop([good], plan, out[:, 1:])
    with pytest.raises(InvalidInputError, match="CUDA device"):
        image_cuda.resize_crop([good.cpu()], plan, out)
    with pytest.raises(InvalidInputError, match="filter"):
        image_cuda.resize_crop([good], plan, out, "nearest")
