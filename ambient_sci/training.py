r"""Training: one function that reads top to bottom.

State is counted in images. A run is a folder; running the same command again resumes it, and a run that was killed
ends with the weights of one that was not: batches, noise levels, noise and hidden rows of a step follow from the seed
and the number of images seen, and everything else is in the checkpoint (`ambient_sci.runs`).
"""

import copy
import secrets
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.describe import describe
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.distributed import agree, equalise, is_sharded, join, main, obey_signals, wait, whole
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.finetuning import adapt, check_fits, effective_weights, measure
from ambient_sci.logs import Log
from ambient_sci.methods import METHODS
from ambient_sci.model_card import write_model_card
from ambient_sci.network import best_precision
from ambient_sci.operators import quick_inverse
from ambient_sci.optimizers import default_optimizer, make_optimizer
from ambient_sci.pretrained.denoiser import PretrainedNetwork
from ambient_sci.prior import Prior, build_denoiser, earlier_network, resolve_device, saved_prior
from ambient_sci.privacy import PrivateGradient, private_options
from ambient_sci.runs import State, start_run
from ambient_sci.seeding import stream
from ambient_sci.signals import Interrupted, Signals
from ambient_sci.steps import Average, backward, check_step, learning_rate, own_parts, prepare_network
from ambient_sci.validation import set_scans_aside, validation_count
from ambient_sci.warm_start import earlier_options, warm_start

__all__ = ["train"]

LOG_EVERY = 512  # images


def train(config: TrainConfig, network: nn.Module | None = None, progress: bool = True) -> Prior:
    """Learn a prior from a store of measurements.

    SIGTERM writes a checkpoint after the step that is under way and ends the process with exit status 143; Ctrl-C does
    the same with ``KeyboardInterrupt``. (Only the main thread gets signals.) The same call resumes.

    Parameters
    ----------
    config
        Every option; see `TrainConfig`.
    network
        A module to train instead of the built-in U-Net: ``network(x, label)`` on real channels.
    progress
        Show progress bars.

    Returns
    -------
    Prior
        The prior with averaged weights, as `ambient_sci.load_prior` would load it from ``config.out``.

    Raises
    ------
    ConfigError
        If the run in ``config.out`` was started with other options.
    DataError
        If measurements are not finite, images are of several shapes, of which a prior has one, or the training
        diverges; the last checkpoint stays.
    """
    device = join(resolve_device(config.device))
    store = open_store(config.store)
    run = config.out
    image_shape = store.image_shape  # one for all scans, or refused before there is a run
    config = _resolve(config, store, device)
    training, validation = set_scans_aside(store, config.validation_scans or 0)
    parts = own_parts(config)
    started = start_run(run, config)

    learner = METHODS[config.method](config, training, progress and main())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if network is None:
            network = earlier_network(config, image_shape, store.is_complex, _earlier_header(config, started))
        denoiser = build_denoiser(config, image_shape, store.is_complex, network)
        if config.start_from is not None and not started:
            warm_start(denoiser, config)
        averaged = copy.deepcopy(denoiser).eval().requires_grad_(False)
        adapt(denoiser, config)
    available = check_fits(denoiser, averaged, config, device)
    denoiser.to(device)
    averaged.to(device)
    for model in (denoiser, averaged):
        equalise(model.state_dict().values())  # a module that was passed may have been made without a seed
    prepare_network(denoiser, config)
    weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
    average = Average(averaged, denoiser, config.half_life, effective_weights(denoiser, averaged, config))
    optimizer = make_optimizer(weights, config)
    private = PrivateGradient(denoiser, weights, learner, config, len(training)) if config.private else None
    trained_on: dict[str, Any] = {"store": str(config.store), "operator": store.kind, "scans": len(training)}
    if private is None:
        trained_on["fingerprint"] = store.fingerprint
        noise = (store.read(group.scans[:64]).noise_std for group in training.groups)
        trained_on["noise_std"] = max(float(one.max()) for one in noise)
    prior = Prior(averaged, image_shape, store.is_complex, config, trained_on, 0)
    key = secrets.randbits(128) if config.private else None
    state = State(denoiser, prior, optimizer, learner, store.fingerprint, key)
    if started:
        state.resume(run, store)
    if isinstance(network, PretrainedNetwork) and state.seen < config.images and not is_sharded():
        needs = measure(denoiser, averaged, config, image_shape, store.is_complex, available)
        if progress and main():
            tqdm.write(str(needs), file=sys.stderr)

    def enough(stalled: int) -> bool:
        return config.patience is not None and agree(stalled) >= config.patience

    facts: dict[str, Any] = {"scans": len(training), "operator": store.kind}  # all that a private training may tell
    if private is None and main():
        facts = describe(store).facts

    def keep() -> None:
        if private is not None:
            trained_on["privacy"] = private.spent(state.seen)
            state.prior = replace(state.prior, trained_on=trained_on)
        state.save(run)
        if main():
            write_model_card(run, state.prior, facts)

    log = Log(config, training, validation, state.seen, progress)
    with Signals(), log:
        try:
            while state.seen < config.images and not enough(log.stalled):
                learner.prepare(state.seen, state.prior)
                rate = learning_rate(config, state.seen)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                if private is None:
                    batch = learner.draw(stream(config.seed, 0, state.seen))
                    losses = backward(denoiser, learner, batch, parts, device)
                    norm = float(whole(nn.utils.clip_grad_norm_(weights, config.clip)))
                    check_step(losses, norm, batch, state, config)
                    state.losses.append(losses.mean())
                else:
                    assert state.key is not None
                    norm = private.step(state.seen, state.key, device)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                before, state.seen = state.seen, state.seen + config.batch
                average.update(config.batch, state.seen, last=state.seen >= config.images)
                log.advance(config.batch)

                due = partial(_passed, before, state.seen, config.images)
                look = config.preview != 0 and due(config.preview or config.checkpoint)
                if due(LOG_EVERY) or look or before == 0:
                    record: dict[str, Any] = {"images": state.seen}
                    if private is None:
                        record["loss"] = float(torch.stack(state.losses).mean())
                        state.losses = []
                    record |= {"gradient": norm, "rate": rate}
                    if private is None:
                        record["seconds"] = round(state.seconds, 3)
                    else:
                        record["epsilon"] = private.spent(state.seen)["epsilon"]
                    log.write(record, state.prior if look else None)
                if due(config.checkpoint) or enough(log.stalled):
                    keep()
                obey_signals()
        except Interrupted as stop:
            if state.seen > state.saved:
                keep()
            wait()  # or the launcher, seeing one process end, may kill the one that writes
            raise stop.obeyed() from None
    return state.prior


