"""The recorder in runs of the standalone host."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from solo_hardneg.data import wordnet
from solo_hardneg.data.datasets import load_split
from solo_hardneg.errors import ConfigError
from solo_hardneg.host import METHODS
from solo_hardneg.losses import info_nce
from solo_hardneg.methods import moco
from solo_hardneg.negatives import Pool
from solo_hardneg.recording import embeddings, recorder, records, statistics
from solo_hardneg.standalone.config import parse_pretrain
from solo_hardneg.standalone.run import linear, pretrain

pytestmark = pytest.mark.usefixtures("tiny", "no_wordnet")

ON = ("hardness.enabled=true", "hardness.every_n_steps=1")
FULL = ("++limit_train_batches=6", "method_kwargs.queue_size=32")  # 16 keys a step
BASELINES = {"mocov2plus": FULL, "simclr": FULL[:1]}
OURS = {
    "mocov2_banded": (*FULL, "negatives=all"),
    "mocov2_sscl": (*FULL, "negatives.mix.hardest=8", "negatives.mix.pairs=4"),
    "simclr_sscl": (*FULL[:1], "negatives.mix.hardest=8", "negatives.mix.pairs=4"),
}
ALL = BASELINES | OURS


@pytest.fixture
def no_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silences the note that digits have no synsets."""
    monkeypatch.setattr(recorder.Recorder, "_note", lambda self, text: self.notes.append(text))


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    """The recorded pools, in order."""
    seen: list[Pool] = []

    def spy(pool: Pool, *rest: Any) -> statistics.Summary:
        # The queue's labels are buffers, to which later steps write.
        buffers = {name: getattr(pool, name) for name in ("labels", "indexes")}
        seen.append(replace(pool, **{n: t if t is None else t.clone() for n, t in buffers.items()}))
        return statistics.summarize(pool, *rest)

    monkeypatch.setattr(recorder, "summarize", spy)
    return seen


def recorded(folder: Path) -> pd.DataFrame:
    return records.read_records(folder / "hardness").table


def logged(folder: Path, name: str) -> dict[int, float]:
    with open(folder / "metrics.csv") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


# ---------------------------------------------------------------------- recorded pools


@pytest.mark.parametrize("method", BASELINES)
def test_a_baselines_pools_have_the_logged_loss(config, method, pools):
    run = pretrain(config(method, *ON, *BASELINES[method], "+log_every_n_steps=1", "max_epochs=1"))
    losses = logged(run.folder, "train_nce_loss_step")
    assert len(losses) == 6
    directions = 2 if method == "mocov2plus" else 1
    # In MoCo's first two steps the queue holds random vectors, which the recorder leaves out.
    first = 2 if method == "mocov2plus" else 0
    whole = pools[-directions * (6 - first) :]
    for step in range(first, 6):
        mine = whole[directions * (step - first) : directions * (step - first + 1)]
        temperature = 0.2 if method == "mocov2plus" else 0.5
        found = [info_nce(p.positive, p, temperature)[0].mean() for p in mine]  # type: ignore[arg-type]
        assert float(sum(found)) / directions == pytest.approx(losses[step], abs=1e-5), step


def test_the_recorder_tracks_the_images_in_a_baselines_queue(config, pools):
    cfg = config("mocov2plus", *ON, *FULL, "max_epochs=1")
    offered = recorded(pretrain(cfg).folder).query("quantity == 'count/offered'")
    assert offered.set_index("step").value.to_dict() == {1: 16, 2: 32, 3: 32, 4: 32, 5: 32}

    targets = torch.tensor(load_split(parse_pretrain(cfg), True).targets)
    last: Any = pools[-1]
    assert torch.equal(last.labels, targets[last.indexes])
    assert len({*last.indexes.tolist()}) == 32
    assert torch.equal(last.age.sort().values, torch.arange(32))


def test_the_recorded_queue_equals_that_of_the_loss(config, pools, monkeypatch):
    """After its loss, the step overwrites the labels and indexes of the oldest keys."""
    given: list[dict[str, Tensor]] = []
    loss = moco.mocov2plus_loss_func

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        given.append({name: kwargs[f"queue_{name}"].clone() for name in ("labels", "indexes")})
        return loss(*args, **kwargs)

    monkeypatch.setattr(moco, "mocov2plus_loss_func", spy)
    both = ("negatives=all", "method_kwargs.symmetric=true")
    pretrain(config("mocov2_banded", *ON, *FULL, *both, "max_epochs=1"))
    given = [queue for queue in given if len(queue["labels"])]  # an empty queue is not recorded
    assert len(given) == len(pools) == 5 * 2
    for queue, pool in zip(given, pools, strict=True):
        assert torch.equal(queue["labels"], pool.labels)  # type: ignore[arg-type]
        assert torch.equal(queue["indexes"], pool.indexes)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", OURS)
