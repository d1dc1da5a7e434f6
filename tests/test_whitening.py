"""ZCA whitening against a slow, obvious statement of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from condensate import UserError, Whitening, whitening
from condensate.whitening import fit, read


def images(count: int = 60, shape: tuple[int, int, int] = (3, 4, 5), seed: int = 0) -> Tensor:
    """Smooth images under noise, so that variances differ, one pixel of them constant."""
    generator = torch.Generator().manual_seed(seed)
    smooth = 40 * torch.randn(count, 1, 1, 1, generator=generator) + torch.linspace(-60, 60, shape[2])
    drawn = 128 + smooth + 20 * torch.randn(count, *shape, generator=generator)
    drawn[:, 0, 0, 0] = 77
    return drawn.clamp(0, 255).round().to(torch.uint8)


def naive(raw: Tensor, new: Tensor, power: float = -0.5) -> tuple[np.ndarray, np.ndarray]:
    """The definition, in float64: ``new`` whitened by ``raw``, and the eigenvalues."""
    x = raw.flatten(1).numpy().astype(np.float64) / 255
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / (len(x) - 1)
    variances, basis = np.linalg.eigh(covariance)
    matrix = basis @ np.diag((np.maximum(variances, 0) + 0.1) ** power) @ basis.T
    return (new.flatten(1).numpy() / 255.0 - mean) @ matrix, variances


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 8, 8)])
@pytest.mark.parametrize("count", [10, 60, 2500])  # fewer than values; one chunk; several and a rest
def test_whiten__equals_the_definition(shape: tuple[int, int, int], count: int):
    raw, new = images(count, shape), images(7, shape, seed=1)
    fitted = fit(raw)
    expected, variances = naive(raw, new)
    got = fitted.whiten(new / 255)
    assert got.shape == new.shape
    np.testing.assert_allclose(got.flatten(1).numpy(), expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(fitted.variances.numpy(), variances, rtol=1e-6, atol=1e-12)


def test_fit__covariance_is_exact_to_float64(monkeypatch: pytest.MonkeyPatch):
    """Extreme bytes in several chunks: sums of float32 pixels would be wrong from the seventh digit on."""
    raw = images(3000, (1, 3, 3))
    raw[::2, 0, 1], raw[1::2, 0, 1], raw[:, 0, 2, 0] = 0, 255, 255
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (seen.append(matrix.clone()), eigh(matrix))[1])
    fitted = fit(raw)
    x = raw.flatten(1).double() / 255
    torch.testing.assert_close(seen[0], torch.cov(x.T), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(fitted.mean, x.mean(0).float(), rtol=0, atol=0)


def test_whiten__covariance_is_s_over_s_plus_a_tenth_in_the_eigenbasis():
    raw = images(400)
    fitted = fit(raw)
    seen = fitted.whiten(raw / 255).flatten(1).double() @ fitted.basis.double()
    s = fitted.variances.double()
    torch.testing.assert_close(torch.cov(seen.T), torch.diag(s / (s + 0.1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.mean(0), torch.zeros_like(s), rtol=0, atol=1e-5)


def test_colour__is_the_inverse():
    fitted, new = fit(images()), images(7, seed=1) / 255
    torch.testing.assert_close(fitted.colour(fitted.whiten(new)), new, rtol=0, atol=2e-6)
    expected, _ = naive(images(), images(7, seed=1), power=0.5)  # (x - mean) U (S + 0.1)^(1/2) U'
    np.testing.assert_allclose(
        (fitted.colour(new - fitted.mean.view(3, 4, 5)).flatten(1) - fitted.mean).numpy(), expected, rtol=0, atol=2e-6
    )


def test_fit__signs_of_eigenvectors_are_settled(monkeypatch: pytest.MonkeyPatch):
    fitted = fit(images())
    eigh = torch.linalg.eigh

    def other_signs(matrix: Tensor) -> tuple[Tensor, Tensor]:
        s, u = eigh(matrix)
        return s, u * torch.tensor([1.0, -1.0]).repeat(30)

    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    assert fit(images()).digest == fitted.digest
    assert (fitted.basis.gather(0, fitted.basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_fit__same_images_same_whitening__one_pixel_else_another():
    raw = images()
    assert fit(raw).digest == fit(raw.clone()).digest
    raw[3, 1, 2, 2] ^= 255
    assert fit(raw).digest != fit(images()).digest


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 49)])
def test_fit__too_many_values__refused(shape: tuple[int, int, int]):
    values = shape[0] * shape[1] * shape[2]
    with pytest.raises(UserError, match=rf"have {values:,} values.*at most 3,072 values.*--data.size 32.*zca false"):
        fit(torch.zeros(3, *shape, dtype=torch.uint8))
    whitening.check_size((3, 32, 32))


def test_fit__one_image__refused():
    with pytest.raises(UserError, match="at least 2 training images, got 1"):
        fit(images(1))


@pytest.mark.parametrize("lowered", ["medium", "autocast"])
def test_whiten__lowered_precision_around__is_not_taken(lowered: str):
    """On processors without bfloat16 products "medium" is float32 anyway; autocast lowers everywhere."""
    raw = images(200, (3, 16, 16))
    fitted, new = fit(raw), raw[:64] / 255
    expected, back = fitted.whiten(new), fitted.colour(new)
    before = torch.get_float32_matmul_precision()
    try:
        if lowered == "medium":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered == "autocast"):
            assert torch.equal(fitted.whiten(new), expected)
            assert torch.equal(fitted.colour(new), back)
            assert fit(raw).digest == fitted.digest
        assert torch.get_float32_matmul_precision() == ("medium" if lowered == "medium" else before)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.cuda
def test_whiten__cuda__equals_the_cpu():
    fitted, new = fit(images()), images(7, seed=1) / 255
    torch.testing.assert_close(fitted.whiten(new.cuda()).cpu(), fitted.whiten(new), rtol=0, atol=1e-5)
    assert fitted.colour(new.cuda()).is_cuda


def test_save__read__same_whitening_and_bytes(tmp_path: Path):
    fitted = fit(images())
    fitted.save(tmp_path / "a")
    fitted.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    got = read(tmp_path / "a")
    assert got.digest == fitted.digest
    new = images(3, seed=1) / 255
    assert torch.equal(got.whiten(new), fitted.whiten(new))


def test_read__damaged__refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="is not a whitening"):
        read(path)
    fit(images()).save(path)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(UserError, match="is not a whitening"):
        read(path)
    fit(images()).save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-8] + b"\0\0\0\x40" * 2, whole[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a whitening, or is damaged"):
            read(path)


def test_whitening__parts_that_do_not_fit__refused():
    with pytest.raises(ValueError, match="needs U 2x2"):
        Whitening(torch.zeros(2), torch.eye(3), torch.zeros(2))
    with pytest.raises(ValueError, match="float32"):
        Whitening(torch.zeros(2).double(), torch.eye(2), torch.zeros(2))
