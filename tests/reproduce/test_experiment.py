"""The experiments in ``configs/paper`` are the papers' tables; invalid files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import build
from solo_hardneg.report import published
from solo_hardneg.reproduce.claims import CONFIRMED, judge
from solo_hardneg.reproduce.experiment import (
    Experiment,
    Row,
    list_configs,
    load_experiment,
    load_scale,
)
from solo_hardneg.reproduce.grid import make_cells
from solo_hardneg.reproduce.overrides import compose_config, sort_overrides
from solo_hardneg.reproduce.table import Line, published_lines

# Tables by experiment. Two more experiments have numbers of several tables.
TABLES = {
    "cai_table1": ["Table 1"],
    "cai_figure3": ["Figure 3"],
    "cai_tableA1": ["Table A1 (first half)", "Table A1 (second half)"],
    "cai_tableA2": ["Table A2 (first half)", "Table A2 (second half)"],
    "cai_tableA3": ["Table A3"],
    "sscl_table3": ["Table 3"],
    "sscl_table4": ["Table 4"],
    "sscl_table5": ["Table 5"],
}
DATASETS = {"cai": ["imagenet"], "sscl": ["cifar100", "cifar10", "tinyimagenet"]}
ALL = list_configs("paper")
ON_EACH_DATASET = [
    pytest.param(name, data, marks=[pytest.mark.full] if number else [])
    for name in ALL
    for number, data in enumerate(DATASETS[name.partition("_")[0]])
]


def config_of(experiment: Experiment, row: Row, data: str) -> dict[str, Any]:
    cfg = compose_config(row.config, (f"data={data}", *experiment.pretrain, *row.overrides))
    return OmegaConf.to_container(cfg, resolve=True)


def lines_of(experiment: Experiment, row: Row, data: str) -> list[Line]:
    temperature = config_of(experiment, row, data)["method_kwargs"]["temperature"]
    return published_lines(row, data, experiment.data, temperature or 0.0)


def test_all_experiments_and_scales_exist() -> None:
    assert set(ALL) == {*TABLES, "cai_figure2", "sscl_figure4"}
    assert set(list_configs("scale")) == {"paper", "day", "hour", "minute"}


@pytest.mark.parametrize(("name", "data"), ON_EACH_DATASET)
def test_every_number_of_a_table_is_in_one_row(name: str, data: str) -> None:
    experiment, tables = load_experiment(name), TABLES.get(name, [])
    rows = experiment.rows.values()
    lines = [line for row in rows for line in lines_of(experiment, row, data)]
    found = [cell for line in lines for cell in line.values() if cell.table in tables]
    expected = [c for c in published.cells() if c.table in tables and c.dataset == data]
    assert bool(expected) == bool(tables)
    assert sorted(map(str, found)) == sorted(map(str, expected))


@pytest.mark.parametrize(("name", "data"), ON_EACH_DATASET)
def test_every_row_has_the_config_of_its_published_lines(name: str, data: str) -> None:
    experiment = load_experiment(name)
    for row in experiment.rows.values():
        args = config_of(experiment, row, data)
        if data == "tinyimagenet":
            args["data"]["train_path"] = "tiny-imagenet-200"
        same = {(cell.table, cell.label): cell for cell in published.matching(args)}
        lines = lines_of(experiment, row, data)
        assert len(lines) == len(row.published)
        for line in lines:
            if row.published_temperature is None:  # figure 3's third row, whose τ is illegible
                continue
            key = (line["top1"].table, line["top1"].label)
            cell = same.get(key)
            assert cell is not None, f"{row.name} isn't {key}"
            assert cell.remark == ""


@pytest.mark.parametrize(
    ("name", "data"), [p for p in ON_EACH_DATASET if p.values[0] != "sscl_figure4"]
)
def test_the_published_numbers_support_the_claims(name: str, data: str) -> None:
    experiment = load_experiment(name)
    rows = experiment.rows.items()
    number = {name: lines_of(experiment, row, data)[0]["top1"].value for name, row in rows}
    for claim in experiment.claims:
        first, second = claim.rows
        difference = number[first] - number[second]
        if claim.kind == "equal":
            assert abs(difference) < claim.margin, claim.text
        else:
            assert difference > -claim.margin, claim.text


@pytest.mark.parametrize("paper", ["cai_figure2", "cai_table1"])
def test_the_published_spread_suffices_to_confirm_the_claims(paper: str) -> None:
    experiment = load_experiment(paper)
    values = {}
    for name, row in experiment.rows.items():
        cell = lines_of(experiment, row, "imagenet")[0]["top1"]
        assert cell.seeds == 3
        # Three numbers with this mean and standard deviation.
        values[name] = [cell.value - cell.std, cell.value, cell.value + cell.std]
    verdicts = judge(experiment.claims, values)
    assert verdicts["verdict"].eq(CONFIRMED).all(), verdicts[["claim", "holm_for"]]


def assert_cells_fit(experiment: Experiment, rows: list[Row], scale: str, data: str) -> None:
    """Asserts that each cell's policy can be built, and mixes no more negatives than exist."""
    user, images = sort_overrides([f"data={data}"]), 1437 if data == "digits" else 50_000
    for cell in make_cells(experiment, load_scale(scale), rows, [0], user, images):
        cfg = compose_config(cell.config, cell.pretrain)
        assert cfg.data.dataset == data
        if policy := cfg.get("negatives"):
            build(policy)
            negatives = cfg.method_kwargs.get("queue_size", 2 * cfg.optimizer.batch_size - 2)
            assert (policy.get("mix") or {}).get("hardest", 0) <= negatives


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_scales_to_digits(name: str) -> None:
    experiment = load_experiment(name)
    assert_cells_fit(experiment, experiment.select_rows([])[-1:], "minute", "digits")


