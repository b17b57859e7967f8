"""How good reconstructions and their error bars are, where the image is known and where it is not.

Without any known image: `ambient_sci.validate_prior` (in `ambient_sci.evaluate.held_out`).
"""

from ambient_sci.evaluate.calibration import Calibration, SampleJudge, contrast, flux, judge_samples, region_means
from ambient_sci.evaluate.metrics import (
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
from ambient_sci.evaluate.predictive import temper

__all__ = [
    "Calibration",
    "SampleJudge",
    "contrast",
    "coverage",
    "coverage_interval",
    "coverage_normal",
    "flux",
    "head_mask",
    "judge_samples",
    "nrmse",
    "psnr",
    "region_means",
    "score",
    "ssim",
    "table",
    "temper",
]
