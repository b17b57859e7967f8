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
# # Missing pixels: learning digits that nobody has seen whole
#
# Every image of a collection has lost pixels, each image others: dead detector cells, scratches, cosmic rays, clouds.
# No image is whole. What can be learned of the images from the pixels that are left, when half of them are missing,
# three quarters, nine of ten? It is the experiment that Ambient Diffusion began with (Daras et al. 2023,
# arXiv:2305.19256), on images small enough for a laptop: handwritten digits of 8 × 8 pixels.
#
# Four ways of learning see the same measurements, with the same kind of network:
#
# | | learns |
# |---|---|
# | `naive` | to restore all pixels that it was shown, with nothing hidden from it |
# | `ambient-gan` | a generator whose images look like the data once measured (Bora et al. 2018) |
# | `ambient` | to predict pixels that were measured and further hidden from it |
# | `em` | a diffusion model of posterior samples that it draws by the model so far; it goes on from `ambient` |
#
# The first two are there to compare with. At full size the notebook takes three to four minutes of one core.

# %%
import os
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ambient_sci import TrainConfig, reconstruct, train
from ambient_sci.baselines import total_variation_batch
from ambient_sci.datasets import read_images, simulate
from ambient_sci.evaluate import coverage_interval, nrmse
from ambient_sci.plot import COLOURS

# %matplotlib inline

# %% [markdown]
# Everything is written to one folder, a temporary one unless `AMBIENT_SCI_WORK` names another. With
# `AMBIENT_SCI_QUICK=1` the notebook runs in some seconds, to see that it works; nothing can be concluded from its
# pictures then.

# %%
QUICK = os.environ.get("AMBIENT_SCI_QUICK") == "1"
work = Path(os.environ.get("AMBIENT_SCI_WORK") or tempfile.mkdtemp(prefix="ambient-sci-"))
work.mkdir(parents=True, exist_ok=True)

missing = (0.5, 0.9) if QUICK else (0.5, 0.75, 0.9)
learned_from, scored = (64, 6) if QUICK else (1500, 32)  # images
options = {"images": 128 if QUICK else 4_000, "batch": 16, "widths": (32,), "laps": 1}
samples, steps = (4, 4) if QUICK else (8, 12)
METHODS = ("naive", "ambient-gan", "ambient", "em")
print(f"{'quick' if QUICK else 'full'} size, writing to {work}")

# %% [markdown]
# ## The digits
#
# The digits come with scikit-learn: 1,797 of them, written by 43 people (Alpaydin and Kaynak 1998, UCI Machine Learning
# Repository). For images of your own, MNIST for example, let `AMBIENT_SCI_DIGITS` name a file that `read_images` reads,
# such as an `.npy` of shape `(n, height, width)`; larger images take longer and want a larger network.

# %%
file = os.environ.get("AMBIENT_SCI_DIGITS")
if file:
    images, _ = read_images(file)
else:
    from sklearn.datasets import load_digits

    images = load_digits().images / 16
images = np.random.default_rng(0).permutation(images).astype(np.float32)
side = images.shape[1]
if side > 16:
    options |= {"patch": 2, "widths": (64, 64)}
else:
    options["patch"] = 1
print(f"{len(images)} images of {images.shape[1]} × {images.shape[2]} pixels")

# %% [markdown]
# ## Losing pixels, once
#
# Each image is measured a single time, with a mask of its own, and written to a store. There is no second draw of a
# mask, in training or anywhere else: a scientist's data are like that. The stores to learn from hold no images.

# %%
stores, tests = {}, {}
for p in missing:
    name = f"{100 * p:.0f}"
    lossy = {"operator": "mask", "keep": 1 - p, "noise": 0.0, "overwrite": True}
    stores[p] = simulate(images[:learned_from], work / f"train-{name}.zarr", references=False, seed=0, **lossy)
    tests[p] = simulate(images[-scored:], work / f"test-{name}.zarr", seed=1, **lossy)
truth = tests[missing[0]].references(slice(None))


