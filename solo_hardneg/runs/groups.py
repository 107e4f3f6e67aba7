"""Groups runs that differ in their seed, and finds a label and a baseline for each group.

Two runs belong together if their configs are equal but for what doesn't change the experiment: the
seed, names, folders, wandb's ids, devices and workers.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError, HardnegError
from solo_hardneg.files import encodable, flatten
from solo_hardneg.negatives import build
from solo_hardneg.negatives.schedule import is_schedule
from solo_hardneg.runs.find import Note, Run, section

# Keys, and prefixes of keys that end in "." or "_", that don't make another experiment.
IGNORED = (
    "accelerator",
    "auto_resume.",
    "checkpoint.",
    "data.download",
    "data.num_workers",
    "data.suggest.",  # its values appear where they are used
    "data.train_path",
    "data.val_path",
    "debug_augmentations",
    "devices",
    "enable_",
    "hardness.",
    "knn_eval.",
    "limit_val_batches",
    "log_every_n_steps",
    "logger",
    "method",  # this and the negatives make the label
    "name",
    "negatives.",
    "num_nodes",
    "num_sanity_val_steps",
    "performance.",
    "resume_from_checkpoint",
    "seed",
    "strategy",
    "wandb.",
    "wandb_run_id",
)
# The settings that a reader looks for first, and their names in labels.
SETTING_NAMES = {
    "backbone.name": "backbone",
    "data.dataset": "on",
    "data.fraction": "fraction of the data",
    "max_epochs": "epochs",
    "method_kwargs.proj_output_dim": "projection",
    "method_kwargs.queue_size": "queue",
    "method_kwargs.symmetric": "symmetric",
    "method_kwargs.temperature": "temperature",
    "momentum.base_tau": "momentum",
    "optimizer.batch_size": "batch",
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "weight decay",
    "scheduler.warmup_epochs": "warm-up epochs",
}
_DATASET, _EPOCHS = "data.dataset", "max_epochs"
_ALIASES = ("dcl.yaml",)  # of debiased
_FAMILIES = {"mocov2": "MoCo v2", "simclr": "SimCLR", "byol": "BYOL"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only.

    Attributes:
        runs: One per seed, in the order of the seeds.
        label: Its name for readers.
        settings: Its config as ``key: text``, without ignored keys.
        policy: Normal form of its policy as JSON; None if it can't be built here.
    """

    runs: Sequence[Run]
    label: str
    settings: Mapping[str, str] = field(default_factory=dict)
    policy: str | None = None

    @property
    def args(self) -> Mapping[str, Any]:
        """The config of its first run."""
        return self.runs[0].args

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.runs)

    @property
    def uses_all_negatives(self) -> bool:
        """Whether it is MoCo v2 or SimCLR with all negatives."""
        return self.policy == "{}" and family_of(self.args) in ("mocov2", "simclr")


def family_of(args: Mapping[str, Any]) -> str:
    """The family of a method, ``mocov2`` or ``simclr``; otherwise the method's name."""
    method = str(args.get("method"))
    for name in ("mocov2", "simclr"):
        if method.startswith(name):
            return name
    return method


def group_runs(runs: Iterable[Run], notes: list[Note], one_per_seed: bool = True) -> list[Group]:
    """Groups runs, ordered by family with all negatives first, and labels the groups.

    Args:
        runs: Runs of pretraining.
        notes: Receives notes on runs left out.
        one_per_seed: Of several runs of a seed, keep only the one trained longest.
    """
    members: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        settings = tuple(sorted(_comparable_settings(run.args).items()))
        policy = _normal_policy(run.args) or json.dumps(run.args.get("negatives"))
        members.setdefault((_method_kind(run.args), policy, settings), []).append(run)
    groups = [
        Group(
            _one_per_seed(several, notes) if one_per_seed else several,
            "",
            dict(settings),
            _normal_policy(several[0].args),
        )
        for (*_, settings), several in members.items()
    ]
    groups.sort(key=lambda g: (family_of(g.args), not g.uses_all_negatives))
    labels = map(encodable, _labels(groups))
    return [replace(g, label=label) for g, label in zip(groups, labels, strict=True)]


def _method_kind(args: Mapping[str, Any]) -> str:
    """The method; banded and SSCL methods of a family are one, but for their default policy."""
    method = str(args.get("method"))
    has_policy = method.endswith(("_banded", "_sscl"))
    return f"{family_of(args)} with a policy" if has_policy else method


