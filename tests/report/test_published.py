"""The papers' published numbers, and the runs that they match."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from presets import PRESETS

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import available, build, full_pool, register, registry
from solo_hardneg.report import published
from solo_hardneg.report.published import PublishedNumber, cells, matching, policy_of_preset

TAU_PLUS = {"cifar10": 0.1, "cifar100": 0.05, "tinyimagenet": 0.05}  # SSCL, Table 2
TINY = {"dataset": "custom", "train_path": "./datasets/tiny-imagenet-200/train"}
OLDER = {"kind": "older", "reserve": 0.5}


def run(
    method: str,
    dataset: str | Mapping[str, Any],
    negatives: Any = None,
    temperature: float | None = 0.2,
    **method_kwargs: Any,
) -> dict[str, Any]:
    """The relevant part of an ``args.json``; the host's methods have no negatives."""
    data = {"dataset": dataset, "train_path": "./datasets"} if isinstance(dataset, str) else dataset
    kwargs = {"temperature": temperature, "proj_output_dim": 128, **method_kwargs}
    args = {"method": method, "data": data, "method_kwargs": kwargs, "max_epochs": 2}
    return args if negatives is None else {**args, "negatives": negatives}


def moco(dataset: str, negatives: Any, temperature: float = 0.2) -> dict[str, Any]:
    return run("mocov2_banded", dataset, negatives, temperature, symmetric=False)


def numbers(found: Sequence[PublishedNumber], metric: str = "top1") -> dict[str, float]:
    """Numbers by table; fails if a table occurs twice."""
    values = {cell.source: cell.value for cell in found if cell.metric == metric}
    assert len(values) == sum(cell.metric == metric for cell in found)
    return values


def remarks(found: Sequence[PublishedNumber]) -> set[str]:
    assert found
    return {cell.remark for cell in found}


# ---------------------------------------------------------------------- the table


def test_fields_have_allowed_values() -> None:
    datasets = {"cai2020": {"imagenet"}, "dong2023": set(TAU_PLUS)}
    tables = {
        "cai2020": r"Table 1|Figure 3|Table A[12] \((first|second) half\)|Table A3",
        "dong2023": "Table [345]",
    }
    for cell in cells():
        assert re.fullmatch(tables[cell.paper], cell.table)
        assert cell.dataset in datasets[cell.paper]
        assert cell.config in {"mocov2", "simclr", "byol"}
        assert cell.metric in {"top1", "top5"}
        assert 10 < cell.value < 100
        assert cell.std is None or 0 <= cell.std < 20
        assert cell.temperature in {None, 0.07, 0.1, 0.2, 0.5}
        # three seeds with a deviation, one without, or none stated
        assert (cell.seeds, cell.std is None) in {(3, False), (1, True), (None, True)}
        assert (cell.seeds is None) == (cell.paper == "dong2023")
        assert (cell.preset == "") == (cell.config == "byol") == (cell.method == "BYOL")
        assert cell.remark == ""


def test_every_cell_occurs_once() -> None:
    values = {(c.source, c.dataset, c.label, c.temperature, c.metric): c.value for c in cells()}
    assert len(values) == len(cells())
    for *key, _ in values:  # finds most swapped pairs and wrong digits
        assert values[(*key, "top1")] + 10 < values[(*key, "top5")]
    assert Counter(c.source for c in cells()) == {
        "Cai et al. 2020, Table 1": 6 * 4,
        "Cai et al. 2020, Figure 3": 3 * 3 * 2,
        "Cai et al. 2020, Table A1 (first half)": 6,
        "Cai et al. 2020, Table A1 (second half)": 6,
        "Cai et al. 2020, Table A2 (first half)": 6,
        "Cai et al. 2020, Table A2 (second half)": 6,
        "Cai et al. 2020, Table A3": 12,
        "Dong et al. 2023, Table 3": 7 * 6,
        "Dong et al. 2023, Table 4": 5 * 6,
        "Dong et al. 2023, Table 5": 4 * 6,
    }


