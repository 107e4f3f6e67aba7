"""Which runs are seeds of one experiment, its label, and its baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from made_up_runs import HARDEST, MOCO, SIMCLR, SSCL, changed
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.runs.find import Note, Run
from solo_hardneg.runs.groups import (
    Group,
    differing_keys,
    find_baselines,
    group_runs,
    policy_name,
    preset_policies,
    shorten_policy,
)


def runs(*several: dict[str, Any], epochs: int = 4) -> list[Run]:
    history = pd.DataFrame({"epoch": [epochs - 1], "metric": ["val_acc1"], "value": [1.0]})
    return [Run(Path(f"r/{i}"), args, history) for i, args in enumerate(several)]


def groups(*several: dict[str, Any]) -> list[Group]:
    return group_runs(runs(*several), [])


def labels(*several: dict[str, Any]) -> list[str]:
    return [g.label for g in groups(*several)]


def test_runs_that_differ_in_their_seed_are_a_group() -> None:
    other = changed(
        MOCO,
        seed=7,
        name="another",
        data__train_path="/elsewhere",
        data__num_workers=16,
        devices="4",
        num_nodes=2,
        wandb_run_id="x",
        wandb__project="y",
        checkpoint__dir="z",
        hardness__enabled=True,
        resume_from_checkpoint="w",
        method="mocov2_sscl",  # differs in its default policy only
    )
    (one,) = groups(other, MOCO)
    assert one.seeds == 2
    assert [run.seed for run in one.runs] == [5, 7]
    assert one.label == "MoCo v2: all"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("method_kwargs__temperature", 0.1, "temperature 0.1"),
        ("method_kwargs__symmetric", True, "symmetric"),
        ("max_epochs", 8, "epochs 8"),
        ("optimizer__lr", 0.06, "learning rate 0.06"),
        ("backbone__name", "resnet18", "backbone resnet18"),
        ("data__dataset", "cifar10", "on cifar10"),
        ("precision", "16-mixed", "precision 16-mixed"),
    ],
)
def test_runs_that_differ_in_a_setting_are_not(key: str, value: Any, text: str) -> None:
    found = labels(MOCO | {"precision": 32}, changed(MOCO | {"precision": 32}, **{key: value}))
    assert len(found) == 2
    assert any(label == f"MoCo v2: all, {text}" for label in found)


def test_custom_data_are_identified_by_their_folder() -> None:
    one, other = (
        changed(MOCO, data__dataset="custom", data__train_path=f"/data/{name}/train")
        for name in ("cats", "dogs")
    )
    assert labels(one, other) == [
        "MoCo v2: all, on custom/cats/train",
        "MoCo v2: all, on custom/dogs/train",
    ]
    moved = changed(one, data__train_path="/elsewhere/cats/train", seed=6)
    assert labels(one, moved) == ["MoCo v2: all"]


def test_labels_of_policies() -> None:
    assert labels(
        changed(MOCO, negatives=HARDEST),
        MOCO,
        changed(MOCO, negatives={"keep": {"band": [0.5, 0.9]}, "fill": "none"}),
        changed(SIMCLR, negatives=SSCL),
        changed(SIMCLR, method="byol"),
    ) == [
        "BYOL: all",
        "MoCo v2: all",
        "MoCo v2: hardest_5",
        "MoCo v2: keep(band=[0.5, 0.9]) fill(none)",
        "SimCLR: sscl",
    ]


def test_the_hosts_methods() -> None:
    host = changed(MOCO, method="mocov2plus")
    del host["negatives"], host["method_kwargs"]["symmetric"]
    assert labels(host) == ["MoCo v2: all"]
    assert labels(host, MOCO) == ["MoCo v2: all, symmetric", "MoCo v2: all, one direction"]
    simclr = changed(SIMCLR, method="simclr")
    del simclr["negatives"]
    both = labels(simclr, SIMCLR)
    assert both == ["SimCLR: all, simclr", "SimCLR: all, simclr_sscl"]
    byol = changed(SIMCLR, method="byol")
    del byol["negatives"]
    assert labels(byol) == ["BYOL"]


def test_labels_are_unique_even_if_long_values_are_cut() -> None:
    long = [changed(MOCO, augmentations=["x" * 100 + str(i)]) for i in range(3)]
    found = labels(*long)
    assert len(set(found)) == 3
    assert all(len(label) < 150 for label in found)


def test_every_preset_is_recognized() -> None:
    """As composed for data that suggest τ⁺, and for a run with schedules."""
    known = preset_policies(0.05, 123)
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        for name in known:
            cfg = compose("simclr_banded", [f"negatives={name}", "max_epochs=123", "data=cifar100"])
            args: Any = OmegaConf.to_container(cfg, resolve=True)
            assert args["data"]["suggest"]["tau_plus"] == 0.05
            assert known[policy_name(args)] == known[name]  # two presets may be one policy


def test_short_policies() -> None:
    curve = {"from": 0.0, "to": 0.95, "epochs": [0, 100], "curve": "linear"}
    assert (
        shorten_policy({"keep": {"band": [curve, 1.0]}})
        == "keep(band=[0.0→0.95 over epochs [0, 100], 1.0])"
    )
    assert (
        shorten_policy({"drop": {"band": None, "label": "same"}, "fill": None})
        == "drop(label=same)"
    )
    assert shorten_policy({"reweight": curve}) == "reweight(0.0→0.95 over epochs [0, 100])"
    assert shorten_policy({}) == "all"


def test_a_policy_of_another_version() -> None:
    unknown = changed(MOCO, negatives={"keep_all_but": 3})
    assert labels(MOCO, unknown) == ["MoCo v2: all", "MoCo v2: keep_all_but(3)"]
    assert labels(changed(MOCO, negatives="hardest_5")) == ["MoCo v2: hardest_5"]


def test_of_two_runs_of_a_seed_one_counts() -> None:
    notes: list[Note] = []
    short_one, *others = [
        *runs(MOCO, epochs=2),
        Run(Path("r/long"), MOCO, runs(MOCO)[0].history),
        Run(Path("r/other"), MOCO | {"seed": 6}, runs(MOCO)[0].history),
    ]
    (one,) = group_runs([short_one, *others], notes)
    assert [run.title for run in one.runs] == ["r/long", "r/other"]
    assert notes == [Note("r/0", "not counted: it has the seed and the config of r/long.")]


def test_the_baseline_has_all_negatives_of_the_same_family_and_data() -> None:
    several = groups(
        changed(MOCO, negatives=HARDEST),
        MOCO,
        changed(MOCO, data__dataset="cifar10", negatives=HARDEST),
        changed(SIMCLR, negatives=SSCL),
        SIMCLR,
        changed(SIMCLR, method="byol"),
    )
    found = {label: base and base.label for label, base in find_baselines(several).items()}
    assert found == {
        "BYOL: all": None,
        "MoCo v2: all, on imagenet": None,
        "MoCo v2: hardest_5, on imagenet": "MoCo v2: all, on imagenet",
        "MoCo v2: hardest_5, on cifar10": None,
        "SimCLR: all": None,
        "SimCLR: sscl": "SimCLR: all",
    }


def test_of_several_baselines_the_most_similar_counts() -> None:
    several = groups(
        changed(MOCO, method_kwargs__temperature=0.1, optimizer__lr=1.0),
        MOCO,
        changed(MOCO, negatives=HARDEST),
        changed(MOCO, method_kwargs__temperature=0.1, negatives=HARDEST),
    )
    found = {label: base and base.label for label, base in find_baselines(several).items()}
    assert found["MoCo v2: hardest_5, temperature 0.2, learning rate 0.03"] == (
        "MoCo v2: all, temperature 0.2, learning rate 0.03"
    )
    one = next(g for g in several if g.label.startswith("MoCo v2: hardest_5, temperature 0.1"))
    base = find_baselines(several)[one.label]
    assert base is not None
    assert len(differing_keys([one, base])) == 1


def test_a_chosen_baseline() -> None:
    several = groups(MOCO, changed(MOCO, negatives=HARDEST), changed(SIMCLR, method="byol"))
    found = find_baselines(several, "MoCo v2: hardest_5")
    assert found["MoCo v2: hardest_5"] is None
    assert {b.label for b in found.values() if b} == {"MoCo v2: hardest_5"}
    message = (
        r"^--baseline=MoCo v2: hardest: no such group. Did you mean 'MoCo v2: hardest_5'"
        r"\? Known: BYOL: all; MoCo v2: all; MoCo v2: hardest_5. Quote it as in the"
    )
    with pytest.raises(ConfigError, match=message):
        find_baselines(several, "MoCo v2: hardest")
