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
# # Radio galaxies: from UVFITS files to posterior images
#
# A survey has pointed the VLA at some hundred radio galaxies for ten seconds each. From each snapshot there are 351
# baselines, a few hundred visibilities of the sky, and no image: what a snapshot does not measure has to come from
# somewhere. CLEAN takes it from point sources, maximum entropy and total variation from smoothness. This notebook takes
# it from the survey itself: a prior is learned from the visibilities of all sources alone, and gives each source
# several images that agree with its data, and from them a mean and a standard deviation in Jy per pixel.
#
# The sky is simulated, so that in the end we can look at it. From the UVFITS files on nothing is: point the import at
# files of your own and go on from there. At full size the notebook takes two to four minutes of one core.

# %%
import json
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.coordinates import EarthLocation
from astropy.io import fits
from astropy.utils import iers
from astropy.wcs import WCS
from pyuvdata import Telescope, UVData

from ambient_sci import TrainConfig, load_prior, reconstruct, train, validate_prior
from ambient_sci.baselines import total_variation_batch, tune_held_out
from ambient_sci.check import check
from ambient_sci.datasets import describe, export, import_files
from ambient_sci.evaluate import judge_samples, nrmse
from ambient_sci.operators import arrays
from ambient_sci.plot import COLOURS, ERROR_MAP, training_curve

# %matplotlib inline
iers.conf.auto_download = False  # the Earth's exact orientation does not matter here

# %% [markdown]
# Everything is written to one folder, a temporary one unless `AMBIENT_SCI_WORK` names another. With
# `AMBIENT_SCI_QUICK=1` the notebook runs in some seconds, to see that it works; nothing can be concluded from its
# pictures then.

# %%
QUICK = os.environ.get("AMBIENT_SCI_QUICK") == "1"
work = Path(os.environ.get("AMBIENT_SCI_WORK") or tempfile.mkdtemp(prefix="ambient-sci-"))
work.mkdir(parents=True, exist_ok=True)

surveyed, held_out = (16, 4) if QUICK else (240, 24)  # sources to learn from, and others
options = {"images": 128, "laps": 1} if QUICK else {"images": 8_000, "laps": 2}
samples, steps = (6, 6) if QUICK else (8, 12)
size, pixel = 32, 1.5  # pixels a side, arcsec each
frequency = 1.4e9  # Hz
noise = 0.002  # Jy, of each real component of Stokes I on a typical baseline
LIGHT, ARCSEC = 299792458.0, np.pi / 648000
print(f"{'quick' if QUICK else 'full'} size, writing to {work}")

# %% [markdown]
# ## The sky
#
# Each source is a core, a jet on one side, and two lobes with a hot spot each, all of them Gaussians on the sky: flux,
# place to the East and to the North, size along and across, position angle. Of Gaussians the visibilities are known in
# closed form, so that neither the sky nor its measurement knows of pixels, or of this package.

# %%
rng = np.random.default_rng(0)


def galaxy():
    """Components of one source, ``(n, 6)``: flux / Jy, East, North, sigma along, across / arcsec, position angle."""
    angle, total = rng.uniform(0, np.pi), rng.uniform(0.05, 0.2)
    axis = np.array([np.sin(angle), np.cos(angle)])
    parts = [(rng.uniform(0.05, 0.3), 0, 0, 1.5, 1.5, 0)]
    for side in (-1, 1):
        bend = rng.normal(0, 0.15)
        along = np.array([np.sin(angle + bend), np.cos(angle + bend)]) * side * rng.uniform(6, 12)
        length, width = rng.uniform(2.5, 4.0), rng.uniform(1.8, 2.8)
        parts.append((rng.uniform(0.4, 1.2), *along, length, width, angle + bend))
        parts.append((rng.uniform(0.1, 0.5), *(1.25 * along), 1.5, 1.5, 0))
    reach = rng.uniform(2, 5)
    parts += [(0.06, *(axis * reach * k), 1.6, 1.5, angle) for k in (1, 2)]
    parts = np.array(parts)
    parts[:, 0] *= total / parts[:, 0].sum()
    return parts