def test_a_number_printed_in_two_tables_is_the_same() -> None:
    """Dong et al. print four rows twice."""
    rows = [(preset, "simclr", "Table 4") for preset in ("all", "sscl", "hcl")]
    for preset, config, other in [*rows, ("all", "mocov2", "Table 5")]:
        first, second = (
            {
                (c.dataset, c.metric): c.value
                for c in cells()
                if (c.table, c.preset, c.config, c.paper) == (table, preset, config, "dong2023")
            }
            for table in ("Table 3", other)
        )
        assert first == second
        assert len(first) == 6


# Copied from the papers by hand: table, row, dataset, temperature, top-1 and top-5.
BY_HAND: dict[tuple[str, str, str, float | None], tuple[float | None, float | None]] = {
    ("Table 1", "MoCo v2, all", "imagenet", 0.07): (64.78, None),
    ("Table 1", "MoCo v2, drop hardest 0.1% and different class", "imagenet", 0.07): (None, 85.44),
    ("Figure 3", "MoCo v2, all", "imagenet", None): (67.03, None),
    ("Table A1 (first half)", "MoCo v2, keep 85-90%", "imagenet", 0.2): (None, 36.78),
    ("Table A1 (second half)", "MoCo v2, keep 95-100%", "imagenet", 0.2): (67.32, None),
    ("Table A2 (second half)", "MoCo v2, drop 85-100%", "imagenet", 0.2): (None, 72.13),
    ("Table 4", "SimCLR, w/synthesis+debias", "cifar100", 0.5): (None, 82.65),
    ("Table 5", "MoCo v2, w/sampling", "tinyimagenet", 0.5): (27.58, None),
    ("Table 5", "MoCo v2-SSCL", "cifar10", 0.5): (None, 99.33),
}


def test_some_cells_by_hand() -> None:
    found = {(c.table, c.label, c.dataset, c.temperature, c.metric): c for c in cells()}
    for row, values in BY_HAND.items():
        for metric, value in zip(("top1", "top5"), values, strict=True):
            assert value in (None, found[(*row, metric)].value), row
    assert found["Table 1", "MoCo v2, drop same class", "imagenet", 0.2, "top5"].std == 0.15


# ---------------------------------------------------------------------- policies


def test_every_preset_builds() -> None:
    named = {(c.preset, c.dataset) for c in cells() if c.preset}
    for preset, dataset in named:
        assert preset.startswith("{") or preset.partition("[")[0] in PRESETS
        assert set(policy_of_preset(preset, dataset).config) <= set(available())
    # in neither paper
    left = set(PRESETS) - {"dcl"} - {preset.partition("[")[0] for preset, _ in named}
    assert left == {
        *("curriculum", "drop_own_image", "glofnd", "oracle", "retain_hard", "synco", "synco_v2")
    }


def test_bands_are_the_percentiles_of_the_papers() -> None:
    rows = {(cell.negatives, cell.preset) for cell in cells()}
    bands = {row for row in rows if re.match(r"(keep|drop) (hardest )?[\d.-]+%$", row[0])}
    assert len(bands) == 5 + 1 + 2 + 5 + 2  # Tables A1, A3 (first epoch; 0-90, 0-95), A2; Figure 3
    for negatives, preset in bands:
        check_band(negatives, preset)


def check_band(negatives: str, preset: str) -> None:
    """Compares the ranks kept of 1000 negatives, after the first epoch, with the row's words."""
    words = negatives.removesuffix("%").split(" ")
    if words[1] == "hardest":
        low, high = 100 - float(words[2]), 100.0
    else:
        low, high = map(float, words[1].split("-"))
    named = set(range(round(low * 10), round(high * 10)))
    expected = named if words[0] == "keep" else set(range(1000)) - named
    pool = replace(full_pool(torch.linspace(-1, 1, 1000)[None]), age=torch.arange(1000))
    chosen = policy_of_preset(preset, "imagenet").at(1)(pool)
    assert set(chosen.present[0].nonzero()[:, 0].tolist()) == expected, (negatives, preset)


