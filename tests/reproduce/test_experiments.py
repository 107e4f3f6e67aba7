"""The experiments in ``configs/paper``: that they are the papers' tables, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from solo_hardneg.analysis import published
from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import build
from solo_hardneg.reproduce.cells import Images, make_cells
from solo_hardneg.reproduce.claims import CONFIRMED, judge
from solo_hardneg.reproduce.experiment import (
    Experiment,
    Row,
    load_experiment,
    load_scale,
    names,
)
from solo_hardneg.reproduce.overrides import composed, told_apart
from solo_hardneg.reproduce.table import published_cells

# The tables that are made again, and by which experiment.
TABLES = {
    "Table 1": "cai_table1",
    "Figure 3": "cai_figure3",
    "Table A1 (first half)": "cai_tableA1",
    "Table A1 (second half)": "cai_tableA1",
    "Table A2 (first half)": "cai_tableA2",
    "Table A2 (second half)": "cai_tableA2",
    "Table A3": "cai_tableA3",
    "Table 3": "sscl_table3",
    "Table 4": "sscl_table4",
    "Table 5": "sscl_table5",
}
DATASETS = {"cai": ("imagenet",), "sscl": ("cifar10", "cifar100", "tinyimagenet")}
ALL = names("paper")


def one_fast(known: list[str], fast: str) -> list:
    """All names; all but one are left out of the fast tests, because Hydra takes its time."""
    return [name if name == fast else pytest.param(name, marks=pytest.mark.full) for name in known]


def datasets(experiment: Experiment) -> tuple[str, ...]:
    return DATASETS[experiment.name.partition("_")[0]]


def config_of(experiment: Experiment, row: Row, data: str) -> dict:
    cfg = composed(row.config, (f"data={data}", *experiment.pretrain, *row.overrides))
    return OmegaConf.to_container(cfg, resolve=True)


def test_the_experiments_are_those_of_both_papers() -> None:
    assert set(ALL) == {*TABLES.values(), "cai_figure2", "sscl_figure4"}
    assert set(names("scale")) == {"paper", "day", "hour", "minute"}


@pytest.mark.parametrize("table", one_fast(list(TABLES), "Table 4"))
def test_every_published_number_of_a_table_has_its_row(table: str) -> None:
    experiment = load_experiment(TABLES[table])
    found: list = []
    for data in datasets(experiment):
        for row in experiment.rows:
            temperature = config_of(experiment, row, data)["method_kwargs"]["temperature"]
            for line in published_cells(row, data, experiment.data, temperature or 0.0):
                found += [cell for cell in line if cell.table == table]
    expected = [cell for cell in published.cells() if cell.table == table]
    assert expected
    assert sorted(map(str, found)) == sorted(map(str, expected))  # each once


@pytest.mark.parametrize("name", one_fast(ALL, "sscl_table4"))
def test_every_row_does_what_the_published_line_did(name: str) -> None:
    experiment = load_experiment(name)
    for data in datasets(experiment):
        for row in experiment.rows:
            args = config_of(experiment, row, data)
            if data == "tinyimagenet":
                args["data"]["train_path"] = "tiny-imagenet-200"
            temperature = args["method_kwargs"]["temperature"]
            same = {(cell.table, cell.label): cell for cell in published.matching(args)}
            lines = published_cells(row, data, experiment.data, temperature or 0.0)
            assert len(lines) == len(row.published)
            for line in lines:
                if row.temperature is None:  # figure 3's third row, whose τ can't be read
                    continue
                cell = same.get((line[0].table, line[0].label))
                assert cell is not None, f"{row.name} isn't {line[0].label} of {line[0].table}"
                assert cell.remark == ""


@pytest.mark.parametrize(
    "name", one_fast([name for name in ALL if name != "sscl_figure4"], "sscl_table4")
)
def test_the_published_numbers_bear_out_the_claims(name: str) -> None:
    experiment = load_experiment(name)
    for data in datasets(experiment):
        numbers = {}
        for row in experiment.rows:
            temperature = config_of(experiment, row, data)["method_kwargs"]["temperature"]
            lines = published_cells(row, data, experiment.data, temperature or 0.0)
            numbers[row.name] = next(cell.value for cell in lines[0] if cell.metric == "top1")
        for claim in experiment.claims:
            difference = numbers[claim.first] - numbers[claim.second]
            if claim.text == "SSCL is better than BYOL." and data == "cifar10":
                assert difference == pytest.approx(0.05)  # hardly
            held = {
                "greater": difference > 0,
                "at_least": difference > -claim.margin,
                "equal": abs(difference) < claim.margin,
            }
            assert held[claim.kind], f"{data}: {claim.text} {difference}"


@pytest.mark.parametrize("name", one_fast(ALL, "sscl_table5"))
@pytest.mark.parametrize("scale", ["paper", "minute"])
def test_every_cell_has_a_policy_that_fits_its_queue(name: str, scale: str) -> None:
    experiment = load_experiment(name)
    for data, images in (("digits", 1437), (datasets(experiment)[0], 50_000)):
        told = told_apart([f"data={data}"])
        size = load_scale(scale)
        for cell in make_cells(experiment, size, experiment.rows, [0], told, Images(images)):
            cfg = composed(cell.config, cell.pretrain)
            assert cfg.data.dataset == data
            policy = cfg.get("negatives")
            if not policy:
                continue
            build(policy)
            offered = cfg.method_kwargs.get("queue_size", 2 * cfg.optimizer.batch_size - 2)
            assert (policy.get("mix") or {}).get("hardest", 0) <= offered


@pytest.mark.parametrize("name", ["cai_figure2", "cai_table1"])
def test_the_papers_own_spread_suffices_to_confirm_its_claims(name: str) -> None:
    experiment = load_experiment(name)
    values = {}
    for row in experiment.rows:
        temperature = config_of(experiment, row, "imagenet")["method_kwargs"]["temperature"]
        line = published_cells(row, "imagenet", experiment.data, temperature or 0.0)[0]
        cell = next(cell for cell in line if cell.metric == "top1")
        assert cell.seeds == 3
        # Three numbers with this mean and standard deviation.
        values[row.name] = [cell.value - cell.std, cell.value, cell.value + cell.std]
    for verdict in judge(experiment.claims, values):
        assert verdict.verdict == CONFIRMED, (verdict.claim.text, verdict.holm_for)


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


def test_an_experiment_of_ones_own(tmp_path: Path) -> None:
    mine = load(tmp_path, GOOD)
    assert (mine.name, mine.seeds, mine.data) == ("mine", 1, "digits")
    assert mine.row("b").baseline == "a"
    assert [row.name for row in mine.chosen(["b"])] == ["b"]
    assert [row.name for row in mine.chosen([])] == ["a", "b"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data: digits", "dat: digits", "unknown key 'dat'. Did you mean 'data'?"),
        ("data: digits", "", "data is missing"),
        ("baseline: a", "baseline: c", "rows.b.baseline: unknown row 'c'"),
        ("greater: [b, a]", "greater: [b, x]", "claims.0.greater: unknown row 'x'"),
        ("greater: [b, a]", "greater: [b]", "must be a list of two rows"),
        ("greater: [b, a]", "text2: 1", "unknown key 'text2'"),
        ("greater: [b, a]", "source: s", "must have exactly one of greater, at_least, equal"),
        ("greater: [b, a]", "equal: [b, a]", "claims.0.margin=0.0: must be"),
        ("greater: [b, a]", "greater: [b, a], margin: 1.0", "claims.0.margin=1.0: must be"),
        ("[negatives=hcl]", "negatives=hcl", "rows.b.overrides=negatives=hcl: must be a list"),
        ("  b:", "  b/c:", "may hold letters, digits"),
        ("  b: {", "  b: {published: [[Table 9, x]], ", "no paper prints such a line"),
        ("  b: {", "  b: {published: 3, ", "rows.b.published=3: must be a list of [TABLE, LABEL]"),
        ("greater: [b, a]", "equal: [b, a], margin: .nan", "claims.0.margin=nan: must be"),
        ("config: simclr_sscl", "config: simclr_sscl\nseeds: true", "seeds=True: must be"),
        ("  b: {", "  b: {{", "no YAML that can be read"),
        ("config: simclr_sscl", "config: simclr_sscl\nseeds: 0", "seeds=0: must be"),
    ],
)
def test_what_is_wrong_in_an_experiment_is_said(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert message in str(error.value)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="unknown experiment 'cai_tabel1'.*'cai_table1'.*sscl_fig"
    ):
        load_experiment("cai_tabel1")
    with pytest.raises(ConfigError, match="unknown scale 'minut'.*'minute'"):
        load_scale("minut")
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment("nothing.yaml")
    with pytest.raises(ConfigError, match="rows: unknown row of sscl_table3 'ssl'.*'sscl'"):
        load_experiment("sscl_table3").chosen(["ssl"])


def test_a_scale_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("epochs: 2")
    tiny = load_scale(str(file))
    assert (tiny.name, tiny.title, tiny.epochs, tiny.images) == ("tiny", "tiny", 2, None)
    file.write_text("epochs: -2")
    with pytest.raises(ConfigError, match="epochs=-2: must be a whole number above 0, or null"):
        load_scale(str(file))
    file.write_text("epoch: 2")
    with pytest.raises(ConfigError, match="unknown key 'epoch'. Did you mean 'epochs'"):
        load_scale(str(file))
