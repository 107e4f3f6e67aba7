"""Which runs are seeds of one experiment, what to call it, and what to compare it with.

Two runs belong together if their configs are equal but for what can't change the outcome on
purpose: the seed, names, folders, wandb's ids, devices and workers.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from solo_hardneg.analysis.runs import Note, Run, section
from solo_hardneg.analysis.untrusted import encodable
from solo_hardneg.errors import ConfigError, HardnegError
from solo_hardneg.negatives import build
from solo_hardneg.negatives.schedule import is_schedule

# Keys, and beginnings of keys that end in a dot, which don't tell experiments apart.
PASSED_OVER = (
    "accelerator",
    "auto_resume.",
    "checkpoint.",
    "data.download",
    "data.num_workers",
    "data.suggest.",  # what it suggests stands where it is used
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
    "method",  # these two make the label
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
WORDS = {
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
_FAMILIES = {"mocov2": "MoCo v2", "simclr": "SimCLR", "byol": "BYOL"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only.

    Attributes:
        runs: one for each seed, in the order of the seeds.
        label: what a person calls it.
        settings: its config as ``key: text``, but for what doesn't count.
        policy: its policy's normal form, as JSON; ``None`` if it can't be built here.
    """

    runs: Sequence[Run]
    label: str
    settings: Mapping[str, str] = field(default_factory=dict)
    policy: str | None = None

    @property
    def args(self) -> Mapping[str, Any]:
        """The config of the first of its runs."""
        return self.runs[0].args

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.runs)

    @property
    def takes_all(self) -> bool:
        """Whether it is MoCo v2 or SimCLR that leaves all negatives as they are."""
        return self.policy == "{}" and family(self.args) in ("mocov2", "simclr")


def family(args: Mapping[str, Any]) -> str:
    """``mocov2`` and ``simclr`` for ours and the host's; of all others, the method's name."""
    method = str(args.get("method"))
    for name in ("mocov2", "simclr"):
        if method.startswith(name):
            return name
    return method


def group(runs: Iterable[Run], notes: list[Note], one_per_seed: bool = True) -> list[Group]:
    """The groups, labelled, in order of family, all negatives first.

    Of several runs of one seed, which are no independent ones, the one that was trained longest
    counts, and the others are noted; unless ``one_per_seed`` is false.
    """
    together: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        settings = tuple(sorted(_settings(run.args).items()))
        key = (_kind(run.args), _policy(run.args) or json.dumps(run.args.get("negatives")))
        together.setdefault((*key, settings), []).append(run)
    groups = [
        Group(
            _one_per_seed(members, notes) if one_per_seed else members,
            "",
            dict(key[2]),
            _policy(members[0].args),
        )
        for key, members in together.items()
    ]
    groups.sort(key=lambda g: (family(g.args), not g.takes_all))
    labels = map(encodable, _labels(groups))
    return [
        Group(g.runs, label, g.settings, g.policy) for g, label in zip(groups, labels, strict=True)
    ]


def _kind(args: Mapping[str, Any]) -> str:
    """The method; ours of one family, which differ in their default policy only, as one."""
    method = str(args.get("method"))
    ours = method.endswith(("_banded", "_sscl"))
    return f"ours, {family(args)}" if ours else method


def _one_per_seed(runs: Sequence[Run], notes: list[Note]) -> list[Run]:
    kept: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda r: (-r.epochs, r.linear is None, str(r.folder))):
        if run.seed in kept:
            text = f"has the seed and the config of {kept[run.seed].title}, and isn't counted."
            notes.append(Note(run.title, text))
        else:
            kept[run.seed] = run
    return sorted(kept.values(), key=lambda r: (str(type(r.seed)), r.seed))


def _settings(args: Mapping[str, Any]) -> dict[str, str]:
    flat = dict(_flat("", args))
    if args.get("method") == "mocov2plus":
        flat.setdefault("method_kwargs.symmetric", "true")  # it knows no other
    settings = {k: v for k, v in flat.items() if not _passed_over(k)}
    data = section(args, "data")
    if data.get("dataset") == "custom":  # its name says nothing, its folder does
        parts = str(data.get("train_path")).replace("\\", "/").rstrip("/").split("/")
        settings[_DATASET] = "/".join(["custom", *parts[-2:]])
    return encodable(settings)


def _flat(key: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else str(name), inner)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)


def _passed_over(key: str) -> bool:
    return any(
        key.startswith(p) if p.endswith((".", "_")) else key == p or key.startswith(f"{p}.")
        for p in PASSED_OVER
        if p != "method" or key == "method"
    )


# ---------------------------------------------------------------------- labels


def _labels(groups: Sequence[Group]) -> list[str]:
    """Method and policy, and what else tells a group from the others of its family."""
    labels = []
    for one in groups:
        kin = [g for g in groups if family(g.args) == family(one.args)]
        near = [g for g in kin if g.settings.get(_DATASET) == one.settings.get(_DATASET)]
        keys = [_DATASET] if len(near) < len(kin) else []
        keys += [key for key in differing(near) if key in WORDS]
        keys += _needed(one, near, keys)
        policy = negatives_title(one.args)
        name = _FAMILIES.get(family(one.args), family(one.args))
        words = [words_for(k, one.settings[k]) for k in keys if k in one.settings]
        labels.append(", ".join([f"{name}: {policy}" if policy else name, *words]))
    # The host's method beside ours with all negatives; or, after that, values that were cut off.
    methods = [f"{label}, {g.args.get('method')}" for label, g in zip(labels, groups, strict=True)]
    labels = _told_apart(labels, methods)
    numbered = [f"{label} ({labels[:i].count(label) + 1})" for i, label in enumerate(labels)]
    return _told_apart(labels, numbered)


