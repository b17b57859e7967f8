import json

import numpy as np
import pytest
import torch
from skimage import metrics as independent

from ambient_sci.errors import DataError
from ambient_sci.evaluate import (
    coverage,
    coverage_interval,
    coverage_normal,
    head_mask,
    nrmse,
    psnr,
    score,
    ssim,
    table,
)


def discs(n=2, size=32, seed=0):
    rng = np.random.default_rng(seed)
    ticks = np.linspace(-1, 1, size)
    radius = np.hypot(ticks[:, None], ticks)
    images = np.zeros((n, size, size), np.complex128)
    for image in images:
        image[radius < 0.7] = rng.uniform(0.5, 1)
        image[radius < 0.3] = 0.0  # a ventricle, dark
        image += 0.1 * rng.random(image.shape) * (image != 0)
    return images


def test_nrmse_in_closed_form_and_inside_the_mask():
    reference = np.array([[[3.0, 4.0], [0.0, 100.0]]])
    images = reference + np.array([[[0.3, -0.4], [0.0, 50.0]]])
    mask = np.array([[[True, True], [True, False]]])
    np.testing.assert_allclose(nrmse(images, reference, mask), [0.5 / 5])
    np.testing.assert_allclose(nrmse(images, reference), [np.sqrt(0.25 + 2500) / np.sqrt(25 + 10000)])


def test_nrmse_sees_the_phase_and_magnitude_metrics_do_not():
    reference = discs()
    turned = reference * np.exp(0.1j)
    np.testing.assert_allclose(nrmse(turned, reference), 2 * np.sin(0.05))
    assert (psnr(turned, reference) > 200).all()
    np.testing.assert_allclose(ssim(turned, reference), 1)


def test_psnr_and_ssim_agree_with_skimage():
    reference = discs()
    images = reference + np.random.default_rng(1).normal(0, 0.05, reference.shape)
    for scan in range(2):
        a, b = np.abs(images[scan]), np.abs(reference[scan])
        peak = b.max()
        assert psnr(images, reference)[scan] == pytest.approx(
            independent.peak_signal_noise_ratio(b, a, data_range=peak)
        )
        expected, local = independent.structural_similarity(
            a, b, data_range=peak, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        assert ssim(images, reference)[scan] == pytest.approx(local.mean())
        inner = np.zeros(reference.shape, bool)
        inner[:, 5:-5, 5:-5] = True  # skimage leaves out the border where the window does not fit
        assert ssim(images, reference, inner)[scan] == pytest.approx(expected)
    mask = np.zeros(reference.shape, bool)
    mask[:, 10:20, 10:20] = True
    assert ssim(images, reference, mask)[1] == pytest.approx(local[10:20, 10:20].mean())


def test_tensors_channels_and_arrays_agree():
    reference = discs()
    images = reference * 0.9
    expected = score(images, reference)
    tensors = score(torch.from_numpy(images)[:, None], torch.from_numpy(reference)[:, None])
    for name, values in expected.items():
        assert values.shape == (2,)
        np.testing.assert_allclose(tensors[name], values)
    np.testing.assert_allclose(expected["nrmse"], 0.1)


def test_perfect_images():
    scores = score(discs(), discs())
    assert (scores["nrmse"] == 0).all()
    assert np.isinf(scores["psnr"]).all()
    np.testing.assert_allclose(scores["ssim"], 1)


def test_head_mask_fills_holes_and_leaves_out_specks():
    reference = discs()
    reference[:, 1, 1] = 1
    mask = head_mask(reference)
    assert mask.shape == reference.shape
    assert mask[:, 16, 16].all()
    assert not mask[:, 1, 1].any()
    assert abs(mask.mean() - np.pi * 0.7**2 / 4) < 0.03
    np.testing.assert_array_equal(head_mask(reference[:, None]), mask[:, None])


def test_coverage_of_honest_and_of_narrow_intervals():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(2, 60, 60)), rng.uniform(0.1, 2, (2, 60, 60))
    reference = mean + std * rng.normal(size=mean.shape)
    samples = mean[:, None] + std[:, None] * rng.normal(size=(2, 39, 60, 60))
    for level, fraction in coverage(samples, reference).items():
        assert fraction == pytest.approx(level, abs=0.02)
    for level, fraction in coverage_normal(mean, std, reference).items():
        assert fraction == pytest.approx(level, abs=0.02)
    assert coverage_normal(mean, std / 2, reference)[0.95] == pytest.approx(0.6729, abs=0.02)


def test_coverage_corrects_for_few_samples():
    rng = np.random.default_rng(0)
    reference, samples = rng.normal(size=(4, 60, 60)), rng.normal(size=(4, 7, 60, 60))
    assert coverage(samples, reference, [0.5])[0.5] == pytest.approx(0.5, abs=0.02)
    with pytest.warns(UserWarning, match=r"7 samples cannot state intervals of level \[0.9\]"):
        coverage(samples, reference, [0.9])
    mean, std = samples.mean(1), samples.std(1, ddof=1)
    for level, fraction in coverage_normal(mean, std, reference, samples=7).items():
        assert fraction == pytest.approx(level, abs=0.02)


def test_coverage_of_complex_images_counts_both_parts_inside_the_mask():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(1, 50, 50)) + 5j
    samples = rng.normal(size=(1, 99, 50, 50)) + 1j * rng.normal(size=(1, 99, 50, 50))
    assert coverage(samples, reference, [0.9])[0.9] == pytest.approx(0.45, abs=0.02)
    mask = np.zeros(reference.shape, bool)
    mask[:, :5] = True
    reference[mask] = 0
    assert coverage(samples, reference, [0.9], mask)[0.9] == 1
    ones = np.ones(reference.shape)
    assert coverage_normal(np.zeros_like(reference), ones, reference, [0.9])[0.9] == pytest.approx(0.5, abs=0.05)


def test_coverage_of_stored_intervals_looks_at_the_magnitude():
    reference = np.array([[[3 + 4j, 1j], [-2, 0]]])
    lower, upper = np.full(reference.shape, 0.5), np.full(reference.shape, 2.5)
    assert coverage_interval(lower, upper, reference) == 0.5
    assert coverage_interval(lower, upper, reference, np.array([[[True, True], [True, False]]])) == pytest.approx(2 / 3)


def test_table_prints_means_and_gives_plain_numbers():
    reference = discs()
    methods = {"zero-filled": score(0.8 * reference, reference), "posterior mean": score(0.9 * reference, reference)}
    text, metrics = table(methods)
    assert metrics["methods"]["posterior mean"]["nrmse"] == pytest.approx(0.1)
    assert set(metrics["methods"]["zero-filled"]) == {"nrmse", "psnr", "ssim"}
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["scans"] == 2
    assert [line.split()[0] for line in text.splitlines()] == ["NRMSE", "zero-filled", "posterior"]
    assert "0.1000 ± 0.0000" in text


def test_mistakes_are_named():
    reference = discs()
    with pytest.raises(DataError, match=r"images .* and reference"):
        nrmse(reference[:1], reference)
    with pytest.raises(DataError, match="mask must be"):
        psnr(reference, reference, np.ones((2, 3, 3)))
    with pytest.raises(DataError, match="mask of scan 1 is empty"):
        ssim(reference, reference, np.array([True, False])[:, None, None] & np.ones(reference.shape, bool))
    with pytest.raises(DataError, match="samples must be"):
        coverage(reference, reference)
    with pytest.raises(DataError, match="std must be"):
        coverage_normal(reference, np.ones(3), reference)
    with pytest.raises(DataError, match="same scans"):
        table({"a": score(reference, reference), "b": score(reference[:1], reference[:1])})
