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
# # A reconstruction pipeline: tensors in, images and error bars out
#
# A reconstruction server stands beside a scanner. Slice after slice comes in as raw k-space in memory, and goes out as
# an image, with a standard deviation and a mark if something is wrong with it, in about the time that the next slice
# takes. Nothing is to be written to a disk. This notebook builds that server from four calls: `prepare`, `normalise`,
# `reconstruct`, and one threshold.
#
# The prior is learned beforehand, in some other night; here in the second section. At full size the notebook takes two
# to four minutes of one core, most of it in that training.

# %%
import os
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from ambient_sci import TrainConfig, load_prior, reconstruct, train
from ambient_sci.datasets import Preparation, RawScan, normalise, simulate
from ambient_sci.datasets.coils import coil_maps
from ambient_sci.datasets.prepare import prepare
from ambient_sci.demo import make_cohort
from ambient_sci.evaluate import head_mask, nrmse
from ambient_sci.measurement import collate_measurements, randn_like
from ambient_sci.operators import Sense, patterns
from ambient_sci.plot import COLOURS, reconstruction_figure, samples_grid

# %matplotlib inline

# %% [markdown]
# The prior, and nothing else, is written to one folder, a temporary one unless `AMBIENT_SCI_WORK` names another. With
# `AMBIENT_SCI_QUICK=1` the notebook runs in under a minute, to see that it works; nothing can be concluded from its
# pictures then.

# %%
QUICK = os.environ.get("AMBIENT_SCI_QUICK") == "1"
work = Path(os.environ.get("AMBIENT_SCI_WORK") or tempfile.mkdtemp(prefix="ambient-sci-"))
work.mkdir(parents=True, exist_ok=True)

size, coils = 32, 4
subjects, slices, incoming = (6, 4, 4) if QUICK else (50, 8, 12)  # to learn from; slices that come in
options = {"images": 256, "laps": 1} if QUICK else {"images": 8_000, "laps": 2}
samples, steps = (4, 6) if QUICK else (8, 12)
print(f"{'quick' if QUICK else 'full'} size, writing to {work}")

# %% [markdown]
# ## Beforehand: the prior
#
# Learned from scans of other people, with a third of k-space each, as [first_light.ipynb](first_light.ipynb) tells.

# %%
images, coords = make_cohort(subjects, slices, size, seed=0)
past = simulate(
    images, work / "past.zarr", acceleration=3, coils=coils, noise=0.03, references=False, coords=coords, overwrite=True
)
train(TrainConfig(store=past.path, out=work / "run", patch=2, widths=(32, 64), batch=16, preview=0, **options))

# %% [markdown]
# ## The scanner
#
# It is simulated here, and that is all that this section is about: it gives raw k-space of four coils in the scanner's
# own units, far from one, a noise scan, and a quick scan of the centre of k-space. Of coil maps and noise levels it
# says nothing. One slice in the middle of the day goes wrong: the receiver of one coil drops out halfway through.