def test_our_methods_pools_have_the_logged_loss(config, method, pools):
    run = pretrain(config(method, *ON, *OURS[method], "+log_every_n_steps=1", "max_epochs=1"))
    losses = logged(run.folder, "train_nce_loss_step")
    pool = pools[-1]
    args = json.loads((run.folder / "args.json").read_text())
    temperature = args["method_kwargs"]["temperature"]
    losses_of_pool, _ = info_nce(pool.positive.detach(), pool, temperature)  # type: ignore[union-attr]
    assert float(losses_of_pool.mean()) == pytest.approx(losses[5], abs=1e-5)
    made = pool.made
    assert made == (4 if "sscl" in method else 0)
    scalars = (
        recorded(run.folder).query("kind == 'scalar' and step == 5").set_index("quantity").value
    )
    assert scalars["count/synthetic"] == made
    there = pool.similarity.shape[1] - made - (2 if "simclr" in method else 0)
    assert scalars["count/kept"] == scalars["count/offered"] == there


def test_numbers_in_the_file_equal_plain_loops(config, pools):
    run = pretrain(config("mocov2_banded", *ON, *FULL, "negatives=all", "max_epochs=1"))
    table = recorded(run.folder).query("step == 5")
    pool = pools[-1]
    similarity = pool.similarity.detach()
    order = [sorted(range(32), key=lambda j: (float(row[j]), j)) for row in similarity]
    # With 32 negatives, rank r is in the percentile whose band holds it.
    for bin_, rank in ((3, 0), (6, 1), (100 - 1, 31), (50 - 1, 15)):
        expected = [float(similarity[i, order[i][rank]]) for i in range(16)]
        row = table.query(f"kind == 'percentile' and quantity == 'similarity' and bin == {bin_}")
        assert row.value.item() == pytest.approx(np.mean(expected), abs=1e-6)
        assert row.weight.item() == 16
    hard = table.query("quantity == 'mass/hardest_10'").value.item()
    weights = torch.exp(similarity.double() / 0.2)
    # ⌊0.9·32⌋ = 28
    shares = [float(weights[i, order[i][28:]].sum() / weights[i].sum()) for i in range(16)]
    assert hard == pytest.approx(np.mean(shares), abs=1e-5)
    # An image is a negative of all 16 queries of each step for which it is in the queue.
    images = recorded(run.folder).query("kind == 'image'")
    met = images.query("quantity == 'met'").set_index("bin").value
    hard = images.query("quantity == 'hard'").set_index("bin").value
    assert met.sum() == 16 * (16 + 4 * 32)
    assert {*met} == {16, 32}  # for the last-but-one step's keys one step, else two
    assert hard.sum() == 16 * (1 + 4 * 2)  # ⌈5 %⌉ of 16 and of 32


@pytest.mark.parametrize("method", ["mocov2plus", "simclr_sscl"])
def test_embeddings_of_an_epoch(config, method, pools):
    run = pretrain(config(method, *ON, *ALL[method], "max_epochs=1"))
    scalars = recorded(run.folder).query("kind == 'scalar'")
    queries = torch.cat([p.query for p in pools])  # type: ignore[misc]
    expected = embeddings.rankme(embeddings.gram(queries))
    (row,) = scalars.query("quantity == 'rankme'").itertuples()
    assert (row.epoch, row.value) == (0, pytest.approx(expected, rel=1e-4))
    assert logged(run.folder, "hardness/rankme") == {row.step: pytest.approx(row.value)}
    last = scalars[scalars.step == 5].set_index("quantity").value
    assert last["alignment"] == pytest.approx(2 - 2 * last["similarity/positive"], abs=1e-5)
    several = pools[-2:] if method == "mocov2plus" else pools[-1:]
    values = [embeddings.uniformity(p.query, p.query_indexes) for p in several]  # type: ignore[arg-type]
    assert last["uniformity"] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_queries_are_sampled(config, pools):
    few = "hardness.queries=5"
    pretrain(config("simclr", *ON, few, "++limit_train_batches=2", "max_epochs=1"))
    assert [len(pool.similarity) for pool in pools] == [5, 5]
    one, other = (pool.query_indexes for pool in pools)
    assert not torch.equal(one, other)  # type: ignore[arg-type]


def test_every_nth_optimizer_step_is_recorded_once(config):
    steps = ("hardness.every_n_steps=2", "++accumulate_grad_batches=2", "++limit_train_batches=12")
    run = pretrain(config("simclr", *ON[:1], *steps, "max_epochs=1"))
    table = recorded(run.folder).query("quantity == 'count/offered'")
    assert table.step.tolist() == [0, 2, 4]
    assert table.weight.tolist() == [32, 32, 32]


