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
# # An operator of your own: a single-pixel camera as a plug-in
#
# A microscope has one detector and no camera. A mirror array shows it one pattern of light and dark at a time, and the
# detector adds up what comes back: one number for each pattern. The patterns are rows of a Hadamard matrix; there is
# time for a third of them. The package does not know such an instrument. This notebook teaches it: one class, announced
# as a plug-in and tested by inheriting the conformance kit, after which stores, the check, training and reconstruction
# work with it as with any other operator.
#
# At full size the notebook takes a minute or two of one core. It needs pytest for the kit.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from ambient_sci import Measurement, TrainConfig, open_store, reconstruct, train
from ambient_sci.baselines import total_variation_batch, zero_filled
from ambient_sci.check import check
from ambient_sci.datasets import StoreWriter
from ambient_sci.evaluate import nrmse
from ambient_sci.measurement import randn_like
from ambient_sci.plot import COLOURS, ERROR_MAP, reconstruction_figure, samples_grid

# %matplotlib inline

# %% [markdown]
# Everything is written to one folder, a temporary one unless `AMBIENT_SCI_WORK` names another. With
# `AMBIENT_SCI_QUICK=1` the notebook runs in some seconds, to see that it works; nothing can be concluded from its
# pictures then.

# %%
QUICK = os.environ.get("AMBIENT_SCI_QUICK") == "1"
work = Path(os.environ.get("AMBIENT_SCI_WORK") or tempfile.mkdtemp(prefix="ambient-sci-"))
work.mkdir(parents=True, exist_ok=True)

side = 16  # pixels; a power of two
learned_from, scored = (48, 4) if QUICK else (400, 16)
options = {"images": 256, "laps": 1} if QUICK else {"images": 8_000, "laps": 2}
samples, steps = (4, 4) if QUICK else (8, 12)
print(f"{'quick' if QUICK else 'full'} size, writing to {work}")

# %% [markdown]
# ## The instrument as mathematics
#
# Let $H$ be the Hadamard matrix of $n$ rows, divided by $\sqrt n$: it is orthonormal and symmetric. Each image is
# measured by a choice of its rows, $y = S H x + \sigma e$. Four of the patterns:

# %%
generator = torch.Generator().manual_seed(0)


def hadamard_matrix(n):
    """Sylvester's construction, with entries 1 and -1."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


patterns = hadamard_matrix(side**2).reshape(-1, side, side)
figure, axes = plt.subplots(1, 4, figsize=(6, 1.8))
for axis, k in zip(axes, (0, 3, 37, 150), strict=True):
    axis.imshow(patterns[k], cmap="gray", vmin=-1, vmax=1)
    axis.set(xticks=[], yticks=[], title=f"pattern {k}")
plt.show()

# %% [markdown]
# *Above: patterns on the mirrors, 1 white and -1 black (in practice the difference of two exposures).*
#
# ## One class
#
# An operator holds one linear map for every scan of a batch. What differs from scan to scan are *parameters*, tensors
# with the batch axis first: here, which patterns were shown. What all scans share are *settings*: the shape of the
# image. A kind writes how it measures, what its adjoint does, and which rows it has; everything else follows: slices,
# devices, derivatives, composition, storage. `thin`, which loses further rows, is what training and validation need to
# set rows aside.
#
# The matrix is never formed: a fast Hadamard transform takes $n \log n$ additions. We put the class into a small
# package, a folder with a module and a `pyproject.toml`.

# %%
MODULE = '''\
"""Single-pixel camera: a choice of Hadamard patterns for every scan."""

import math

import torch

from ambient_sci.errors import DataError
from ambient_sci.operators import LinearOperator
from ambient_sci.operators.mask import drop


def hadamard(v):
    """Walsh-Hadamard transform of the last axis, whose length is a power of two."""
    n, half = v.shape[-1], 1
    while half < n:
        a, b = v.unflatten(-1, (-1, 2, half)).unbind(-2)
        v = torch.stack([a + b, a - b], -2).flatten(-3)
        half *= 2
    return v


class SinglePixel(LinearOperator):
    """Images (batch, 1, height, width) to one number for each pattern, (batch, height * width)."""

    kind = "single-pixel"

    def __init__(self, shown, shape):
        self.shown = shown  # (batch, height * width): ones for patterns that were shown
        self.shape = tuple(shape)  # height and width, powers of two

    @property
    def parameters(self):  # what differs from scan to scan
        return {"shown": self.shown}

    @property
    def settings(self):  # what all scans share, as JSON can hold it
        return {"shape": list(self.shape)}

    @property
    def rows(self):  # ones where something was measured
        return self.shown

    def _forward(self, x):
        return self.shown * hadamard(x.flatten(1)) / math.sqrt(self.shown.shape[1])

    def _adjoint(self, y):
        return hadamard(self.shown * y).unflatten(1, (1, *self.shape))

    def _check_image(self, x):
        if tuple(x.shape[1:]) != (1, *self.shape):
            raise DataError(f"images must be (batch, 1, {self.shape[0]}, {self.shape[1]}), got {tuple(x.shape)}")

    def _check_measurement(self, y):
        if tuple(y.shape[1:]) != tuple(self.shown.shape[1:]):
            raise DataError(f"measurements must be (batch, {self.shown.shape[1]}), got {tuple(y.shape)}")

    def thin(self, fraction, generator):  # lose further patterns
        return SinglePixel(self.shown * drop(self.shown, fraction, generator), self.shape)
'''

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "single-pixel"
version = "0.1"
dependencies = ["ambient-sci"]

[project.entry-points."ambient_sci.operators"]
single-pixel = "single_pixel:SinglePixel"

[tool.setuptools]
py-modules = ["single_pixel"]
"""

