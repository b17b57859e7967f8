"""Reconstructions to compare with: linear ones and compressed sensing, for every operator."""

from ambient_sci.baselines.l1_wavelet import l1_wavelet, l1_wavelet_batch
from ambient_sci.baselines.linear import cg_sense, zero_filled
from ambient_sci.baselines.total_variation import total_variation_batch
from ambient_sci.baselines.tuning import tune, tune_held_out

__all__ = [
    "cg_sense",
    "l1_wavelet",
    "l1_wavelet_batch",
    "total_variation_batch",
    "tune",
    "tune_held_out",
    "zero_filled",
]