def test_a_preset_with_another_band() -> None:
    assert (
        policy_of_preset("band[0.85,0.9]", "imagenet").config == build({"keep": [0.85, 0.9]}).config
    )
    assert policy_of_preset("band", "imagenet").config == build({"keep": [0.9, 0.95]}).config
    nested = policy_of_preset('{"drop": {"band": [0.99, 1.0]}, "fill": "older"}', "imagenet")
    assert list(nested.config) == ["drop", "fill"]


def test_the_dataset_decides_the_class_probability() -> None:
    for dataset, tau_plus in TAU_PLUS.items():
        assert policy_of_preset("sscl", dataset).config["debias"] == {"tau_plus": tau_plus}


def test_an_unknown_preset_or_dataset() -> None:
    with pytest.raises(ConfigError, match="^negatives: unknown config 'hardest_6'. Did you mean"):
        policy_of_preset("hardest_6", "cifar10")
    with pytest.raises(ConfigError, match="^data: unknown config 'cifar1'. Did you mean 'cifar10'"):
        policy_of_preset("sscl", "cifar1")


# ---------------------------------------------------------------------- matching runs


def test_cais_baseline() -> None:
    found = matching(moco("imagenet", {}))
    assert numbers(found) == {"Cai et al. 2020, Table 1": 67.48, "Cai et al. 2020, Figure 3": 67.48}
    assert numbers(found, "top5") == dict.fromkeys(numbers(found), 87.93)
    assert remarks(found) == {""}
    assert numbers(matching({**moco("imagenet", {}), "negatives": None})) == numbers(found)


def test_temperature_distinguishes_cais_rows() -> None:
    """A row without a stated temperature matches no run."""
    negatives = {"drop": {"band": [0.999, 1.0]}, "fill": OLDER}
    expected = {0.07: {66.25}, 0.1: {67.67}, 0.2: {67.64, 67.70}, 0.5: set()}
    for temperature, values in expected.items():
        assert {*numbers(matching(moco("imagenet", negatives, temperature))).values()} == values


@pytest.mark.parametrize(
    ("negatives", "expected"),
    [
        ({"keep": [0.95, 1.0]}, {"Table A1 (first half)": 66.69, "Table A1 (second half)": 67.32}),
        ({"keep": {"band": [0.85, 0.9]}}, {"Table A1 (first half)": 19.47}),
        ({"keep": {"band": [0, 0.95]}}, {"Table A2 (first half)": 62.1} | {"": 61.95}),
        ({"drop": {"band": [0.9, 1.0]}}, {"Table A2 (second half)": 56.96}),
        ({"drop": {"band": [0, 0.9]}}, {"Table A1 (second half)": 67.15}),
        ({"drop": {"band": [0.85, 0.9]}}, {"Table A2 (first half)": 67.56}),
        ({"drop": {"label": "same"}, "fill": OLDER}, {"Table 1": 68.07}),
        # not in the paper
        ({"keep": {"band": [0.95, 1.0], "from_epoch": 1}}, {}),
        ({"keep": {"band": [0.95, 1.0]}, "debias": {"tau_plus": 0.001}}, {}),
        ({"drop": {"label": "same"}}, {}),  # the paper fills in older ones
        ({"drop": {"label": "different"}, "fill": OLDER}, {}),
        ({"keep": {"band": [0, 0.999], "label": "same"}, "fill": OLDER}, {}),
        ({"drop": {"band": [0.999, 1.0], "label": "same", "image": "same"}, "fill": OLDER}, {}),
        ({"keep": {"band": [{"from": 0, "to": 0.95, "epochs": [0, 9]}, 1.0]}}, {}),
    ],
)
def test_cais_bands(negatives: dict[str, Any], expected: dict[str, float]) -> None:
    if "" in expected:
        expected["Table A2 (second half)"] = expected.pop("")
    wanted = {f"Cai et al. 2020, {table}": value for table, value in expected.items()}
    assert numbers(matching(moco("imagenet", negatives))) == wanted