def _one_per_seed(runs: Sequence[Run], notes: list[Note]) -> list[Run]:
    kept: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda r: (-r.epochs, r.linear is None, str(r.folder))):
        if run.seed in kept:
            text = f"not counted: it has the seed and the config of {kept[run.seed].title}."
            notes.append(Note(run.title, text))
        else:
            kept[run.seed] = run
    return sorted(kept.values(), key=lambda r: (str(type(r.seed)), r.seed))


def _comparable_settings(args: Mapping[str, Any]) -> dict[str, str]:
    flat = {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in flatten(args).items()
    }
    if args.get("method") == "mocov2plus":
        flat.setdefault("method_kwargs.symmetric", "true")  # the host's MoCo always is
    settings = {key: value for key, value in flat.items() if not _is_ignored(key)}
    data = section(args, "data")
    if data.get("dataset") == "custom":  # only its folder identifies it
        parts = str(data.get("train_path")).replace("\\", "/").rstrip("/").split("/")
        settings[_DATASET] = "/".join(["custom", *parts[-2:]])
    return encodable(settings)


def _is_ignored(key: str) -> bool:
    return any(
        key.startswith(p) if p.endswith((".", "_")) else key == p or key.startswith(f"{p}.")
        for p in IGNORED
        if p != "method" or key == "method"
    )


# ---------------------------------------------------------------------- labels


def _labels(groups: Sequence[Group]) -> list[str]:
    """Unique labels: method, policy, and the settings that differ within the family."""
    labels = []
    for one in groups:
        family = [g for g in groups if family_of(g.args) == family_of(one.args)]
        near = [g for g in family if g.settings.get(_DATASET) == one.settings.get(_DATASET)]
        keys = [_DATASET] if len(near) < len(family) else []
        keys += [key for key in differing_keys(near) if key in SETTING_NAMES]
        keys += _further_keys(one, near, keys)
        policy = policy_name(one.args)
        name = _FAMILIES.get(family_of(one.args), family_of(one.args))
        settings = [describe_setting(k, one.settings[k]) for k in keys if k in one.settings]
        labels.append(", ".join([f"{name}: {policy}" if policy else name, *settings]))
    # Labels may still be equal: the host's method and its banded one, or values cut short.
    methods = [f"{label}, {g.args.get('method')}" for label, g in zip(labels, groups, strict=True)]
    labels = _replace_duplicates(labels, methods)
    numbered = [f"{label} ({labels[:i].count(label) + 1})" for i, label in enumerate(labels)]
    return _replace_duplicates(labels, numbered)


def _replace_duplicates(labels: Sequence[str], longer: Sequence[str]) -> list[str]:
    """The labels, with the longer ones for those that occur more than once."""
    pairs = zip(labels, longer, strict=True)
    return [more if labels.count(label) > 1 else label for label, more in pairs]


def describe_setting(key: str, value: str) -> str:
    """A setting for readers, such as ``temperature 0.2``, cut short if it is long."""
    if key == "method_kwargs.symmetric":
        return {"true": "symmetric", "false": "one direction"}.get(value, value)
    return textwrap.shorten(f"{SETTING_NAMES.get(key, key)} {value}", 60, placeholder=" …")


