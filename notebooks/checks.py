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
# # Reading the checks
#
# A learned prior can be wrong in ways that no picture shows. Data may not hold what is to be learned; error bars may be
# too small; a prior may have learned its scans by heart. The package has a check for each, at three points of the way:
#
# | when | question | call |
# |---|---|---|
# | before training | can a prior be learned from these scans? | `check` |
# | after training | do its error bars hold, with and without known images? | `validate_prior`, `evaluate` |
# | before publishing | does it give training scans away? | `audit_prior` |
#
# A check that has never been seen to fail says little. So here each is shown twice: where all is well, and where one
# thing is wrong on purpose. The images are small, blobs on 16 × 16 pixels of which half are measured, so that all of it
# takes two to three minutes of one core; what the reports look like does not depend on that.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from ambient_sci import Measurement, TrainConfig, audit_prior, reconstruct, train, validate_prior
from ambient_sci.audit.figure import audit_figure
from ambient_sci.check import check
from ambient_sci.datasets import StoreWriter, simulate
from ambient_sci.evaluate import judge_samples, temper
from ambient_sci.evaluate.compare import evaluate
from ambient_sci.evaluate.figures import ranks_figure
from ambient_sci.operators import Mask
from ambient_sci.plot import samples_grid

# %matplotlib inline

# %% [markdown]
# Everything is written to one folder, a temporary one unless `AMBIENT_SCI_WORK` names another. With
# `AMBIENT_SCI_QUICK=1` the notebook runs in some seconds, to see that it works; its verdicts mean nothing then.

# %%
QUICK = os.environ.get("AMBIENT_SCI_QUICK") == "1"
work = Path(os.environ.get("AMBIENT_SCI_WORK") or tempfile.mkdtemp(prefix="ambient-sci-"))
work.mkdir(parents=True, exist_ok=True)

side, many, few, repeats, held_out = (16, 48, 8, 4, 10) if QUICK else (16, 1000, 16, 8, 48)
images, images_of_few = (256, 256) if QUICK else (12_000, 16_000)  # shown in the trainings
sampler = {"samples": 6, "steps": 4} if QUICK else {"samples": 12, "steps": 8}
sampler |= {"solver": "euler", "progress": False}
noise = 0.04
print(f"{'quick' if QUICK else 'full'} size, writing to {work}")