package = work / "single-pixel"
package.mkdir(exist_ok=True)
_ = (package / "single_pixel.py").write_text(MODULE)
_ = (package / "pyproject.toml").write_text(PROJECT)

# %% [markdown]
# ## Testing it
#
# The kit is a class to inherit from: it wants to know how to make an operator, and, if there is another way to get at
# its matrix, that matrix. Here scipy has one. The images are small, and not square, so that an exchange of axes shows.

# %%
TESTS = """\
import torch
from scipy.linalg import hadamard
from single_pixel import SinglePixel

from ambient_sci.testing import OperatorTests


class TestSinglePixel(OperatorTests):
    image_shape = (1, 4, 8)
    dtype = torch.float64

    def make(self, batch, seed):
        draw = torch.rand(batch, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return SinglePixel((draw < 0.6).to(draw), (4, 8))

    def dense(self, operator):
        return operator.shown[..., None] * torch.from_numpy(hadamard(32) / 32**0.5)
"""
(package / "test_single_pixel.py").write_text(TESTS)
site = work / "site"


def run_kit():
    """Run the tests in a process of their own, and print what fails."""
    options = ["-q", "--tb=no", "-rf", "--color=no", "-W", "ignore", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "test_single_pixel.py"]
    paths = [str(site), str(package), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)
    failures = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    print("\n".join([*failures, done.stdout.strip().splitlines()[-1]]))
    return done.returncode


_ = run_kit()

# %% [markdown]
# Two things are wrong, and the kit has found both. `test_store` fails because nobody has announced the kind: a store
# that holds it could not be read. All the others have one cause: the forward map divides by $\sqrt n$, and the adjoint
# forgot to. On a picture of its own grey scale one would not see it, and no method would stop; each would take steps of
# the wrong length. So we mend the adjoint, and install the package.
#
# Usually that is `pip install -e single-pixel`. Here it goes into a folder of its own, so that your environment stays
# as it is.

# %%
right = MODULE.replace(
    "return hadamard(self.shown * y).unflatten(1, (1, *self.shape))",
    "return hadamard(self.shown * y).unflatten(1, (1, *self.shape)) / math.sqrt(self.shown.shape[1])",
)
assert right != MODULE
(package / "single_pixel.py").write_text(right)

pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
subprocess.run([*pip, "--no-build-isolation", "--upgrade", "--target", site, package], check=True)
assert run_kit() == 0

# %% [markdown]
# All pass: the map is linear and equal to its matrix, inner products agree, derivatives in every mode are the numerical
# ones, batches are loops, wrong shapes are refused in words, and what a store writes makes the operator again.
#
# In this notebook, too, it is now a kind like any other. (A process looks for plug-ins once, when it first needs one:
# after an installation, start the kernel again. This one has not looked yet.)

# %%
sys.path.insert(0, str(site))
from single_pixel import SinglePixel

from ambient_sci.operators import from_spec

shown = (torch.rand(1, side**2, generator=generator) < 1 / 3).float()
A = SinglePixel(shown, (side, side))
print(from_spec(A.spec()))

# %% [markdown]
# ## Cells, measured once
#
# Some images to measure: cells with a bright nucleus. Each is measured once, with a third of the patterns, others for
# each image, and the pattern that is all white, the total light. `StoreWriter` takes a `Measurement`: values, operator
# and noise level. The store to learn from holds no images.


