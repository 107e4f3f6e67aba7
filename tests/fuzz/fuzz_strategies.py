"""Hypothesis strategies: small valid configs, and edits of them.

An edit is ``("set", path, value)``, ``("delete", path)``, ``("add", path of mapping, key, value)``
or ``("reverse", path of a mapping or list)``. Paths are dotted; numbers are positions in a list.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from hydra import compose, initialize_config_module
from hypothesis import strategies as st
from omegaconf import OmegaConf

Edit = tuple[Any, ...]

_QUEUE = "method_kwargs.queue_size=16"
_MIX = "++negatives.mix"
_FOLDERS = (
    "data=custom",
    "data.train_path=${oc.env:FUZZ_IMAGES}/train",
    "data.val_path=${oc.env:FUZZ_IMAGES}/val",
    "data.num_workers=0",
    "data.suggest.crop_size=8",
    "data.suggest.backbone=resnet18",
)
# name -> (config, overrides)
BASES: dict[str, tuple[str, ...]] = {
    "mocov2_banded": ("mocov2_banded", _QUEUE, "negatives=hardest_10"),
    "mocov2_sscl": ("mocov2_sscl", _QUEUE, f"{_MIX}={{hardest: 8, pairs: 4}}"),
    "simclr_banded": ("simclr_banded", "negatives=band", "negatives.keep.band=[0.5,1.0]"),
    "simclr_sscl": ("simclr_sscl", f"{_MIX}={{hardest: 4, pairs: 2, queries: 1}}"),
    "mocov2plus": ("mocov2plus", _QUEUE),
    "simclr": ("simclr",),
    "byol": ("byol", "method_kwargs.pred_hidden_dim=8"),
    "recorded": ("simclr_sscl", f"{_MIX}={{hardest: 4, pairs: 2}}", "hardness.enabled=true"),
    "labels": ("mocov2_banded", _QUEUE, "negatives=drop_own_image"),
    "resident": ("simclr_banded", "negatives=all", "data.format=resident"),
    "folders": ("mocov2_banded", _QUEUE, *_FOLDERS),
    "linear": ("linear", "pretrained_feature_extractor=${oc.env:FUZZ_CHECKPOINT}"),
}
_SMALL = (
    "optimizer.batch_size=8",
    "max_epochs=1",
    "scheduler.warmup_epochs=0",
    "accelerator=cpu",
    "backbone.name=vit_tiny",
    "+backbone.kwargs={img_size: 8, patch_size: 4, depth: 1, embed_dim: 8, num_heads: 2}",
    "+limit_train_batches=2",
    "+limit_val_batches=1",
    "+num_sanity_val_steps=0",
    "+enable_progress_bar=false",
    "+enable_model_summary=false",
)
_HEADS = ("method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4")
# Optional keys, at their defaults, so that edits can change them.
_OPTIONAL: dict[str, Any] = {
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "resume_from_checkpoint": None,
    "num_nodes": 1,
    "max_steps": -1,
    "log_every_n_steps": 50,
    "deterministic": False,
    "data.fraction": -1,
    "data.download": False,
    "data.no_labels": False,
    "auto_resume.max_hours": 36,
    "checkpoint.keep_prev": False,
    "optimizer.kwargs.momentum": 0.9,
    "optimizer.exclude_bias_n_norm_wd": False,
    "scheduler.interval": "step",
    "scheduler.lr_decay_steps": [1],
    "scheduler.min_lr": 0.0,
    "scheduler.warmup_start_lr": 3e-5,
    "performance.disable_channel_last": False,
}


@cache
def composed(name: str) -> Any:
    """A valid config as plain values, interpolations unresolved. Cached: don't change it."""
    config, *own = BASES[name]
    small = ["data=digits", *_SMALL, *(() if config == "linear" else _HEADS), *own]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(config, small)
    OmegaConf.set_struct(cfg, False)
    for key, value in _OPTIONAL.items():
        if not (name == "linear" and key == "optimizer.kwargs.momentum"):
            OmegaConf.update(cfg, key, value, force_add=True)
    return OmegaConf.to_container(cfg, resolve=False)


# ------------------------------------------------------------------------------------ edits