# %%
def blobs(count, seed):
    """Four soft blobs on each image, ``(count, side, side)``, brightest pixel one."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centre, width = rng.uniform(2, side - 3, (2, count, 4, 1, 1)), rng.uniform(1, 2.5, (count, 4, 1, 1))
    height = rng.uniform(0.4, 1, (count, 4, 1, 1))
    drawn = height * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    return drawn.sum(1) / drawn.sum(1).max((1, 2), keepdims=True)


pixels = {"operator": "mask", "keep": 0.5, "noise": noise, "overwrite": True}
store = simulate(blobs(many, 1), work / "scans.zarr", seed=1, **pixels)
others = simulate(blobs(held_out, 2), work / "held-out.zarr", seed=2, **pixels)
samples_grid(store.references(slice(8)), title="eight of the images that are measured")

# %% [markdown]
# ## Before training: can it be learned?
#
# `check` looks at operators and data. First the store as it is: every scan has lost other pixels.

# %%
report = check(store, against=others, progress=False)
print(report)

# %%
report.plot()

# %% [markdown]
# *Above, from left to right: in how many scans each pixel was measured; the part of its energy that all scans together
# leave unknown, which should be dark; and how often pixels were measured, as a histogram.*
#
# How to read it, from the end: `verdict` is `good`, `marginal` or `refused`, with reasons and advice where it is not
# good. `left unknown` is what a typical scan leaves open, and which part of that is *starved*: in directions that all
# scans together do not determine. A prior is meant to fill in what a scan has not measured, from what others have; what
# is starved it can only make up. `effective scans` counts how often a pixel was measured.
#
# Now the same images, but every scan has lost the *same* pixels, as it is with a detector whose dead cells are what
# they are. Each scan is as good as before.

# %%
scans = store.read(slice(None), raw=True)
mask = scans.operator.mask[:1].expand_as(scans.operator.mask).contiguous()
values = store.references(slice(None)) + noise * torch.randn(mask.shape, generator=torch.Generator().manual_seed(3))
with StoreWriter(work / "one-mask.zarr", {"source": "one mask for all"}, overwrite=True) as writer:
    writer.append(Measurement(mask * values, Mask(mask), noise))
refused = check(work / "one-mask.zarr", progress=False)
print(refused)

# %%
refused.plot()

# %% [markdown]
# *Above: half of the pixels were measured in every scan, the others in none, and of these everything stays unknown.*
#
# No method learns what no scan has seen. `train` takes a quick look before a new run and warns in the same words;
# `ambient-sci check` ends with exit status 1.
#
# The check also finds scans that should not be there twice: repetitions within a store, and test scans that were
# trained on, which would make every later score too good. Here ten training scans have got into the test data:

# %%
with StoreWriter(work / "leaky.zarr", {"source": "ten scans of the training"}, overwrite=True) as writer:
    writer.append(store.read(slice(10), raw=True), store.references(slice(10)))
    writer.append(others.read(slice(None), raw=True), others.references(slice(None)))
leaky = check(store, against=work / "leaky.zarr", progress=False)
print(f"{leaky.verdict}: {'; '.join(leaky.reasons)}")

# %% [markdown]
# ## After training: do the predictions hold?
#
# A prior from the good store, and two ways to judge it. Without any known image: `validate_prior` hides a quarter of
# the pixels that were measured, draws posterior samples from the others, and compares what was measured with what the
# samples and the noise predict.

# %%
config = {"batch": 16, "widths": (32,), "patch": 2, "laps": 2, "preview": 0, "validation_scans": 0}
prior = train(TrainConfig(store=store.path, out=work / "run", images=images, **config))

found = validate_prior(prior, others, **sampler)
print(found)

# %%
found.plot()

# %% [markdown]
# *Above: how often intervals of the hidden values held them, over how often they claimed to; errors over the predicted
# spread, 1 where error bars are right; and by how much each scan surprises the prior.*
#
# `errors/spread` above one means that error bars are too narrow, below one too wide. A deviation of less than a tenth
# is none to speak of. The last line is the verdict. `best temperature` is the factor that the spread of the samples
# would need; noise is not counted in it.
#
# The same prior and scans, with one thing wrong: somebody believed the noise to be 0.4 times what it is. Every
# reconstruction would trust its data too much, and its error bars would be too small.

# %%
m = others.read(slice(None))
wrong = Measurement(m.y, m.operator, 0.4 * m.noise_std, m.index, m.scale)
print(validate_prior(prior, wrong, **sampler))

# %% [markdown]
# And one with noise as stated, in which a single scan is not of this kind: of scan 3 a chequerboard was measured. The
# mean over scans may hide it; the surprise of that scan does not.

# %%
y = m.y.clone()
rows = torch.arange(side)
y[3, 0] = 0.5 * ((rows[:, None] + rows) % 2) * m.operator.mask[3, 0]
struck = validate_prior(prior, Measurement(y, m.operator, m.noise_std, m.index, m.scale), **sampler)
print(struck.verdict)
struck.plot()

# %% [markdown]
# *Above: the same figure with one scan, number 3, that the prior does not explain: see the right panel.*
#
# What is judged is the prior *with its sampler*. The ones above took few steps of first order (`solver="euler"`). Steps
# of higher order, the default of `reconstruct`, are more accurate for an exact denoiser; with few iterations and a
# network that has learned for half a minute they spread too wide, which is no fault of the prior:

# %%
print(validate_prior(prior, others, **sampler | {"solver": "multistep"}).verdict)

# %% [markdown]
# Where images are known, in simulations, `evaluate` compares them with the samples: how often intervals hold the known
# value, and where it ranks among the samples. If samples are honest every rank is as likely as another.

# %%
result = reconstruct(prior, others, **sampler)
evaluation = evaluate(result, others)
print(evaluation)

# %%
ranks_figure(evaluation.calibration)

# %% [markdown]
# *Above: coverage, and ranks of the known value among samples; flat is honest.*
#
# `mean u` is the average rank from 0 to 1: below one half samples are too bright, above too faint. The random point
# (TARP) sees wrong correlations that no single pixel shows. Pixels hang together, scans do not: tests are over scans,
# and few scans can pass by being few.
#
# Now the same samples, drawn to half their spread around the mean (`temper`). No picture of a mean would change at all.

# %%
drawn_in = temper(result["sample"].to_numpy(), 0.5)
overconfident = judge_samples(drawn_in, others.references(slice(None)).numpy())
print(overconfident)

# %%
ranks_figure(overconfident)

# %% [markdown]
# *Above: known values lie at the ends of what the samples offer, or outside. Ranks pile up left and right, and the
# coverage falls below the diagonal.*
#
# ## Before publishing: does it give scans away?
#
# A prior that draws the scans it learned from is no prior of their kind. `audit_prior` compares images that the prior
# draws with every training scan, and does the same with scans that were held out: *the honest zero*. An image that is
# nearer to a training scan than held-out scans explain is a near-copy.

# %%
options = {"count": 16 if QUICK else 64, "steps": 12, "spaces": ["measured"], "progress": False}
honest = audit_prior(prior, store, others, **options)
print(honest)

# %% [markdown]
# `measured` means that training scans are compared by what was measured of them, for images are not known in general.
# `AUC` is the chance that an image of the prior is nearer to a training scan than a held-out scan is: one half is
# honest. Membership asks another question: does the loss tell who was trained on?
#
# To see a warning, a prior is trained for longer on a few scans, one of which stands among them several times, as
# happens when repetitions are not merged.

# %%
chosen = np.concatenate([np.arange(few), np.full(repeats - 1, few - 1)])
with StoreWriter(work / "few.zarr", {"source": "few scans, one of them repeated"}, overwrite=True) as writer:
    writer.append(store.read(chosen, raw=True), store.references(chosen))
warned = check(work / "few.zarr", progress=False)
print(f"{warned.verdict}: {'; '.join(warned.reasons)}")

# %%
memoriser = train(TrainConfig(store=work / "few.zarr", out=work / "run-few", images=images_of_few, **config))
copied = audit_prior(memoriser, work / "few.zarr", others, **options)
print(copied)
print(f"the scan that stands there {repeats} times has the numbers {few - 1} to {len(chosen) - 1}")

# %%
audit_figure({f"{many} scans": honest, f"{few} scans, one repeated": copied})

# %% [markdown]
# *Above: how similar images of each prior are to their nearest training scan, beside held-out scans; the same as a
# relative distance, 0 for a copy; and what losses tell of who was trained on.*

# %%
copied.plot_pairs()

# %% [markdown]
# *Above: images that the second prior drew (top) and the nearest training scans (below).*
#
# ## What to do with a verdict
#
# | warning | do |
# |---|---|
# | `check` refuses | let scans differ in what they miss, or use a prior that was learned from other data |
# | repeated or leaked scans | merge repetitions; split by subject, not by scan |
# | predictions too narrow, most of all where there is little but noise | look at the noise level first |
# | predictions too narrow elsewhere | train longer, more sampler steps, or a prior of these images |
# | a single scan flagged | look at it: another anatomy, an artefact, another noise |
# | copies, or an AUC well above one half | more scans, fewer images shown; do not publish that prior |
#
# A check that passes is no proof. `validate_prior` sees what measurements see, and not what no scan measures; few scans
# are weak evidence either way; and a prior without a copy among some images may have one among more.
# [docs/calibration.md](../docs/calibration.md) and [docs/audit.md](../docs/audit.md) say when to trust which.