def _told_apart(labels: Sequence[str], longer: Sequence[str]) -> list[str]:
    """The labels, with the longer ones in place of those that stand more than once."""
    return [
        more if labels.count(label) > 1 else label
        for label, more in zip(labels, longer, strict=True)
    ]


def words_for(key: str, value: str) -> str:
    """A setting as a person says it, cut off if it is long."""
    if key == "method_kwargs.symmetric":
        return {"true": "symmetric", "false": "one direction"}.get(value, value)
    return textwrap.shorten(f"{WORDS.get(key, key)} {value}", 60, placeholder=" …")


def _needed(one: Group, near: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """What else it takes to tell a group from those that are equal in policy and these keys."""

    def seen(g: Group) -> list[Any]:
        return [g.policy, _kind(g.args), *(g.settings.get(key) for key in keys)]

    twins = [g for g in near if seen(g) == seen(one)]
    return [key for key in differing(twins) if key not in keys]


def differing(groups: Sequence[Group]) -> list[str]:
    """The keys whose values differ between groups; those that a person looks for first, first."""
    keys = {key for one in groups for key in one.settings}
    # Where a key is missing, nothing is known of it.
    found = [key for key in keys if len({g.settings[key] for g in groups if key in g.settings}) > 1]
    order = list(WORDS)
    return sorted(found, key=lambda k: (order.index(k) if k in order else len(order), k))


def negatives_title(args: Mapping[str, Any]) -> str:
    """The preset that the policy equals, or the policy in short; empty where there is none."""
    config, policy = args.get("negatives"), _policy(args)
    if config is None and family(args) not in ("mocov2", "simclr"):
        return ""
    if policy is not None:
        tau, epochs = section(section(args, "data"), "suggest").get("tau_plus"), args.get(_EPOCHS)
        known = presets(
            tau if isinstance(tau, float | int) else None,
            epochs if isinstance(epochs, int) else None,
        )
        for name, normal in known.items():
            if normal == policy:
                return name
    return short(config)


def _policy(args: Mapping[str, Any]) -> str | None:
    try:
        return json.dumps(build(args.get("negatives")).config)
    except (
        HardnegError,
        TypeError,
        ValueError,
    ):  # another version's, or a third party's verb
        return None


@cache
def presets(tau_plus: float | None, max_epochs: int | None) -> dict[str, str]:
    """The normal form of each preset, as JSON, for data that suggest this τ⁺; ``all`` first."""
    from importlib.resources import files

    around: dict[str, Any] = {"data": {"suggest": {}}}
    if tau_plus is not None:
        around["data"]["suggest"]["tau_plus"] = tau_plus
    if max_epochs is not None:
        around["max_epochs"] = max_epochs
    found = {}
    for file in sorted(files("solo_hardneg.configs").joinpath("negatives").iterdir(), key=str):
        if file.name.endswith(".yaml"):
            cfg = OmegaConf.create({**around, "negatives": OmegaConf.create(file.read_text())})
            found[file.name.removesuffix(".yaml")] = json.dumps(build(cfg.negatives).config)
    return found


def short(value: Any) -> str:
    """A policy's mapping in few characters: ``keep(band=[0.9, 0.95]) fill(older)``."""
    if not isinstance(value, Mapping):
        return _text(value)
    verbs = []
    for verb, arguments in value.items():
        if isinstance(arguments, Mapping) and not is_schedule(arguments):
            inner = ", ".join(f"{k}={_text(v)}" for k, v in arguments.items() if v is not None)
        else:
            inner = _text(arguments)
        if arguments is not None:
            verbs.append(f"{verb}({inner})")
    return " ".join(verbs) or "all"


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and {"from", "to", "epochs"} <= set(value):
        first, last = _text(value["from"]), _text(value["to"])
        return f"{first}→{last} over epochs {_text(value['epochs'])}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return value if isinstance(value, str) else json.dumps(value, default=str)


# ---------------------------------------------------------------------- baselines


def baselines(groups: Sequence[Group], chosen: str | None = None) -> dict[str, Group | None]:
    """For each group's label, the group that it is compared with.

    That is the one with all negatives, of its family and data set, which differs from it in the
    fewest other settings; ``None`` for the baselines themselves and where there is none.

    Args:
        groups: all of them.
        chosen: the label of a baseline for all of them instead.

    Raises:
        ConfigError: there is no group of this label.
    """
    if chosen is not None:
        by_label = {g.label: g for g in groups}
        if chosen not in by_label:
            raise _no_such_baseline(chosen, by_label)
        return {g.label: None if g.label == chosen else by_label[chosen] for g in groups}
    found: dict[str, Group | None] = {}
    for one in groups:
        candidates = [
            g
            for g in groups
            if g.takes_all
            and family(g.args) == family(one.args)
            and g.settings.get(_DATASET) == one.settings.get(_DATASET)
        ]
        candidates.sort(key=lambda g: len(differing([g, one])))
        found[one.label] = candidates[0] if candidates and not one.takes_all else None
    return found


def _no_such_baseline(chosen: str, known: Iterable[str]) -> ConfigError:
    labels = sorted(known)
    nearest = difflib.get_close_matches(chosen, labels, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ConfigError(
        f"--baseline={chosen}: there is no such group.{hint} Known: {'; '.join(labels)}. Quote it "
        "as it stands in the report's table."
    )