def image_of(parts):
    """Jy per pixel, as a FITS file has it: East is where the column falls, North where the row grows."""
    north, west = np.meshgrid(*[(np.arange(size) - size // 2) * pixel] * 2, indexing="ij")
    image = np.zeros((size, size))
    for flux, east0, north0, along, across, angle in parts:
        east, up = -west - east0, north - north0
        a, b = east * np.sin(angle) + up * np.cos(angle), east * np.cos(angle) - up * np.sin(angle)
        image += flux * pixel**2 * np.exp(-((a / along) ** 2 + (b / across) ** 2) / 2) / (2 * np.pi * along * across)
    return image


def visibilities_of(parts, u, v):
    """In pyuvdata's convention, exp(+2 pi i (u l + v m)), of baselines in wavelengths."""
    result = np.zeros(u.shape, complex)
    for flux, east, north, along, across, angle in parts:
        a, b = u * np.sin(angle) + v * np.cos(angle), u * np.cos(angle) - v * np.sin(angle)
        size_ = np.exp(-2 * np.pi**2 * ARCSEC**2 * ((along * a) ** 2 + (across * b) ** 2))
        result += flux * size_ * np.exp(2j * np.pi * ARCSEC * (u * east + v * north))
    return result


names = [f"J{k:04}" for k in range(surveyed + held_out)]
sky = {name: galaxy() for name in names}
truth = {name: image_of(parts) for name, parts in sky.items()}


# %%
def panel(axis, image, title="", top=None, **options):
    """Draw Jy per pixel, North up and East to the left."""
    top = np.percentile(image, 99.8) if top is None else top
    drawn = axis.imshow(image, origin="lower", vmin=options.pop("vmin", 0), vmax=top, **{"cmap": "gray", **options})
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    return drawn


figure, axes = plt.subplots(2, 8, figsize=(9.6, 2.6))
for axis, name in zip(axes.flat, names, strict=False):
    panel(axis, truth[name], name)
plt.show()

# %% [markdown]
# *Above: sixteen of the sources as they are, North up and East to the left, each on its own scale. Nothing that follows
# learns from these images.*
#
# ## A night of snapshots, as UVFITS
#
# The VLA in its B configuration at 1.4 GHz: 27 antennas with system temperatures of their own, one of which is
# sometimes flagged. pyuvdata computes the baselines of every pointing and writes the files; weights are inverse
# variances, as UVFITS has them.


# %%
def observe(names, path, rng):
    """Ten seconds on each source; circular feeds, one channel."""
    vla = arrays.array("vla-b")
    centre = vla.positions.numpy().mean(0)
    telescope = Telescope.new(
        name="VLA",
        location=EarthLocation.from_geocentric(*centre, unit="m"),
        antenna_positions=vla.positions.numpy() - centre,
        antenna_numbers=np.arange(1, len(vla) + 1),
        antenna_names=[f"ea{k:02}" for k in range(1, len(vla) + 1)],
        instrument="VLA",
        mount_type="alt-az",
        feeds=["r", "l"],
        feed_angle=[0.0, np.pi / 2],
    )
    pairs = [(a, b) for a in telescope.antenna_numbers for b in telescope.antenna_numbers if a < b]
    times = 2460000.70 + np.arange(len(names)) * 20 / 86400
    overhead = np.radians(140) + 2 * np.pi * (times - times[0])  # right ascensions that are up at that time
    uv = UVData.new(
        freq_array=np.array([frequency]),
        channel_width=1e7,
        polarization_array=np.array([-1, -2]),  # RR and LL
        times=times,
        integration_time=10.0,
        telescope=telescope,
        antpairs=pairs,
        do_blt_outer=True,
        phase_center_catalog={
            k: {
                "cat_name": name,
                "cat_type": "sidereal",
                "cat_lon": overhead[k] + np.radians(rng.uniform(-30, 30)),
                "cat_lat": np.radians(rng.uniform(-5, 60)),
                "cat_frame": "icrs",
                "cat_epoch": 2000.0,
            }
            for k, name in enumerate(names)
        },
        phase_center_id_array=np.repeat(np.arange(len(names)), len(pairs)),
        vis_units="Jy",
        empty=True,
    )
    uv.set_uvws_from_antenna_positions()
    u, v, _ = (uv.uvw_array * frequency / LIGHT).reshape(len(names), len(pairs), 3).transpose(2, 0, 1)
    value = np.concatenate([visibilities_of(sky[name], u[k], v[k]) for k, name in enumerate(names)])
    temperature = np.exp(0.25 * rng.standard_normal((len(names), len(vla) + 1)))
    first, second = np.array(pairs).T
    sigma = noise * np.sqrt(2 * temperature[:, first] * temperature[:, second]).ravel()[:, None, None]  # of one hand
    error = rng.standard_normal((2, *uv.data_array.shape))
    uv.data_array = (value[:, None, None] + sigma * (error[0] + 1j * error[1])).astype(np.complex64)
    uv.nsample_array = np.broadcast_to(1 / sigma**2, uv.data_array.shape).astype(np.float32)
    lost = np.arange(len(vla) + 1) == rng.integers(1, 2 * len(vla), len(names))[:, None]  # one antenna, in half of them
    flagged = (lost[:, first] | lost[:, second]).ravel()[:, None, None]
    uv.flag_array = np.broadcast_to(flagged, uv.data_array.shape).copy()
    uv.write_uvfits(str(path))


(work / "survey").mkdir(exist_ok=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pyuvdata comments on times without tables of the Earth's rotation
    for night, some in enumerate(np.array_split(np.array(names[:surveyed]), 1 if QUICK else 4)):
        observe([str(name) for name in some], work / "survey" / f"night-{night}.uvfits", rng)
    observe(names[surveyed:], work / "held-out.uvfits", rng)
for file in sorted(work.glob("**/*.uvfits")):
    print(f"{file.relative_to(work)}: {file.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## Import
#
# From here on it is what one does with files from an archive. The importer reads a folder of UVFITS (UVH5, measurement
# sets), makes Stokes I of the hands, leaves out what is flagged, takes the noise of each visibility from its weight,
# and makes one scan of every field. What the image is to be is a choice: a pixel of a third of the resolution or less,
# and a field that the source fits into.

# %%
image = {"size": size, "pixel": pixel, "overwrite": True}
scans = import_files("uvfits", work / "survey", work / "survey.zarr", **image)
others = import_files("uvfits", work / "held-out.uvfits", work / "held-out.zarr", **image)
print(describe(scans))

# %%
m = others.read(0, raw=True)  # in Jy
A, weight = m.operator, (m.operator.rows / m.noise**2)
dirty = (A.adjoint(weight * m.y) / weight.sum())[0, 0]
beam = (A.adjoint(weight.to(m.y.dtype)) / weight.sum())[0, 0]
uv = A.uv[0][A.rows[0] > 0] / 1e3

figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.6), layout="constrained")
for sign in (1, -1):
    axes[0].plot(*(sign * uv.T), ".", color=COLOURS[0], markersize=1.5)
axes[0].set(xlabel="u / kλ", ylabel="v / kλ", aspect="equal")
axes[0].set_title("measured", fontsize=9)
for axis, image, title in zip(
    axes[1:],
    (beam, dirty, torch.from_numpy(truth[names[surveyed]])),
    ("dirty beam", "dirty image / Jy per beam", "the sky / Jy per pixel"),
    strict=True,
):
    figure.colorbar(panel(axis, image, title, top=float(image.max()), vmin=float(image.min())), ax=axis)
plt.show()

# %% [markdown]
# *Above: one held-out source. Spatial frequencies that the snapshot measured and their mirror images, the response to a
# point source, the image that the visibilities make when the rest is zero, and the sky. The dirty image is the sky
# convolved with the beam: that of the snapshot has a star of side lobes.*
#
# ## Can a prior be learned from this?
#
# `check` answers from the operators and the data alone, before any training: whether all scans together measure what
# one scan leaves open.

# %%
report = check(scans, against=others, progress=False)
print(report)

# %%
report.plot()

# %% [markdown]
# ## Learning from visibilities
#
# One call. Expectation-maximisation begins with total variation images, trains a diffusion model on them, draws
# posterior samples of the survey with it, learns from these, and so on. It never sees an image of the sky.

# %%
config = TrainConfig(store=scans.path, out=work / "run", patch=2, widths=(32, 64), batch=16, preview=2_000, **options)
train(config)
training_curve([json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()])

# %% [markdown]
# *Above: the training loss, and, where the training looked at it, how well it predicts visibilities that it was not
# given, of sources that it does not learn from.*

# %%
prior = load_prior(config.out)
drawn = prior.sample(16, steps=steps)[:, 0]
figure, axes = plt.subplots(2, 8, figsize=(9.6, 2.6))
for axis, image in zip(axes.flat, drawn, strict=True):
    panel(axis, image)
plt.show()

# %% [markdown]
# *Above: images from the prior alone, sources that do not exist. They should be of the kind of the survey, and like
# none of it in particular.*
#
# ## Posterior images
#
# Eight samples of each held-out source at full size: images that the prior finds plausible and that explain the
# visibilities up to their noise.

# %%
posterior = reconstruct(prior, others, work / "posterior.zarr", samples=samples, steps=steps, overwrite=True)
fields = [str(field) for field in posterior["field"].to_numpy()]
known = np.stack([truth[field] for field in fields])
mean, std = posterior["mean"][:, 0].to_numpy(), posterior["std"][:, 0].to_numpy()
print(f"misfit per sample, in units of the noise: median {float(posterior['residual'].median()):.2f}")

figure, axes = plt.subplots(1, 7, figsize=(10.5, 1.8))
top = known[0].max()
panel(axes[0], mean[0], "mean", top)
panel(axes[1], std[0], "standard deviation", std[0].max(), cmap=ERROR_MAP)
for k, axis in enumerate(axes[2:6]):
    panel(axis, posterior["sample"][0, k, 0], f"sample {k + 1}", top)
panel(axes[6], known[0], "the sky", top)
plt.show()

# %% [markdown]
# *Above: one source; the standard deviation has a scale of its own. Where the samples agree, the visibilities and the
# prior leave no choice; where they differ, any one image would be a guess. A misfit of one means that samples explain
# the data as well as the sky itself does.*
#
# ## Beside the dirty image and total variation
#
# The strength of total variation is chosen by predicting visibilities that were set aside, so that it has no better
# knowledge of the sky than the prior has; what it could do with it is printed too. The dirty image is in other units:
# it is multiplied by the number that brings it closest to the sky, which flatters it.

# %%
scaled = others.read(slice(None))
strengths = (float(scaled.noise_std.median()) * np.array([0.1, 0.3, 1, 3, 10, 30])).tolist()
scale = scaled.scale.reshape(-1, 1, 1, 1)
variations = {value: (total_variation_batch(scaled, value) * scale)[:, 0].numpy() for value in strengths}
variation = variations[tune_held_out(total_variation_batch, scaled, strengths)]
hindsight = min(nrmse(images, known).mean() for images in variations.values())
raw = others.read(slice(None), raw=True)
weight = raw.operator.rows / raw.noise**2
dirty = (raw.operator.adjoint(weight * raw.y)[:, 0] / weight.sum(1).reshape(-1, 1, 1)).numpy()
dirty *= (dirty * known).sum((1, 2), keepdims=True) / (dirty**2).sum((1, 2), keepdims=True)

columns = {"dirty image": dirty, "total variation": variation, "posterior mean": mean}
columns["one sample"] = posterior["sample"][:, 0, 0].to_numpy()
errors = {name: nrmse(images, known) for name, images in columns.items()}
for name, error in errors.items():
    print(f"{name:<16} NRMSE {error.mean():.3f} ± {error.std():.3f}")
print(f"{'':<16} {hindsight:.3f} by total variation with the strength that the sky itself would choose")
better = int((errors["posterior mean"] < errors["total variation"]).sum())
print(f"the posterior mean is closer to the sky than total variation for {better} of {len(known)} sources")

# %%
shown = range(min(3, len(known)))
figure, axes = plt.subplots(2 * len(shown), 5, figsize=(8.4, 3.3 * len(shown)), layout="constrained")
for k in shown:
    upper, lower = axes[2 * k], axes[2 * k + 1]
    top = known[k].max()
    for column, (name, images) in enumerate(columns.items()):
        panel(upper[column], images[k], name if k == 0 else "", top)
        error = panel(
            lower[column], np.abs(images[k] - known[k]), f"NRMSE {errors[name][k]:.3f}", top / 5, cmap=ERROR_MAP
        )
    light = panel(upper[4], known[k], "the sky" if k == 0 else "", top)
    panel(lower[4], std[k], "standard deviation", top / 5, cmap=ERROR_MAP)
    upper[0].set_ylabel(fields[k])
    lower[0].set_ylabel("|error| × 5")
    figure.colorbar(light, ax=upper, shrink=0.9, label="Jy / pixel")
    figure.colorbar(error, ax=lower, shrink=0.9)
plt.show()

# %% [markdown]
# *Above: three sources by each method, and below each image its error on a scale five times as fine. Last, the sky and
# the predicted standard deviation, which should be large where the error of the posterior mean is.*
#
# ## Fluxes with error bars
#
# What a catalogue wants is a number and its error. The flux of half a source is a sum over pixels of each sample; what
# is not measured at short spacings is filled in by the prior, and the error bar should say so.

# %%
middle = size // 2
halves = {"East": np.s_[..., :middle], "West": np.s_[..., middle:]}
figure, axis = plt.subplots(figsize=(6, 3.2))
inside = []
for k, (name, half) in enumerate(halves.items()):
    fluxes = posterior["sample"][:, :, 0].to_numpy()[half].sum((2, 3)) * 1e3
    real = known[half].sum((1, 2)) * 1e3
    value, bar = fluxes.mean(1), fluxes.std(1, ddof=1)
    inside.append(np.abs(value - real) < 2 * bar)
    axis.errorbar(
        real, value - real, 2 * bar, fmt="os"[k], color=COLOURS[k], markersize=4, linewidth=1, label=f"{name} half"
    )
axis.axhline(0, color="k", linestyle="--", linewidth=0.8)
axis.set(xlabel="flux in the sky / mJy", ylabel="flux in the samples minus that / mJy")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False)
plt.show()
print(f"{100 * np.mean(inside):.0f}% of the fluxes lie within two standard deviations (95% would, if all were well)")

# %% [markdown]
# *Above: error of the flux of either half of each source, East and West of its core, with bars of two standard
# deviations. Where a bar reaches the dashed line it holds the flux of the sky.*
#
# The sky is known here, and so whether pixels lie where their samples say. It is not on real data. There
# `validate_prior` hides measured visibilities and predicts them, which needs no image. Both in turn, each with its
# verdict in the last line. After minutes of training, expect something to be found; error bars that are too wide are
# the lesser evil.

# %%
print(judge_samples(posterior["sample"].to_numpy(), known[:, None]))
print()
found = validate_prior(prior, others, scans=slice(0, min(8, held_out)), samples=samples, steps=steps, progress=False)
print(found)

# %%
found.plot()

# %% [markdown]
# ## FITS, with its place on the sky
#
# Mean and standard deviation go into FITS files with world coordinates, for CARTA, DS9 or CASA; their headers say what
# they were made from.

# %%
files = export(posterior, work / "fits", "fits", what=["mean", "std"], overwrite=True, progress=False)
with fits.open(files[0]) as hdus:
    hdus.info()
    header, values = hdus[0].header, hdus[0].data
figure = plt.figure(figsize=(4.2, 3.4))
axis = figure.add_subplot(projection=WCS(header).celestial)
figure.colorbar(axis.imshow(values, cmap="gray", origin="lower"), label=header["BUNIT"])
axis.set(xlabel="right ascension", ylabel="declination", title=files[0].stem)
plt.show()

# %% [markdown]
# *Above: a posterior mean as any FITS viewer shows it.*
#
# ## With your own data
#
# - `import_files("uvfits" | "uvh5" | "ms", path, store, size=…, pixel=…)`, or `ambient-sci import uvfits …`, with
#   averaging, fields, intervals and the primary beam (`diameter=25`) as options; [docs/formats.md](../docs/formats.md)
#   has the conventions. The import warns where averaging blurs the edge of the field or weights are no inverse
#   variances.
# - Visibilities have to be calibrated. A prior of intensities does not know of phase errors and will explain them as
#   structure; `validate_prior` flags what it cannot explain.
# - A prior is one of sources of that kind, size of pixel and field. A few hundred sources and some minutes are a
#   beginning; [benchmarks/README.md](../benchmarks/README.md#learning) has what longer trainings reach on other data.