def _earlier_header(config: TrainConfig, started: bool) -> dict[str, Any] | None:
    """Header of the prior whose pretrained network goes on learning: of this run, or of an earlier one."""
    if config.pretrained is None and config.start_from is None:  # a network of its own, and nothing to read
        return None
    if started and (config.out / "prior.safetensors").exists():
        run = config.out
    elif config.start_from is not None and config.pretrained is None:
        run = config.start_from
    else:
        return None
    header, options = saved_prior(run)[2:]
    return header if "architecture" in header and options.restores == config.restores else None


def _passed(before: int, seen: int, end: int, every: int) -> bool:
    """Whether the last step reached a multiple of ``every`` images, or the end."""
    return before // every != seen // every or seen >= end


def _resolve(config: TrainConfig, store: Store, device: torch.device) -> TrainConfig:
    """Fill in what the configuration leaves to the machine and to the data."""
    config = config.model_copy(update=private_options(config, store))
    count = validation_count(store, config.validation_scans)
    update: dict[str, Any] = {"validation_scans": count}
    if config.patience is not None and (count == 0 or config.preview == 0):
        raise ConfigError("patience is about held-out rows: it needs validation_scans, and previews")
    if config.precision == "auto":
        update["precision"] = best_precision(device)
    if config.em_start is None and config.pretrained is None:
        update["em_start"] = "tv"  # with a pretrained model the measurements tell, when there is a model
    if config.em_start == "prior" and config.pretrained is None:
        raise ConfigError("em_start 'prior' takes images from a pretrained model: it needs pretrained")
    if config.em_start == "leaves" and (config.start_from or config.pretrained):
        raise ConfigError("em_start 'leaves' is for a new network: it does not go with start_from or pretrained")
    begins = config if config.start_from is None else earlier_options(config.start_from)
    origin = config.model_copy(update={"pretrained": config.pretrained or begins.pretrained})
    update["optimizer"] = config.optimizer or default_optimizer(origin)
    update["learning_rate"] = origin.model_copy(update={"optimizer": update["optimizer"]}).peak_rate
    if config.sigma_data is None and config.start_from is not None:
        update["sigma_data"] = begins.sigma_data
    elif config.sigma_data is None:
        learned_from = store.head(len(store) - count)
        some = learned_from.read(learned_from.groups[0].scans[:64])
        image = quick_inverse(some.operator, some.y)
        spread = float((torch.view_as_real(image) if image.is_complex() else image).std())
        if not spread > 0:
            raise DataError(
                f"the first {len(some)} scans of {store.path} hold nothing but zeros: there is nothing to learn"
            )
        update["sigma_data"] = float(f"{spread:.4g}")
    return config.model_copy(update=update)
