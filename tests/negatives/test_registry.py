"""The registry: names, arguments and third parties' verbs."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml

from solo_hardneg import negatives
from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import Pool, full_pool, registry


def test_available_verbs_have_summary_and_source() -> None:
    known = negatives.available()
    assert {"keep", "drop", "fill"} <= set(known)
    conditions = ("band", "label", "image", "similarity", "margin", "above", "share", "rate")
    assert known["keep"].arguments == conditions
    assert known["fill"].needs == {"queue"}
    assert all(info.summary and info.source for info in known.values())


@pytest.mark.parametrize("name", ["debias", "drop", "fill", "keep", "mix", "retain", "reweight"])
def test_examples_can_be_used(name: str) -> None:
    above = {"drop": {"label": "same"}} if name == "fill" else {}
    value = yaml.safe_load(negatives.available()[name].example)
    assert list(negatives.build({**above, name: value}).config) == [*above, name]


def test_unknown_name_error_lists_known_names() -> None:
    text = r"unknown verb 'kepe'. Did you mean 'keep'\? Known: .*drop, fill, keep"
    with pytest.raises(ConfigError, match=text):
        negatives.build({"kepe": {}})
    with pytest.raises(ConfigError, match=r"negatives.keep: unknown argument 'bandd'.*'band'"):
        negatives.build({"keep": {"bandd": [0.5, 1]}})


@pytest.mark.usefixtures("scratch")
def test_register_a_verb() -> None:
    @negatives.register("drop_random", source="this test")
    class DropRandom:
        """Drops a random share.

        More.
        """

        def __init__(self, share: float):
            self.share = share

        def __call__(self, pool: Pool) -> Pool:
            return pool.without(torch.rand_like(pool.similarity) < self.share)

    assert negatives.available()["drop_random"].summary == "Drops a random share."
    pool = full_pool(torch.zeros(1, 1000))
    everything = negatives.build({"drop_random": {"share": 1.0}})
    assert everything(pool).counts.tolist() == [0]
    everything.check(64)  # a random verb may leave none in a dry run
    some = negatives.build({"drop_random": 0.5})(
        pool
    ).counts.item()  # a single value is the first argument
    assert 400 < some < 600
    with pytest.raises(ConfigError, match="negatives.drop_random: missing a required argument"):
        negatives.build({"drop_random": {}})


@pytest.mark.usefixtures("scratch")
def test_register_refuses_a_name_that_is_taken() -> None:
    with pytest.raises(
        ConfigError, match=r"'keep' is taken twice: by solo_hardneg.*Keep and by .*Other"
    ):

        @negatives.register("keep", summary="another")
        class Other:
            def __call__(self, pool: Pool) -> Pool:
                return pool


@pytest.mark.usefixtures("scratch")
def test_register_refuses_arguments_that_every_verb_has() -> None:
    class Late:
        def __init__(self, from_epoch: int = 0):
            pass

        def __call__(self, pool: Pool) -> Pool:
            return pool

    text = r"'mine'.*from_epoch and until_epoch already. Rename from_epoch of .*Late"
    with pytest.raises(ConfigError, match=text):
        negatives.register("mine")(Late)
    assert "mine" not in negatives.available()


def test_register_refuses_unknown_needs() -> None:
    with pytest.raises(ConfigError, match="known needs are labels, indexes, queue"):
        negatives.register("x", summary="x", needs=["lables"])


@pytest.mark.usefixtures("scratch")
def test_entry_points_register_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "third_party_negatives.py").write_text(
        "from solo_hardneg import negatives\n"
        "@negatives.register('nothing', summary='changes nothing')\n"
        "class Nothing:\n"
        "    def __call__(self, pool):\n"
        "        return pool\n"
    )
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    points = info / "entry_points.txt"
    points.write_text("[solo_hardneg.policies]\nnothing = third_party_negatives\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "nothing" in negatives.available()
    pool = full_pool(torch.zeros(1, 3))
    assert negatives.build({"nothing": {}})(pool) is pool
    with pytest.raises(ConfigError, match="takes no arguments"):
        negatives.build({"nothing": 3})

    registry._load_entry_points.cache_clear()
    points.write_text("[solo_hardneg.policies]\nbroken = no_such_module\n")
    broken = r"of third-party 1.0 .*'broken = no_such_module'. can't be loaded.*Repair or uninstall"
    with pytest.warns(UserWarning, match=broken):
        assert "keep" in negatives.available()
    with warnings.catch_warnings():  # warned once
        warnings.simplefilter("error")
        assert negatives.build({"keep": [0.9, 1.0]})(full_pool(torch.zeros(1, 10))).counts == 1
    with pytest.raises(ConfigError, match=rf"unknown verb 'nothings'.*{broken}"):
        negatives.build({"nothings": {}})
