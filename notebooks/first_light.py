# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First light: from undersampled scans to reconstructions with error bars
#
# A scanner has measured a few hundred brain slices, each a quarter of what a full image needs and each with noise.
# Nobody has the images themselves. This notebook learns from those measurements alone what such images look like, and
# then reconstructs scans that it did not learn from: not one picture of each but several that agree with the data, and
# from them a mean, a standard deviation and intervals.
#
# The scans are simulated, so that in the end we can look at what was hidden. The command `ambient-sci demo` runs the
# same path in one go. At full size expect some minutes on two CPU cores, most of it in the training.

# %%
import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray
from IPython.display import display

from ambient_sci import TrainConfig, load_prior, open_store, reconstruct, train
from ambient_sci.baselines import cg_sense, l1_wavelet_batch, tune, zero_filled
from ambient_sci.check import check
from ambient_sci.datasets import describe, simulate
from ambient_sci.demo import make_cohort
from ambient_sci.evaluate import head_mask, score, table
from ambient_sci.evaluate.compare import evaluate
from ambient_sci.plot import calibration_figure, reconstruction_figure, samples_grid, training_curve

# %matplotlib inline

# %% [markdown]
# Everything is written to one folder, a temporary one unless `AMBIENT_SCI_WORK` names another. With
# `AMBIENT_SCI_QUICK=1` the notebook runs in under a minute, to see that it works; nothing can be concluded from its
# pictures then.

# %%
QUICK = os.environ.get("AMBIENT_SCI_QUICK") == "1"
work = Path(os.environ.get("AMBIENT_SCI_WORK") or tempfile.mkdtemp(prefix="ambient-sci-"))
work.mkdir(parents=True, exist_ok=True)

size = 32 if QUICK else 64  # pixels a side
subjects, slices = (6, 4) if QUICK else (60, 8)  # to learn from
tuning_subjects, scored_subjects = 1, 1 if QUICK else 4  # held out
options = {"images": 512, "widths": (32,), "laps": 1} if QUICK else {"images": 15_000, "laps": 3}
samples, steps = (4, 6) if QUICK else (8, 16)
print(f"{'quick' if QUICK else 'full'} size, writing to {work}")

# %% [markdown]
# ## The anatomy
#
# `make_cohort` varies a brain template: subjects differ in shape, size and tissue contrast, slices in orientation,
# position and phase. The images are complex, as they are in MRI.

# %%
images, coords = make_cohort(subjects, slices, size, seed=0)
samples_grid(images[:16])

# %% [markdown]
# ## Measuring it, once
#
# Eight coils, a quarter of the lines of k-space, noise. Each slice is measured once and the result is written to a
# store: as with a real scanner, there is no second draw of mask or noise, in training or anywhere else. The store to
# learn from holds no images (`references=False`). A second store, of other subjects, keeps its references; they are
# used for tuning the classical methods and for scoring, never for learning.

# %%
scans = simulate(
    images,
    work / "scans.zarr",
    acceleration=4,
    noise=0.03,
    references=False,
    coords=coords,
    seed=0,
    overwrite=True,
)
print(describe(scans))

# %%
others, coords = make_cohort(tuning_subjects + scored_subjects, 4, size, seed=0, first_subject=1000)
simulate(others, work / "held-out.zarr", acceleration=4, noise=0.03, coords=coords, seed=1, overwrite=True)
held_out = open_store(work / "held-out.zarr")
print(held_out)

# %% [markdown]
# This is all that is known of one scan: k-space of every coil on the sampled lines (left, root sum of squares over the
# coils, logarithmic), and what becomes of it when the rest is taken to be zero (middle). Right is what it hides.

# %%
scan = held_out.read(0)
kspace = scan.y[0].abs().square().sum(0).sqrt()
hidden = held_out.references(0)[0, 0].abs()

figure, axes = plt.subplots(1, 3, figsize=(8, 2.9))
axes[0].imshow(torch.log10(kspace + 1e-3), cmap="gray")
axes[1].imshow(zero_filled(scan)[0, 0].abs(), cmap="gray")
axes[2].imshow(hidden, cmap="gray")
for panel, title in zip(axes, ("measured", "zero-filled", "hidden"), strict=True):
    panel.set_title(title)
    panel.set_axis_off()
plt.show()

# %% [markdown]
# ## Can it be learned?
#
# Before any training, `check` looks at how the scans were measured: whether all of them together see what each of them
# misses, whether any is there twice, and whether somebody of the held-out scans is among them.

# %%
report = check(scans, against=held_out, progress=False)
print(report)

# %%
report.plot()

# %% [markdown]
# *Above: in how many scans each frequency was measured well, what all of them leave unknown (dark: nothing), and both
# over the distance from the centre of k-space. [checks.ipynb](checks.ipynb) shows what a warning looks like.*
#
# ## Learning a prior
#
# One call, whose options all have defaults. The method is expectation-maximisation: a diffusion model is trained on
# rough reconstructions, then on samples of the images given each scan's measurement and the model so far, which are
# better, and so on. The run is a folder; the same call again would resume it, or return at once if it is finished.

# %%
config = TrainConfig(store=scans.path, out=work / "run", **options)
train(config)

records = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
training_curve(records)

# %% [markdown]
# *Above: the loss over the images seen, and, where the training looked, how well it predicts measured rows that it was
# not given, of scans that it does not learn from. The loss rises where a new set of samples comes in.*
#
# Images from the prior alone, with no scan behind them. After so short a training they have the texture of brains
# rather than their shape. They should be like none of the training set in particular.