def test_verbs_without_effect_are_ignored() -> None:
    idle = {"reweight": {"beta": 0}, "debias": {"tau_plus": 0}, "retain": {"strength": 0}}
    everything = {"keep": {"band": [0.0, 1.0]}, **idle}
    assert matching(moco("imagenet", everything)) == matching(moco("imagenet", {}))
    assert not matching(moco("imagenet", {"keep": {"band": [0.0, 1.0], "label": "different"}}))


def test_the_order_of_verbs_counts_if_it_has_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    mix = {"hardest": 32, "pairs": 8}
    weigh = {"debias": {"tau_plus": 0.05}, "reweight": {"beta": 1}}
    ours = [run("simclr_sscl", "cifar100", n, 0.5) for n in ({"mix": mix, **weigh}, {**weigh})]
    tables = [f"Dong et al. 2023, Table {number}" for number in (3, 4)]
    assert numbers(matching(ours[0])) == dict.fromkeys(tables, 60.01)
    assert {cell.preset for cell in matching(ours[1])} == {"hcl"}
    ours[0]["negatives"] = {**weigh, "mix": mix}  # these weigh what all verbs leave
    assert len(matching(ours[0])) == 4
    cell = cells()[0]
    above = {"keep": {"band": [0.5, 1.0]}, "mix": mix}
    made_up = (replace(cell, preset=json.dumps(above)),)  # no paper has two such verbs
    monkeypatch.setattr(published, "cells", lambda: made_up)
    assert matching(moco("imagenet", above, 0.07)) == list(made_up)
    assert not matching(moco("imagenet", dict(reversed(above.items())), 0.07))


def test_cais_simclr_trains_its_first_epoch_on_all_negatives() -> None:
    late = {"keep": {"band": [0.95, 1.0], "from_epoch": 1}}
    found = matching(run("simclr_banded", "imagenet", late, 0.1))
    assert numbers(found) == {"Cai et al. 2020, Table A3": 66.34}
    assert remarks(found) == {""}  # the paper states no temperature
    assert not matching(run("simclr_banded", "imagenet", {"keep": [0.95, 1.0]}, 0.1))


def test_the_hosts_methods_use_all_negatives() -> None:
    plus = matching(run("mocov2plus", "imagenet"))
    assert plus
    assert numbers(plus) == numbers(matching(moco("imagenet", {})))
    assert remarks(plus) == {"this run is symmetric, with two queues; the paper's MoCo v2 has one"}
    # the host ignores both
    ignored = {"negatives": {"keep": [0.95, 1.0]}, "symmetric": False}
    assert matching(run("mocov2plus", "imagenet", **ignored)) == plus
    simclr = matching(run("simclr", "cifar10", temperature=0.5))
    tables = [f"Dong et al. 2023, Table {number}" for number in (3, 4)]
    assert numbers(simclr) == dict.fromkeys(tables, 82.35)
    byol = matching(run("byol", "cifar100", temperature=None))
    assert numbers(byol) == {tables[0]: 55.36}
    assert numbers(byol, "top5") == {tables[0]: 84.23}
    assert remarks(simclr) == remarks(byol) == {""}


def test_families_are_distinguished() -> None:
    """Both have a ``w/synthesis`` on CIFAR-10; DCL and SSCL are SimCLR's, MoCHi is MoCo's."""
    queue, batch = {"hardest": 1024, "pairs": 1024}, {"hardest": 32, "pairs": 8}
    tables = {
        (method, n["hardest"]): numbers(matching(run(method, "cifar10", {"mix": n}, 0.5)))
        for method in ("mocov2_sscl", "simclr_sscl")
        for n in (queue, batch)
    }
    assert tables == {
        ("mocov2_sscl", 1024): {"Dong et al. 2023, Table 5": 82.8},
        ("mocov2_sscl", 32): {},
        ("simclr_sscl", 1024): {},
        ("simclr_sscl", 32): {"Dong et al. 2023, Table 4": 82.55},
    }
    dcl = {"debias": {"tau_plus": 0.1}}
    assert [c.label for c in matching(run("simclr_banded", "cifar10", dcl, 0.5))] == ["DCL"] * 2
    assert not matching(run("mocov2_banded", "cifar10", dcl, 0.5))
    mochi = {"mix": {**queue, "queries": 128}}
    assert [c.label for c in matching(run("mocov2_sscl", "cifar10", mochi, 0.5))] == ["MoCHi"] * 2