def edited(config: Any, edits: list[Edit]) -> Any:
    """Applies edits to a copy of plain values; skips edits whose path no longer exists."""
    config = copy.deepcopy(config)
    for kind, path, *rest in edits:
        parts = [int(part) if part.isdigit() else part for part in path.split(".") if part]
        if kind in ("add", "reverse"):
            place = _at(config, parts)
            if kind == "add" and isinstance(place, dict):
                place[rest[0]] = copy.deepcopy(rest[1])
            elif kind == "reverse" and isinstance(place, list):
                place.reverse()
            elif kind == "reverse" and isinstance(place, dict):
                items = list(place.items())
                place.clear()
                place.update(reversed(items))
            continue
        place = _at(config, parts[:-1])
        if not _has(place, parts[-1]):
            continue
        if kind == "delete":
            del place[parts[-1]]
        else:
            place[parts[-1]] = copy.deepcopy(rest[0])
    return config


def _has(place: Any, key: Any) -> bool:
    if isinstance(place, dict):
        return key in place
    return isinstance(place, list) and isinstance(key, int) and key < len(place)


def _at(config: Any, parts: list[Any]) -> Any:
    for part in parts:
        if not _has(config, part):
            return None
        config = config[part]
    return config


def paths(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All dotted paths of plain values, mappings and lists included, with their values."""
    if prefix:
        yield prefix, value
    items: Any = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield from paths(inner, f"{prefix}.{key}" if prefix else str(key))


# ------------------------------------------------------------------------------------ values

_EDGES = [0, 1, -1, 2, 3, 7, 8, 16, 64, 0.0, -0.0, 0.5, -0.5, 1.5, 0.05, 1e-3, 0.999, 1.0]
_ABSURD = [10**9, -(10**9), 2**31, 2**63, 10**30, 1e30, -1e30, 1e-30, math.nan, math.inf, -math.inf]
_WORDS = [
    *("", " ", "banana", "None", "null", "true", "1", "-1", "nan", "1e-3", "a/b", "0,1", "auto"),
    *("ünï", "\n", "{}", "[0]", "x" * 300, "a\x00b", "same", "older", "none"),
    *("simclr", "mocov2plus", "mocov2_sscl", "byol", "barlow", "digits", "cifar10", "custom"),
    *("image_folder", "resident", "sgd", "adam", "adamw", "lars", "warmup_cosine", "step", "epoch"),
    *("resnet18", "vit_tiny", "test_resnet", "cosine", "euclidean", "builtin", "missing/folder"),
    *("cpu", "gpu", "tpu", "mps", "ddp", "fsdp", "deepspeed", "32", "16-mixed", "bf16-mixed"),
    *("64-true", "16-true", "bf16-true", "transformer-engine", "dense", "chunked", "numba"),
    *("triton", "norm", "simple"),
]
_ODD = [
    *("???", "${nowhere.at.all}", "${data}", "${oc.env:NO_SUCH_VARIABLE}", "${seed}", "${method}"),
    *(None, True, False, [], {}, [0], ["1"], [1, 2], [0.5, 1.0], [None], [[]], {"a": 1}),
    *({"name": "sgd"}, {"from": 0, "to": 1, "epochs": [0, 1]}, {1: 2}, ["${nowhere}"]),
]
_NEW_KEYS = [
    *("typo", "negativs", "Hardness", "kep", "prob", "band", "from_epoch", "until_epoch", "label"),
    *("image", "queries", "detach", "epochs", "curve", "name", "kwargs", "enabled", "_target_"),
    *("lr", "fraction", "classifier", "finetune", "mixup", "mean", "std", "nesterov", "eta"),
    *("betas", "", "a b", "a=b", 0, 1, True, 1.5, "lr_lambda", "pretrained", "drop_rate"),
]
# Arguments of Lightning's Trainer, which the standalone host passes on.
_TRAINER_KEYS = [
    *("accelerator", "strategy", "devices", "precision", "fast_dev_run", "max_epochs"),
    *("min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches"),
    *("limit_val_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch"),
    *("num_sanity_val_steps", "log_every_n_steps", "enable_progress_bar", "deterministic"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "benchmark"),
    *("inference_mode", "use_distributed_sampler", "profiler", "detect_anomaly", "barebones"),
    *("plugins", "sync_batchnorm", "reload_dataloaders_every_n_epochs", "default_root_dir"),
    *("callbacks", "logger", "model_registry", "enable_checkpointing", "enable_autolog_hparams"),
]

_numbers = st.one_of(
    st.sampled_from(_EDGES), st.sampled_from(_EDGES), st.sampled_from(_ABSURD), st.floats(0, 1)
)
_any_value = st.one_of(_numbers, st.sampled_from(_WORDS), st.sampled_from(_ODD))

_share = st.one_of(st.sampled_from([0, 0.0, 0.5, 0.9, 0.95, 1, 1.0]), _numbers)
_schedule = st.fixed_dictionaries(
    {"from": _share, "to": _share, "epochs": st.lists(_numbers, min_size=1, max_size=3)},
    optional={"curve": st.sampled_from(["linear", "cosine", "banana", 1, None])},
)
_number = st.one_of(_share, _share, _schedule, st.sampled_from(_ODD))
_band = st.one_of(st.tuples(_number, _number).map(list), st.just([0.5, 1.0]), _any_value)
_times = {"from_epoch": _number, "until_epoch": _number}
_condition = st.fixed_dictionaries(
    {},
    optional={
        "band": _band,
        "label": st.sampled_from(["same", "different", "other", None, 1]),
        "image": st.sampled_from(["same", "different", None, []]),
        **_times,
    },
)
_small = st.one_of(st.integers(0, 8), _number)


def _verb(**arguments: Any) -> Any:
    return st.fixed_dictionaries({}, optional={**arguments, **_times})


_verbs = {
    "keep": _condition,
    "drop": _condition,
    "fill": st.one_of(
        st.sampled_from(["older", "none", None]),
        _verb(kind=st.sampled_from(["older", "none", "x"]), reserve=_number),
    ),
    "mix": _verb(hardest=_small, pairs=_small, queries=_small, detach=_any_value),
    "reweight": _verb(beta=_number),
    "debias": _verb(tau_plus=_number),
    "retain": _verb(strength=_number, band=_band, decay=_number),
    "typo": _any_value,
}
# In the order of the draw, which differs from case to case.
policies = st.lists(
    st.sampled_from(sorted(_verbs)).flatmap(
        lambda verb: st.tuples(st.just(verb), st.one_of(_verbs[verb], _verbs[verb], _any_value))
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda pair: pair[0],
).map(dict)


def _value_for(path: str, old: Any) -> st.SearchStrategy[Any]:
    """Draws mostly values of the present type, sometimes any value."""
    if "backbone.kwargs" in path:  # timm doesn't bound the depth
        return st.sampled_from([*_EDGES, math.nan, *_WORDS, *_ODD])
    if isinstance(old, bool):
        return st.one_of(st.just(not old), _any_value)
    if isinstance(old, int | float):
        return st.one_of(_numbers, _numbers, _any_value)
    if isinstance(old, str):
        return st.one_of(st.sampled_from(_WORDS), _any_value)
    return _any_value


@cache
def edits_of(name: str, groups: tuple[str, ...] = ()) -> st.SearchStrategy[list[Edit]]:
    """Draws one to four edits of a composed config, or of some of its groups."""
    config = composed(name)
    found = {p: v for p, v in paths(config) if not groups or p.partition(".")[0] in groups}
    by_group: dict[str, list[str]] = {}
    for path in found:
        by_group.setdefault(path.partition(".")[0], []).append(path)
    anywhere = st.sampled_from(sorted(found))
    # Each group with the same probability.
    in_group = st.sampled_from(sorted(by_group)).flatmap(lambda g: st.sampled_from(by_group[g]))
    place = st.one_of(anywhere, in_group)
    mappings = [p for p, v in found.items() if isinstance(v, dict)]
    mapping = st.sampled_from(mappings if groups else ["", *mappings])
    ordered = st.sampled_from([p for p, v in found.items() if isinstance(v, dict | list)])

    def setting(path: str) -> st.SearchStrategy[Edit]:
        return st.tuples(st.just("set"), st.just(path), _value_for(path, found[path]))

    kinds = [
        place.flatmap(setting),
        place.flatmap(setting),
        place.map(lambda path: ("delete", path)),
        st.tuples(st.just("add"), mapping, st.sampled_from(_NEW_KEYS), _any_value),
        ordered.map(lambda path: ("reverse", path)),
    ]
    if not groups:
        kinds.append(
            st.tuples(st.just("add"), st.just(""), st.sampled_from(_TRAINER_KEYS), _any_value)
        )
    if "negatives" in config:
        kinds.append(st.tuples(st.just("set"), st.just("negatives"), policies))
    return st.lists(st.one_of(kinds), min_size=1, max_size=4)


def cases(*names: str, groups: tuple[str, ...] = ()) -> st.SearchStrategy[tuple[str, list[Edit]]]:
    """Draws the name of a config, and edits of it or of some of its groups."""
    return st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), edits_of(name, groups))
    )