# ---------------------------------------------------------------------- no side effects


def weights(run: Any) -> dict[str, Tensor]:
    return torch.load(run.checkpoint, weights_only=True)["state_dict"]


@pytest.mark.parametrize("method", [*BASELINES, "mocov2_banded", "simclr_sscl"])
def test_recording_does_not_change_the_run(config, method, monkeypatch):
    modules: list[Any] = []

    def remember(self: Any, trainer: Any, pl_module: Any, stage: str) -> None:
        modules.append(pl_module)

    monkeypatch.setattr(recorder.Recorder, "teardown", remember)
    with_, without = (
        pretrain(config(method, *ON, *ALL[method], f"hardness.enabled={on}"))
        for on in ("true", "false")
    )
    assert (with_.folder / "hardness").is_dir()
    assert not (without.folder / "hardness").exists()
    one, other = weights(with_), weights(without)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for module in modules:  # no observer or hook stays
        assert not getattr(module, "observers", [])
        assert not any(part._forward_hooks for part in module.modules())


def test_a_failing_step_leaves_no_hooks(config, monkeypatch):
    kept: list[Any] = []
    step = METHODS["simclr"].training_step

    def fail(self: Any, batch: Any, batch_idx: int) -> Any:
        kept.append(self)
        step(self, batch, batch_idx)
        raise RuntimeError("on purpose")

    monkeypatch.setattr(METHODS["simclr"], "training_step", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        pretrain(config("simclr", *ON))
    assert not any(part._forward_hooks for part in kept[0].modules())


def test_disabled_recording_does_nothing(config, monkeypatch):
    for name in ("make_probe", "summarize"):
        monkeypatch.setattr(recorder, name, None)
    # Third-party methods may have keys similar to ours.
    off = config("mocov2plus", "+num_negatives=5", "+hardnesses=3", "max_epochs=1")
    without = config("simclr", "~hardness", "max_epochs=1")
    for cfg in (off, without):
        assert not (pretrain(cfg).folder / "hardness").exists()


# ---------------------------------------------------------------------- records


def test_scalars_are_logged_with_one_prefix(config):
    run = pretrain(config("mocov2_banded", *ON, *FULL, "hardness.every_n_steps=3"))
    table = recorded(run.folder).query("kind == 'scalar'")
    for quantity in ("mass/hardest_5", "similarity/positive", "same_class/easiest_95"):
        rows = table[table.quantity == quantity].set_index("step").value
        assert logged(run.folder, f"hardness/{quantity}") == pytest.approx(rows.to_dict())
        assert {*rows.index} == {3, 6, 9}  # the first step has no negatives


def test_an_epochs_metrics_are_in_its_file(config):
    more = ("knn_eval.enabled=true", "+log_every_n_steps=1", "+check_val_every_n_epoch=2")
    run = pretrain(config("simclr", *ON, *more, "max_epochs=4"))
    metrics = recorded(run.folder).query("kind == 'metric'")
    last = metrics.query("epoch == 3").set_index("quantity").value
    for name, epochs in {
        "val_acc1": {1, 3},  # an earlier validation is not repeated
        "val_knn_acc1": {1, 3},
        "train_nce_loss_epoch": {0, 1, 2, 3},
    }.items():
        assert {*metrics[metrics.quantity == name].epoch} == epochs
        assert last[name] == pytest.approx(run.metrics[name])


def test_linear_evaluation_records_its_metrics(config, monkeypatch):
    run = pretrain(config("simclr", "max_epochs=1"))
    monkeypatch.setattr("solo_hardneg.plugin._registered", False)  # as in a process of its own
    path = f"pretrained_feature_extractor={run.folder}"
    result = linear(config("linear", path, *ON, "max_epochs=1"))
    table = recorded(result.folder)
    assert {*table.kind} == {"metric"}
    metrics = table.set_index("quantity").value
    assert metrics["val_acc1"] == pytest.approx(result.metrics["val_acc1"])


def test_files_note_what_is_missing(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "has_dummy_indexes", lambda cfg: True)  # as DALI's are
        run = pretrain(config("simclr", *ON, "max_epochs=1"))
    found = records.read_records(run.folder / "hardness")
    depth, images = found.notes
    assert depth.startswith("the depth in WordNet is missing. ")
    assert "DALI's indexes are dummies unless ++dali.encode" in images
    assert {*found.table.kind} == {"scalar", "percentile", "histogram", "metric"}


def test_counts_of_images_can_be_disabled(config):
    run = pretrain(config("simclr", *ON, "hardness.images=false", "max_epochs=1"))
    assert {*recorded(run.folder).kind} == {"scalar", "percentile", "histogram", "metric"}


def test_depths_are_those_of_the_classes(config, tmp_path, monkeypatch):
    """With a user's file for digits, and a fake WordNet."""
    table = tmp_path / "synsets.csv"

    wnids = [f"n{n:08}" for n in range(10)]

    def synsets(names: Any, dataset: str, file: str, key: str) -> list[str]:
        assert (file, key) == (str(table), "hardness.synsets")
        assert [*names] == [str(n) for n in range(10)]
        return wnids

    def depths(found: list[str], key: str) -> Any:
        assert found == wnids
        return np.full((10, 10), 15) + np.eye(10, dtype=int)

    table.write_text("")
    monkeypatch.setattr(wordnet, "synsets_of", synsets)
    monkeypatch.setattr(wordnet, "lca_depths", depths)
    run = pretrain(config("simclr", *ON, f"hardness.synsets={table}", "max_epochs=1"))
    depth = recorded(run.folder).query("kind == 'percentile' and quantity == 'depth'").value
    assert depth.notna().any()
    assert depth.dropna().between(15, 16).all()


def test_runs_without_checkpoints_have_separate_folders(config, tmp_path):
    place = tmp_path / "records"
    for _ in range(2):
        cfg = config("simclr", *ON, "checkpoint.enabled=false", "max_epochs=1")
        cfg.hardness.dir = "records"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            pretrain(cfg)
    assert len([*place.iterdir()]) == 2
    assert all(folder.name.startswith("simclr-digits-") for folder in place.iterdir())


def test_another_runs_folder_is_refused(config, tmp_path):
    def record(*more, **negatives):
        place = f"hardness.dir={tmp_path / 'shared'}"
        cfg = config("simclr_banded", *ON, place, "max_epochs=1", *more)
        cfg.negatives = negatives
        pretrain(cfg)

    record(drop={"band": [0.5, 1]}, reweight=1)
    # The same run, continued, with another spelling of its policy.
    record("max_epochs=2", drop={"band": [0.5, 1.0], "from_epoch": 0}, reweight={"beta": 1.0})
    refused = r"hardness\.dir=.* holds the records of another run"
    with pytest.raises(ConfigError, match=refused):
        record(reweight=1, drop={"band": [0.5, 1]})  # another order
    with pytest.raises(ConfigError, match=refused):
        record("seed=6", drop={"band": [0.5, 1]}, reweight=1)


def test_a_resumed_run_keeps_earlier_epochs_and_replaces_later_ones(config, tmp_path):
    place = f"hardness.dir={tmp_path / 'shared'}"
    first = pretrain(config("simclr", *ON, place))
    assert {*records.read_records(tmp_path / "shared").table.epoch} == {0, 1}
    other_machine = ("data.num_workers=1", "knn_eval.enabled=true", "max_epochs=3")
    resume = f"+resume_from_checkpoint={first.folder}"
    pretrain(config("simclr", *ON, place, resume, *other_machine))
    assert {*records.read_records(tmp_path / "shared").table.epoch} == {0, 1, 2}
    pretrain(config("simclr", *ON, place, "max_epochs=1"))  # from the start
    assert {*records.read_records(tmp_path / "shared").table.epoch} == {0}


def test_a_resumed_baseline_restores_the_images_in_its_queue(config, pools):
    steps = (*FULL, "++limit_train_batches=3", "max_epochs=2")
    first = pretrain(config("mocov2plus", *ON, *steps, "max_epochs=1"))
    resume = f"resume_from_checkpoint={first.folder}"
    pools.clear()
    pretrain(config("mocov2plus", *ON, *steps, f"+{resume}"))
    assert pools[0].labels is not None
    assert len(pools[0].labels) == 32
    assert (pools[0].labels >= 0).all()

    # Resumed from an unrecorded run, the queue has keys of unknown images.
    off = pretrain(config("mocov2plus", *steps, "max_epochs=1"))
    pools.clear()
    pretrain(config("mocov2plus", *ON, *steps, f"+resume_from_checkpoint={off.folder}"))
    assert (pools[0].labels == -1).all()
    assert (pools[2].labels >= 0).sum() == 16  # type: ignore[operator]


def test_unknown_means_are_not_logged():
    nothing = torch.zeros(1, dtype=torch.float64)
    key = ("scalar", "depth/hardest_5")
    summary = statistics.Summary({key: torch.stack([nothing, nothing])})
    assert recorder._means_of_all_ranks(summary) == {}
    mean, number = summary.means()[key]
    assert math.isnan(mean)
    assert number == 0