def test_another_class_probability_does_not_match() -> None:
    dcl = {"debias": {"tau_plus": 0.05}}
    assert not matching(run("simclr_sscl", "cifar10", dcl, 0.5))
    assert numbers(matching(run("simclr_sscl", "cifar100", dcl, 0.5))) == {
        "Dong et al. 2023, Table 3": 53.75
    }


def test_remarks_name_other_differences() -> None:
    args = run("mocov2_banded", "cifar10", {}, 0.2)  # symmetric by default
    args["data"] = {**args["data"], "fraction": 0.1}
    assert remarks(matching(args)) == {
        "this run is symmetric, with two queues; the paper's MoCo v2 has one; "
        "temperature 0.2 here, 0.5 in the paper; on 10% of the training images"
    }
    args["data"]["fraction"] = -1  # the host's default, all
    args["method_kwargs"] = {"symmetric": False}
    assert remarks(matching(args)) == {"temperature unknown here, 0.5 in the paper"}


def test_tinyimagenet_is_recognized_by_its_folder() -> None:
    sscl = policy_of_preset("sscl", "tinyimagenet").config
    for data in (TINY, {**TINY, "train_path": "/tiny_imagenet/train"}, {"dataset": "tinyimagenet"}):
        assert {*numbers(matching(run("simclr_sscl", data, sscl, 0.5))).values()} == {37.31}
    for path in ("/data/imagenette/train", None):
        assert not matching(run("simclr_sscl", {**TINY, "train_path": path}, sscl, 0.5))


def test_references_are_resolved() -> None:
    """The host writes the ``args.json`` of its own methods unresolved."""
    args = run("simclr", {"dataset": "${name}", "temperature": 0.5}, temperature=None)
    args |= {"name": "cifar10", "method_kwargs": {"temperature": "${data.temperature}"}}
    assert remarks(matching(args)) == {""}
    args["augmentations"] = ["${nowhere}"]  # then none is resolved
    assert matching(args) == []
    assert len(matching({**args, "data": {"dataset": "cifar10"}})) == 4


@pytest.mark.parametrize(
    "args",
    [
        {},
        None,
        "args",
        {"method": "mocov2_banded", "data": "imagenet", "negatives": {}},
        {"method": "mocov2_banded", "data": {"dataset": "imagenet"}},  # without a policy
        {**moco("imagenet", {}), "method_kwargs": None},
        {**moco("imagenet", {}), "method_kwargs": {"temperature": "0.2?"}},
        moco("imagenet", "hardest_5"),
        moco("imagenet", {"keep": {"band": [0.95, 1.5]}}),
        moco("imagenet", {"hardest": 0.05}),
        moco("imagenet", {"debias": {"tau_plus": "${nowhere}"}}),
        run("supcon", "cifar10"),
        run("mocov2plus", "stl10"),
        {"pretrain_method": "simclr", "data": {"dataset": "cifar10"}},  # a linear evaluation
    ],
)
def test_other_configs_match_nothing(args: Any) -> None:
    assert matching(args) == []


def test_a_failing_policy_of_a_third_party_matches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))

    @register("broken")
    class Broken:
        def __init__(self, share: float):
            raise ZeroDivisionError

        def __call__(self, pool: Any) -> Any:
            return pool

    assert matching(moco("imagenet", {"broken": {"share": 0.5}})) == []
