import io

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_sci.errors import DataError
from ambient_sci.evaluate import score
from ambient_sci.plot import calibration_figure, reconstruction_figure, samples_grid, training_curve


def render(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    image = np.asarray(Image.open(buffer).convert("RGB"))
    assert image.std() > 5  # something was drawn
    return image


@pytest.fixture
def images():
    ticks = torch.linspace(-1, 1, 24)
    head = (ticks[:, None] ** 2 + ticks**2 < 0.6).to(torch.complex64) * torch.exp(0.3j * ticks)
    reference = torch.stack([head, 0.7 * head])[:, None]
    return {"Zero-filled": 0.8 * reference, "Posterior mean": 0.95 * reference}, reference


def texts(figure):
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    return inside + [axes.get_title() for axes in figure.axes] + [text.get_text() for text in figure.texts]


def test_reconstructions_with_a_reference(images):
    columns, reference = images
    std = torch.full(reference.shape, 0.05)
    figure = reconstruction_figure(columns, reference, std, labels=["scan 7", "scan 9"], gain=5)
    render(figure)
    shown = texts(figure)
    for wanted in ("Zero-filled", "Posterior mean", "Reference", "Posterior std", "|error| ×5", "scan 7", "scan 9"):
        assert wanted in shown
    value = score(columns["Posterior mean"], reference)
    assert f"NRMSE {value['nrmse'][1]:.3f} · {value['psnr'][1]:.1f} dB" in shown
    drawn = [axes.images[0] for axes in figure.axes if axes.images]
    grey = {image.get_clim() for image in drawn if image.get_cmap().name == "gray"}
    fine = {image.get_clim() for image in drawn if image.get_cmap().name != "gray"}
    assert {round(5 * high, 6) for _, high in fine} == {round(high, 6) for _, high in grey}  # as stated
    errors = [image.get_array() for image in drawn if image.get_cmap().name != "gray"]
    np.testing.assert_allclose(errors[0], 0.2 * abs(reference[0, 0].numpy()), atol=1e-6)


def test_the_gain_is_chosen_so_that_errors_fit(images):
    columns, reference = images
    figure = reconstruction_figure(columns, reference)
    assert "|error| ×5" in texts(figure)  # the largest error is a fifth of the image


def test_reconstructions_of_a_real_scan_have_no_errors(images):
    columns, reference = images
    figure = reconstruction_figure(columns, std=np.full(reference.shape, 0.1))
    render(figure)
    assert any(text.startswith("Posterior std") for text in texts(figure))
    assert not any("error" in text or "NRMSE" in text for text in texts(figure))
    render(reconstruction_figure({"only": np.zeros((1, 8, 12))}))


def test_images_of_another_shape_are_refused(images):
    columns, reference = images
    with pytest.raises(DataError, match="one shape"):
        reconstruction_figure(columns, reference[..., :8])
    with pytest.raises(DataError, match=r"must be \(n, height, width\)"):
        reconstruction_figure({"a": torch.ones(2, 3, 4, 4)})
    with pytest.raises(DataError, match="at least one"):
        reconstruction_figure({})


def test_samples_grid(images):
    figure = samples_grid(torch.cat([images[1]] * 5), columns=4, title="Samples")
    render(figure)
    assert len(figure.axes) == 10


def test_training_curve_passes_over_other_records():
    records = [{"images": 64 * k, "loss": 1 / (1 + k), "lr": 1.0} for k in range(100)] + [{"event": "checkpoint"}]
    figure = training_curve(records)
    render(figure)
    assert len(figure.axes[0].lines[0].get_xdata()) == 100
    assert figure.axes[0].get_yscale() == "log"
    render(training_curve(records[:1]))
    with pytest.raises(DataError, match="'loss'"):
        training_curve([{"images": 1}])


def test_calibration_figure():
    levels = [0.5, 0.9, 0.95]
    figure = calibration_figure(levels, [0.48, 0.88, 0.94])
    render(figure)
    assert list(figure.axes[0].lines[1].get_ydata()) == [0.48, 0.88, 0.94]
    render(calibration_figure(levels, {"learned": [0.48, 0.88, 0.94], "oracle": [0.5, 0.9, 0.95]}))
    with pytest.raises(DataError, match="'learned' must have 3 values"):
        calibration_figure(levels, {"learned": [0.5]})