# %%
def scanner(images, seed=1):
    """Yield of each image what `RawScan` takes: k-space ``(coil, y, x)``, zero where it was not sampled, and more."""
    generator = torch.Generator().manual_seed(seed)
    gains = 1 + 0.3 * torch.rand(coils, generator=generator)  # of the receivers: noise is not the same in all
    maps = coil_maps(coils, (size, size), generator)[None]
    everything = Sense(torch.ones(1, 1, size, size), maps)
    centre = slice(size // 4, 3 * size // 4)

    def noise(*shape):
        return 0.03 * gains.reshape(-1, *[1] * len(shape)) * randn_like(torch.empty(coils, *shape) + 0j, generator)

    for number, image in enumerate(images):
        x = torch.from_numpy(image)[None, None]
        mask = patterns.random_lines(1, (size, size), acceleration=3, calibration=6, generator=generator)
        kspace = mask[0] * (everything(x)[0] + noise(size, size))
        if number == len(images) // 2:
            kspace[0, :, size // 2 + 1 :] = 0
        quick = (everything(x)[0] + noise(size, size))[:, centre, centre]
        yield {
            "kspace": unit * kspace.numpy(),
            "mask": mask[0, 0].expand(size, size).numpy() > 0,
            "noise": unit * noise(512).numpy(),
            "calibration": unit * quick.numpy(),
            "calibration_width": 6,
        }


unit = 2.7e-6  # of the scanner
subjects_today, _ = make_cohort(incoming, 1, size, seed=0, first_subject=1000)
raw = [RawScan(**scan) for scan in scanner(subjects_today)]
kspace = raw[0].kspace
print(f"k-space of one slice: {kspace.shape}, {kspace.dtype}, largest {abs(kspace).max():.2g}")

figure, axes = plt.subplots(1, coils, figsize=(8, 2.2))
for axis, coil in zip(axes, kspace, strict=True):
    axis.imshow(np.log10(np.abs(coil) / np.abs(kspace).max() + 1e-4), cmap="gray")
    axis.set(xticks=[], yticks=[])
figure.suptitle("one slice as it comes in: logarithm of k-space, coil by coil", fontsize=10)
plt.show()

# %% [markdown]
# ## The server
#
# Once, when it starts: load the prior. Then for each slice
#
# 1. `prepare`: whiten the coils by the noise scan, estimate their maps from the quick scan (ESPIRiT), and make a
#    `Measurement` of it: values, operator, noise level;
# 2. `normalise`: bring it to the units that the prior knows, and remember the factor;
# 3. `reconstruct`: posterior samples, their mean and spread, in the scanner's units again.

# %%
prior = load_prior(work / "run")


def serve(scan):
    """One slice: its posterior, and seconds of preparation and of reconstruction."""
    began = time.perf_counter()
    measurement = normalise(prepare(scan, Preparation()))
    prepared = time.perf_counter()
    posterior = reconstruct(prior, measurement, samples=samples, steps=steps, progress=False)
    return posterior, prepared - began, time.perf_counter() - prepared


serve(raw[0])  # libraries plan their transforms at the first call
served, preparing, drawing = zip(*map(serve, raw), strict=True)
for number, seconds in enumerate(zip(preparing, drawing, strict=True)):
    print(f"slice {number:2d}: prepared in {seconds[0]:.2f} s, reconstructed in {seconds[1]:.2f} s")
display(served[0])

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.6))
axis.bar(range(incoming), preparing, color=COLOURS[4], label="prepare and normalise")
axis.bar(range(incoming), drawing, bottom=preparing, color=COLOURS[0], label=f"{samples} samples in {steps} steps")
axis.set(xlabel="slice", ylabel="seconds", xticks=range(incoming))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
plt.show()

# %% [markdown]
# *Above: seconds from raw k-space to mean and standard deviation, for each slice, on this machine.*
#
# ## What goes out
#
# An xarray Dataset a slice: `mean`, `std`, `lower`, `upper`, the samples, and how it was made. Three of them beside the
# images that the scanner did not have, drawn relative to the brightest pixel. Coils that are calibrated on themselves
# leave the phase of an image open, so magnitudes are compared.

# %%
known = unit * np.abs(subjects_today)[:, None]
mean, std = (np.abs(np.concatenate([one[name].to_numpy() for one in served])) for name in ("mean", "std"))
good = [number for number in range(incoming) if number != incoming // 2]
head = head_mask(known)
error = nrmse(mean, known, head)
print(f"NRMSE of the means inside the head: {error[good].mean():.3f} ± {error[good].std():.3f}")

shown = good[:3]
reconstruction_figure(
    {"posterior mean": mean[shown] / unit},
    known[shown] / unit,
    std[shown] / unit,
    head[shown],
    [f"slice {number}" for number in shown],
)

# %% [markdown]
# ## Something is wrong with a slice
#
# `residual` is the misfit of each sample in units of the noise. Samples of the right posterior explain the data as well
# as the truth does: one on average. A slice whose data contradict the prior, the coil maps or the noise level stands
# far above, and a server should say so instead of sending the picture alone. No image has to be known for that.
# (`prepare` has its own doubts above: it compares the noise level with the residual of a fit.)

# %%
residual = np.array([float(one["residual"].mean()) for one in served])
limit = 1.5 * np.median(residual)
figure, axis = plt.subplots(figsize=(5.6, 2.6))
axis.axhline(limit, color="#6b6b6b", linestyle="--", linewidth=1)
axis.text(incoming - 0.5, limit, " limit", va="center", fontsize=8, color="#6b6b6b")
for suspicious, colour, marker, label in ((False, COLOURS[0], "o", "sent"), (True, COLOURS[1], "X", "marked")):
    some = np.flatnonzero((residual > limit) == suspicious)
    axis.plot(some, residual[some], marker, color=colour, markersize=7, label=label)
axis.set(xlabel="slice", ylabel="misfit / noise", xticks=range(incoming), ylim=(0, None))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.05, 1.0))
plt.show()
print("marked:", ", ".join(map(str, np.flatnonzero(residual > limit))) or "none")
print(f"the receiver dropped out in slice {incoming // 2}, whose NRMSE is {error[incoming // 2]:.3f}")