def _further_keys(one: Group, near: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """Keys that distinguish a group from those that are equal in policy and ``keys``."""

    def known(g: Group) -> list[Any]:
        return [g.policy, _method_kind(g.args), *(g.settings.get(key) for key in keys)]

    twins = [g for g in near if known(g) == known(one)]
    return [key for key in differing_keys(twins) if key not in keys]


def differing_keys(groups: Sequence[Group]) -> list[str]:
    """The keys whose values differ between groups, those of ``SETTING_NAMES`` first."""
    keys = {key for one in groups for key in one.settings}
    # A group that lacks a key doesn't differ in it.
    found = [key for key in keys if len({g.settings[key] for g in groups if key in g.settings}) > 1]
    order = list(SETTING_NAMES)
    return sorted(found, key=lambda k: (order.index(k) if k in order else len(order), k))


# ---------------------------------------------------------------------- policies


def policy_name(args: Mapping[str, Any]) -> str:
    """The preset that the policy equals, or the policy in short; empty for other methods."""
    config, policy = args.get("negatives"), _normal_policy(args)
    if config is None and family_of(args) not in ("mocov2", "simclr"):
        return ""
    if policy is not None:
        tau, epochs = section(section(args, "data"), "suggest").get("tau_plus"), args.get(_EPOCHS)
        known = preset_policies(
            tau if isinstance(tau, float | int) else None,
            epochs if isinstance(epochs, int) else None,
        )
        for name, normal in known.items():
            if normal == policy:
                return name
    return shorten_policy(config)


def _normal_policy(args: Mapping[str, Any]) -> str | None:
    try:
        return json.dumps(build(args.get("negatives")).config)
    except (HardnegError, TypeError, ValueError):  # of another version or a third party
        return None


@cache
def preset_policies(tau_plus: float | None, max_epochs: int | None) -> dict[str, str]:
    """The normal form of each preset as JSON, ``all`` first, without aliases.

    Args:
        tau_plus: The dataset's suggested τ⁺, which some presets use.
        max_epochs: Epochs of the run, which schedules use.
    """
    around: dict[str, Any] = {"data": {"suggest": {}}}
    if tau_plus is not None:
        around["data"]["suggest"]["tau_plus"] = tau_plus
    if max_epochs is not None:
        around["max_epochs"] = max_epochs
    found = {}
    for file in sorted(files("solo_hardneg.configs").joinpath("negatives").iterdir(), key=str):
        if file.name.endswith(".yaml") and file.name not in _ALIASES:
            preset = OmegaConf.create(file.read_text(encoding="utf-8"))
            cfg = OmegaConf.create({**around, "negatives": preset})
            found[file.name.removesuffix(".yaml")] = json.dumps(build(cfg.negatives).config)
    return found


def shorten_policy(value: Any) -> str:
    """A policy's config in few characters: ``keep(band=[0.9, 0.95]) fill(older)``."""
    if not isinstance(value, Mapping):
        return _shorten_value(value)
    verbs = []
    for verb, arguments in value.items():
        if isinstance(arguments, Mapping) and not is_schedule(arguments):
            known = {k: v for k, v in arguments.items() if v is not None}
            inner = ", ".join(f"{k}={_shorten_value(v)}" for k, v in known.items())
        else:
            inner = _shorten_value(arguments)
        if arguments is not None:
            verbs.append(f"{verb}({inner})")
    return " ".join(verbs) or "all"


def _shorten_value(value: Any) -> str:
    if isinstance(value, Mapping) and {"from", "to", "epochs"} <= set(value):
        first, last = _shorten_value(value["from"]), _shorten_value(value["to"])
        return f"{first}→{last} over epochs {_shorten_value(value['epochs'])}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shorten_value, value))}]"
    return value if isinstance(value, str) else json.dumps(value, default=str)


# ---------------------------------------------------------------------- baselines


def find_baselines(groups: Sequence[Group], chosen: str | None = None) -> dict[str, Group | None]:
    """The group that each group is compared with, by label.

    It is the one with all negatives, of the same family and dataset, that differs in the fewest
    settings; None for the baselines themselves and without such a group.

    Args:
        groups: All groups.
        chosen: Label of one baseline for all groups instead.

    Raises:
        ConfigError: No group has the label ``chosen``.
    """
    if chosen is not None:
        by_label = {g.label: g for g in groups}
        if chosen not in by_label:
            raise _unknown_baseline(chosen, by_label)
        return {g.label: None if g.label == chosen else by_label[chosen] for g in groups}
    return {one.label: _nearest_baseline(one, groups) for one in groups}


def _nearest_baseline(one: Group, groups: Sequence[Group]) -> Group | None:
    candidates = [
        g
        for g in groups
        if g.uses_all_negatives
        and family_of(g.args) == family_of(one.args)
        and g.settings.get(_DATASET) == one.settings.get(_DATASET)
    ]
    if one.uses_all_negatives or not candidates:
        return None
    return min(candidates, key=lambda g: len(differing_keys([g, one])))


def _unknown_baseline(chosen: str, known: Iterable[str]) -> ConfigError:
    labels = sorted(known)
    nearest = difflib.get_close_matches(chosen, labels, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ConfigError(
        f"--baseline={chosen}: no such group.{hint} Known: {'; '.join(labels)}. Quote it as in the "
        "report's table."
    )