# %%
def show(axis, image, measured=None):
    """Grey from 0 to 1; pixels that were not measured are blue."""
    cmap = plt.get_cmap("gray").with_extremes(bad=COLOURS[5])
    shown = image if measured is None else np.ma.masked_where(measured == 0, image)
    axis.imshow(shown, cmap=cmap, vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def seen(p, scan):
    """What was measured of a test image, and where."""
    m = tests[p].read(scan)
    return m.y[0, 0].numpy(), m.operator.mask[0, 0].numpy()


def draw_rows(rows):
    """Rows of images, each ``(name, [(image, measured), …])``."""
    columns = max(len(row) for _, row in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(0.95 * columns + 1.2, 0.95 * len(rows)), squeeze=False)
    for panels, (name, row) in zip(axes, rows, strict=True):
        for panel, (image, measured) in zip(panels, row, strict=True):
            show(panel, image, measured)
        panels[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.subplots_adjust(wspace=0.06, hspace=0.06)
    plt.show()


some = range(min(8, scored))
draw_rows(
    [(f"{100 * p:.0f}% missing", [seen(p, k) for k in some]) for p in missing]
    + [("never seen", [(truth[k, 0], None) for k in some])]
)

# %% [markdown]
# *Above: what is measured of eight digits (grey), what is missing (blue), and the digits themselves, which only the
# scoring looks at. At 50% one guesses most of them; at 90% there are six or seven pixels left, and nobody would.*
#
# ## Learning, four times at each level
#
# One call each. Every method is given the same store and is shown the same number of images. `em` begins with the
# images that `ambient` has restored (`start_from`), so that it stands on twice the training; left to itself it begins
# with total variation, which has little to say about images of which most pixels are missing.

# %%
priors, seconds = {}, {}
for p in missing:
    for method in METHODS:
        out = work / f"{method}-{100 * p:.0f}"
        earlier = work / f"ambient-{100 * p:.0f}" if method == "em" else None
        config = TrainConfig(store=stores[p].path, out=out, method=method, start_from=earlier, preview=0, **options)
        began = time.process_time()
        priors[p, method] = train(config, progress=False)
        seconds[p, method] = time.process_time() - began
        print(f"{100 * p:.0f}% missing, {method:<12} {seconds[p, method]:6.1f} s of processor time")

# %% [markdown]
# ## Restoring digits that nobody learned from
#
# The same call for every prior. `em` and `ambient-gan` leave an ordinary diffusion model, from which posterior samples
# are drawn by moment matching (MMPS); `naive` and `ambient` leave a network that restores measurements, whose sampler
# is A-DPS. The mean of the samples is the restoration that is scored. Total variation is the classical method; without
# noise its strength has to be small, and no more.

# %%
posteriors, restored = {}, {}
for p in missing:
    scans = tests[p].read(slice(None))
    restored[p, "total variation"] = total_variation_batch(scans, 0.01).numpy()
    for method in METHODS:
        found = reconstruct(priors[p, method], tests[p], samples=samples, steps=steps, progress=False)
        posteriors[p, method], restored[p, method] = found, found["mean"].to_numpy()

error = {key: nrmse(image, truth) for key, image in restored.items()}
names = ("total variation", *METHODS)
print(f"{'NRMSE':<16}" + "".join(f"{100 * p:>15.0f}%" for p in missing))
for name in names:
    print(f"{name:<16}" + "".join(f"{error[p, name].mean():>8.3f} ± {error[p, name].std():.3f}" for p in missing))
for p in missing:
    best = min(names, key=lambda name, p=p: error[p, name].mean())
    print(f"{100 * p:.0f}% missing: least error by {best}")

# %%
figure, axis = plt.subplots(figsize=(5.6, 3.4))
for k, name in enumerate(names):
    means = [error[p, name].mean() for p in missing]
    bars = [error[p, name].std() / scored**0.5 for p in missing]
    axis.errorbar([100 * p for p in missing], means, bars, label=name, color=COLOURS[k], marker="osD^v"[k], capsize=3)
axis.set(xlabel="missing pixels / %", ylabel="NRMSE of the restoration", ylim=(0, None))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# *Above: the error of each method over the part of the pixels that is missing; a blank image has an error of 1. Bars
# are standard errors over the scored digits.*
#
# Some of them in pictures, at the level in the middle:

# %%
p = missing[len(missing) // 2]
draw_rows(
    [("measured", [seen(p, k) for k in some])]
    + [(name, [(restored[p, name][k, 0], None) for k in some]) for name in names]
    + [("never seen", [(truth[k, 0], None) for k in some])]
)

# %% [markdown]
# *Above: the same digits restored by each method. Blur is a posterior mean's way of saying that it does not know: where
# several digits would explain the pixels, their mean is neither.*
#
# So one looks at the samples themselves:

# %%
k = 0
draw_rows(
    [
        (
            f"{100 * p:.0f}% missing",
            [seen(p, k), (truth[k, 0], None)]
            + [(image, None) for image in posteriors[p, "em"]["sample"][k, : samples - 2, 0].to_numpy()],
        )
        for p in missing
    ]
)

# %% [markdown]
# *Above: the first digit at each level: what was measured of it, the digit, and posterior samples by `em`. All of them
# have the measured pixels. The more is missing, the more they differ.*
#
# ## What each has learned
#
# Images drawn from the priors alone, with no scan behind them. `naive` and `ambient` are told what an instrument sees,
# and draw through the masks of some test scans; the two others need none.

# %%
count = 8
rows = []
for method in METHODS:
    prior = priors[p, method]
    through = None
    if method in ("naive", "ambient"):
        through = tests[p].read(np.arange(count) % scored).operator
    drawn = prior.sample(count, steps=steps, operator=through)
    rows.append((method, [(image, None) for image in drawn[:, 0]]))
draw_rows([*rows, ("digits", [(images[k], None) for k in range(count)])])

# %% [markdown]
# *Above: eight images from each prior, and eight digits. Nothing tells them where to begin, so that this asks for more
# than restoring does: after a few minutes expect strokes in the right places rather than digits.*
#
# A network that is only ever asked for pixels that it was shown has nothing to learn about the others: it can repeat
# what it is given. That is why `naive` fills in so little, and why `ambient` hides further pixels: those it cannot
# repeat. `ambient-gan` gets around it by measuring its own images; `em` by learning from images that agree with every
# measured pixel and that are filled in with what is known so far.
#
# ## Do the error bars hold?
#
# Each restoration comes with 90% intervals. How many of the missing pixels do they hold?

# %%
print(f"{'90% intervals hold':<20}" + "".join(f"{100 * p:>9.0f}%" for p in missing) + "   of the missing pixels")
for method in METHODS:
    part = []
    for p in missing:
        found = posteriors[p, method]
        lost = tests[p].read(slice(None)).operator.mask.expand(truth.shape) == 0
        inside = coverage_interval(found["lower"].to_numpy(), found["upper"].to_numpy(), truth, mask=lost)
        part.append(f"{100 * np.mean(inside):>9.0f}%")
    print(f"{method:<20}" + "".join(part))

# %% [markdown]
# Far below 90% means a method that is sure of what it does not know, and that its pictures are not to be trusted where
# pixels are missing; near 100% means bars that are wider than they need be.
#
# ## How far this goes
#
# These are a few thousand images shown to a small network, within minutes. The order of the methods at this size need
# not be that of a long training: [benchmarks/README.md](../benchmarks/README.md#learning) has it on MNIST at 28 × 28
# pixels, with 60,000 images shown, an oracle that saw clean digits, and what did not work. There is no noise here; with
# noise use the same calls and state its level, in `simulate(noise=…)` or in the `Measurement`.
#
# Two things do not change with size. Images have to lose *different* pixels: a pixel that is dead in all of them is
# learned by no method ([checks.ipynb](checks.ipynb) shows the warning). And a prior is a statement about the images
# that it was learned from: what it fills in is likely, not measured.