# %% [markdown]
# *Above: misfit of each slice. The limit, half as much again as the median slice, is a choice: take it from a day on
# which all was well.*
#
# ## How many samples, how many steps?
#
# More samples make the mean better and the standard deviation less noisy, more steps make each sample better. Time goes
# with both. Several slices at once (`collate_measurements`) cost less each than one after the other, if they may wait
# for each other.

# %%
batch = collate_measurements([normalise(prepare(raw[k], Preparation())) for k in good])
choices = [(2, 4), (4, 6)] if QUICK else [(2, 6), (4, 8), (8, 12), (16, 16)]
seconds, errors = [], []
for count, number_of_steps in choices:
    began = time.perf_counter()
    found = reconstruct(prior, batch, samples=count, steps=number_of_steps, progress=False)
    seconds.append((time.perf_counter() - began) / len(batch))
    errors.append(nrmse(abs(found["mean"]).to_numpy(), known[good], head[good]).mean())
    print(f"{count:2d} samples, {number_of_steps:2d} steps: {seconds[-1]:.2f} s a slice, NRMSE {errors[-1]:.3f}")

figure, axis = plt.subplots(figsize=(4.8, 3.2))
axis.plot(seconds, errors, "o-", color=COLOURS[0])
for x, y, (count, number_of_steps) in zip(seconds, errors, choices, strict=True):
    axis.annotate(f"{count} × {number_of_steps}", (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
axis.set(xlabel="seconds a slice, all slices together", ylabel="NRMSE of the mean", xlim=(0, 1.2 * max(seconds)))
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# *Above: error over time, labelled samples × steps. Where the curve is flat, time is wasted.*
#
# ## Further down the line
#
# A sample is an image, so that whatever a pipeline computes of an image it can compute of all samples, and has an error
# bar. The mean intensity of the left and of the right half of the head, and their difference:

# %%
found = served[good[0]]
drawn = np.abs(found["sample"][0, :, 0].to_numpy()) / unit
inside = head[good[0], 0]
left, right = (inside & half for half in (np.arange(size) < size // 2, np.arange(size) >= size // 2))
difference = drawn[:, left].mean(1) - drawn[:, right].mean(1)
truth = np.abs(subjects_today[good[0]])
print(
    f"left minus right: {difference.mean():.4f} ± {difference.std(ddof=1):.4f}, "
    f"in the image that was hidden {truth[left].mean() - truth[right].mean():.4f}"
)
samples_grid(drawn, title=f"samples of slice {good[0]}")

# %% [markdown]
# ## In production
#
# - Pin the number of threads (`torch.set_num_threads`), and set `GOMP_SPINCOUNT=1000` before Python starts on a machine
#   that is shared with other work. `load_prior(run, device="cuda")` puts the network on a GPU; measurements follow.
# - `reconstruct(…, out="recon.zarr")` writes batch by batch and goes on where it was interrupted; `scheduler=` shares
#   scans among the workers of a Dask cluster ([docs/reconstruction.md](../docs/reconstruction.md)).
# - `python -m benchmarks.pipeline RUN STORE` measures the time from a scan in memory to its posterior on your machine.
# - A prior is one of images of that size and kind. For another contrast or matrix learn another one, and let
#   `validate_prior` say whether it explains the scans of the day ([checks.ipynb](checks.ipynb)).