@pytest.mark.full
@pytest.mark.parametrize("scale", ["paper", "minute"])
@pytest.mark.parametrize("name", ALL)
def test_every_cell_has_a_policy_that_fits_its_queue(name: str, scale: str) -> None:
    experiment = load_experiment(name)
    for data in ("digits", experiment.data):
        assert_cells_fit(experiment, experiment.select_rows([]), scale, data)


# ---------------------------------------------------------------------- users' files

GOOD = """
config: simclr_sscl
data: digits
rows:
  a: {overrides: [negatives=all]}
  b: {overrides: [negatives=hcl], baseline: a}
claims:
  - {text: t, greater: [b, a]}
"""


def load(tmp_path: Path, text: str) -> Experiment:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return load_experiment(str(file))


def test_a_users_experiment(tmp_path: Path) -> None:
    mine = load(tmp_path, GOOD)
    assert (mine.name, mine.seeds, mine.data) == ("mine", 1, "digits")
    assert mine.rows["b"].baseline == "a"
    assert [row.name for row in mine.select_rows(["b"])] == ["b"]
    assert [row.name for row in mine.select_rows([])] == ["a", "b"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data: digits", "dat: digits", "unknown setting 'dat'. Did you mean 'data'?"),
        ("data: digits", "", "data is missing"),
        ("baseline: a", "baseline: c", "rows.b.baseline: unknown row 'c'"),
        ("greater: [b, a]", "greater: [b, x]", "claims.0.greater: unknown row 'x'"),
        ("greater: [b, a]", "greater: [b]", "claims.0.greater=['b']: List should have at least 2"),
        ("greater: [b, a]", "source: s", "must have exactly one of greater, at_least, equal"),
        ("greater: [b, a]", "equal: [b, a]", "claims.0.margin=0.0: must be"),
        ("greater: [b, a]", "greater: [b, a], margin: 1.0", "claims.0.margin=1.0: must be"),
        ("greater: [b, a]", "equal: [b, a], margin: .nan", "claims.0.margin=nan: must be"),
        ("[negatives=hcl]", "negatives=hcl", "rows.b.overrides=negatives=hcl: must be a list"),
        ("  b:", "  b/c:", "may hold letters, digits"),
        (
            "  b: {",
            "  b: {published: [[Table 9, x]], ",
            "rows.b.published=['Table 9', 'x']: must be",
        ),
        ("  b: {", "  b: {published: 3, ", "rows.b.published=3: must be a list"),
        ("  b: {", "  b: {{", "invalid YAML"),
        ("data: digits", "data: digits\nseeds: true", "seeds=True: must be"),
    ],
)
def test_an_invalid_experiment_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert message in str(error.value)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for ask, message in (
        (lambda: load_experiment("cai_tabel1"), "experiment 'cai_tabel1'.*'cai_table1'.*sscl_fig"),
        (lambda: load_scale("minut"), "unknown scale 'minut'.*'minute'"),
        (lambda: load_experiment("nothing.yaml"), "nothing.yaml: there is no such file.*sscl_fig"),
        (
            lambda: load_experiment("sscl_table3").select_rows(["ssl"]),
            "row of sscl_table3 'ssl'.*'sscl",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            ask()


def test_a_users_scale(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("epochs: 2")
    tiny = load_scale(str(file))
    assert (tiny.name, tiny.title, tiny.epochs, tiny.images) == ("tiny", "tiny", 2, None)
    file.write_text("epochs: -2")
    with pytest.raises(ConfigError, match="epochs=-2: must be at least 1"):
        load_scale(str(file))