# %%
prior = load_prior(config.out)
samples_grid(prior.sample(16, steps=steps).cpu())

# %% [markdown]
# ## Reconstructing scans
#
# `reconstruct` draws posterior samples: images that the prior finds plausible and that explain the measurement up to
# its noise. What comes back is an xarray Dataset in the units of the measurement.

# %%
first = 4 * tuning_subjects  # scans before this one are for tuning
scored = np.arange(first, len(held_out))
result = reconstruct(
    prior,
    held_out,
    work / "reconstructions.zarr",
    scans=scored,
    samples=samples,
    steps=steps,
    overwrite=True,
)
display(result)

# %% [markdown]
# Samples of the first of these scans. Where they agree, the data and the prior leave no choice; where they differ, any
# one reconstruction would be a guess.

# %%
samples_grid(result["sample"][0, :, 0].to_numpy(), title=f"posterior samples of scan {scored[0]}")

# %% [markdown]
# ## Against classical methods
#
# Same measurements, same coil maps. The regularisation of CG-SENSE and of L1-wavelet compressed sensing is chosen by
# the error on the tuning scans, whose images we know. That is a luxury that the learned prior did not have.


# %%
def ridge(measurement, strength):
    return cg_sense(measurement, regularisation=strength)


def wavelet(measurement, strength):
    return l1_wavelet_batch(measurement, strength, wavelet="haar")


def as_images(scans):
    """To broadcast the scale of each scan over its image."""
    return scans.scale.reshape(-1, 1, 1, 1)


tuning = held_out.read(slice(0, first))
known = held_out.references(slice(0, first)) / as_images(tuning)
strength_ridge = tune(ridge, tuning, known, [0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
strength_wavelet = tune(wavelet, tuning, known, [0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])

measurement = held_out.read(scored)
columns = {
    "Zero-filled": zero_filled(measurement) * as_images(measurement),
    "CG-SENSE": ridge(measurement, strength_ridge) * as_images(measurement),
    "L1-wavelet": wavelet(measurement, strength_wavelet) * as_images(measurement),
    "Posterior mean": result["mean"].to_numpy(),
}

# %% [markdown]
# Every method is judged inside the head. NRMSE compares complex values, so that a wrong phase counts as an error; PSNR
# and SSIM compare magnitudes.

# %%
reference = held_out.references(scored)
head = head_mask(reference)
text, metrics = table({name: score(image, reference, head) for name, image in columns.items()})
print(text)

# %%
shown = slice(0, 3)
reconstruction_figure(
    {name: image[shown] for name, image in columns.items()},
    reference[shown],
    result["std"][shown].to_numpy(),
    head[shown],
    [f"scan {number}" for number in scored[shown]],
)

# %% [markdown]
# *Above: three scans by each method, and below each image how far it is from what was hidden, on a finer scale. Bottom
# right is the predicted standard deviation, to be compared with the error of the posterior mean beside it.*
#
# ## Are the error bars honest?
#
# A profile through the middle of one scan: the band is the 90% interval of the magnitude, the line is what was hidden.

# %%
row = size // 2
one = result.isel(scan=0, channel=0, y=row)
pixels = np.arange(size)

figure, axis = plt.subplots(figsize=(7, 2.8))
axis.fill_between(pixels, one["lower"], one["upper"], alpha=0.3, label="90% interval")
axis.plot(pixels, abs(one["mean"]), label="posterior mean")
axis.plot(pixels, reference[0, 0, row].abs(), "k", linewidth=1, label="hidden")
axis.set(xlabel="pixel", ylabel="magnitude")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# *Above: where the band is wide, the scan and the prior leave the magnitude open.*
#
# One profile proves nothing. Over all pixels of all scored scans, intervals that claim a probability should hold the
# known value about that often. Points below the diagonal mean error bars that are too small. They are not exact, in
# general: the sampler is an approximation, and the prior was learned from a finite number of scans.

# %%
evaluation = evaluate(result, held_out)
print(evaluation)
covered = evaluation.metrics["coverage"]
calibration_figure([float(level) for level in covered], list(covered.values()))

# %% [markdown]
# ## What is on disk
#
# Stores and reconstructions are Zarr, and xarray opens them without this package. The reconstruction says what it was
# made from and how.

# %%
xarray.open_zarr(work / "scans.zarr", consolidated=False)

# %%
written = xarray.open_zarr(work / "reconstructions.zarr", consolidated=False)
display(written["std"].mean(["channel", "y", "x"]))
for name, value in written.attrs.items():
    print(f"{name}: {value}")

# %% [markdown]
# ## With your own data
#
# - Images to simulate with: `ambient_sci.datasets.read_images` reads npy, npz, PNG and NIfTI; `simulate` takes any
#   array `(n, height, width)`.
# - Measured k-space: `ambient_sci.datasets.import_array` takes multi-coil Cartesian k-space as an array, estimates coil
#   maps and noise where they are not given, and writes a store.
# - Anything else: make a `Measurement` from your values, an operator and a noise level, and append it with
#   `ambient_sci.datasets.StoreWriter`. Operators are in `ambient_sci.operators`;
#   [own_operator.ipynb](own_operator.ipynb) adds one.
#
# Scans have to differ in what they miss. If every scan leaves out the same lines, nothing was ever seen there, and no
# method can learn what belongs there.