# %%
def cells(count, rng):
    """Draw images of two to four cells, ``(count, 1, side, side)``, brightest pixel one."""
    row, column = np.mgrid[:side, :side]
    images = np.zeros((count, side, side))
    for image in images:
        for _ in range(rng.integers(2, 5)):
            y, x = rng.uniform(3, side - 4, 2)
            radius, stretch, angle = rng.uniform(2.0, 3.2), rng.uniform(1.0, 1.5), rng.uniform(0, np.pi)
            a = (column - x) * np.cos(angle) + (row - y) * np.sin(angle)
            b = (row - y) * np.cos(angle) - (column - x) * np.sin(angle)
            distance = np.hypot(a / stretch, b) / radius
            body = 0.45 / (1 + np.exp(6 * (distance - 1)))
            np.maximum(image, body + 0.55 * np.exp(-((distance / 0.45) ** 2)), out=image)
    return torch.from_numpy(images / images.max((1, 2), keepdims=True)).float()[:, None]


def measure(images, path, references, generator, noise=0.02):
    """Show a third of the patterns to each image, and write what the detector gives."""
    chosen = torch.rand(len(images), side**2, generator=generator) < 1 / 3
    chosen[:, 0] = True
    A = SinglePixel(chosen.float(), (side, side))
    y = A(images)
    y = (y + noise * randn_like(y, generator)) * A.rows
    with StoreWriter(path, {"source": "a single-pixel camera"}, overwrite=True) as writer:
        writer.append(Measurement(y, A, noise), images if references else None)
    return open_store(path)


rng = np.random.default_rng(0)
store = measure(cells(learned_from, rng), work / "cells.zarr", False, generator)
held_out = measure(cells(scored, rng), work / "held-out.zarr", True, generator)
display(store)

# %%
one = held_out.read(0)
numbers = np.flatnonzero(one.operator.shown[0])
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), width_ratios=(1, 3), layout="constrained")
axes[0].imshow(held_out.references(0)[0, 0], cmap="gray")
axes[0].set(xticks=[], yticks=[], title="an image")
axes[1].vlines(numbers, 0, one.y[0, numbers], color=COLOURS[0], linewidth=1)
axes[1].set(xlabel="pattern", ylabel="value", title="what the detector gives of it")
axes[1].spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# *Above: one image that is kept for scoring, and all that the camera says of it: a number for each pattern that was
# shown. Gaps are patterns that there was no time for.*
#
# Can a prior be learned from it? The check knows nothing of this kind but that it is linear, and that is enough:

# %%
report = check(store, progress=False)
print(report)

# %% [markdown]
# ## Learning and reconstructing
#
# As with any operator.

# %%
config = TrainConfig(store=store.path, out=work / "run", patch=2, widths=(32,), batch=16, preview=0, **options)
prior = train(config)
display(samples_grid(prior.sample(16, steps=steps), title="images from the prior alone: cells that do not exist"))

# %%
scans, reference = held_out.read(slice(None)), held_out.references(slice(None))
posterior = reconstruct(prior, held_out, samples=samples, steps=steps)
columns = {
    "Adjoint": zero_filled(scans),
    "Total variation": total_variation_batch(scans, 0.001),
    "Posterior mean": posterior["mean"].to_numpy(),
}
for name, images in columns.items():
    error = nrmse(images, reference)
    print(f"{name:<16} NRMSE {error.mean():.3f} ± {error.std():.3f}")

# %%
everywhere = np.ones(reference[:3].shape, bool)
reconstruction_figure(
    {name: image[:3] for name, image in columns.items()}, reference[:3], posterior["std"][:3].to_numpy(), everywhere
)

# %% [markdown]
# *Above: three held-out images by each method, the error of each below it, and last the image itself with the predicted
# standard deviation. The strength of total variation is small, and smaller ones do the same.*
#
# Error bars are those of any other operator, too. How often does the 90% interval hold the known value?

# %%
inside = (posterior["lower"] <= reference.numpy()) & (posterior["upper"] >= reference.numpy())
print(f"90% intervals hold {100 * float(inside.mean()):.0f}% of the pixels")

figure, axis = plt.subplots(figsize=(4.4, 3.4))
drawn = axis.imshow(posterior["std"].mean(["scan", "channel"]), cmap=ERROR_MAP)
figure.colorbar(drawn, label="standard deviation, mean over scans")
axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# *Above: where in the image this camera leaves most open, on average.*
#
# ## In short
#
# - One class: `parameters`, `settings`, `rows`, `_forward`, `_adjoint`, two checks of shapes, and `thin`. `_gram`,
#   where $A^H A$ has a short cut (a circulant, a projection), makes everything faster. `lift` is for the method
#   `ambient` with noise: kinds whose rows are orthonormal may return `self.rows * self(n)`.
# - One line in `pyproject.toml`, and stores of this kind open wherever the package is installed.
# - One test class. A kind should pass in about a second; what fails, fails by name.
# - Rows of about unit norm, as here, suit the defaults of training best.
# - For a map that is only to be tried, without storage, `ambient_sci.operators.adapters.from_functions` takes two
#   functions.
