"""Every config composes, every preset is a policy, and both say what the papers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from presets import PRESETS

from solo_hardneg import negatives
from solo_hardneg.runner import config_names

CONFIGS = Path(__file__).parent.parent / "configs"
DATASETS = sorted(file.stem for file in (CONFIGS / "data").glob("*.yaml"))
OLDER = {"kind": "older", "reserve": 0.125}
MORE_OLDER = {"kind": "older", "reserve": 0.25}
DEBIAS = {"tau_plus": 0.1}


def mix(hardest: float, pairs: float, queries: float = 0.0) -> dict[str, Any]:
    return {"hardest": hardest, "pairs": pairs, "queries": queries, "detach": True}


MOVED = {"count": 64.0, "step": 0.01}
SYNCO = {**mix(1024, 256, 256), "beyond": 256.0, "noise": {}, "toward": MOVED, "adversarial": MOVED}
PAPERS: dict[str, Any] = {
    "all": {},
    "hardest_5": {"keep": {"band": [0.95, 1.0]}},
    "hardest_10": {"keep": {"band": [0.9, 1.0]}},
    "easiest_95": {"keep": {"band": [0.0, 0.95]}},
    "easiest_90": {"keep": {"band": [0.0, 0.9]}},
    "drop_hardest_0.1": {"drop": {"band": [0.999, 1.0]}, "fill": OLDER},
    "drop_hardest_0.1_same_class": {
        "drop": {"band": [0.999, 1.0], "label": "same"},
        "fill": OLDER,
    },
    "drop_hardest_0.1_different_class": {
        "drop": {"band": [0.999, 1.0], "label": "different"},
        "fill": OLDER,
    },
    "drop_same_class": {"drop": {"label": "same"}, "fill": MORE_OLDER},
    "drop_easiest_99.9_same_class": {
        "drop": {"band": [0.0, 0.999], "label": "same"},
        "fill": MORE_OLDER,
    },
    "mochi": {"mix": mix(1024, 1024, 128)},
    "synco": {"mix": {**SYNCO, "noise": {"count": 64.0, "sigma": 0.01}, "from_epoch": 10.0}},
    "synco_v2": {
        "mix": {
            **{**SYNCO, "noise": {"count": 64.0, "sigma": 0.1}},
            **{"from_epoch": 30.0, "until_epoch": 100.0},
        }
    },
    "debiased": {"debias": DEBIAS},
    "dcl": {"debias": DEBIAS},
    "glofnd": {"drop": {"above": "learned", "share": 0.01, "from_epoch": 70.0}},
    "oracle": {"drop": {"label": "same"}},
    "hcl": {"reweight": {"beta": 1.0}, "debias": DEBIAS},
    "mix": {"mix": mix(32, 8)},
    "mix_debias": {"mix": mix(32, 8), "debias": DEBIAS},
    "sscl": {"mix": mix(32, 8), "reweight": {"beta": 1.0}, "debias": DEBIAS},
    "sscl_moco": {"mix": mix(1024, 1024), "reweight": {"beta": 0.2}},
    "mix_moco": {"mix": mix(1024, 1024)},
    "reweight_moco": {"reweight": {"beta": 0.2}},
    "hardest_5_after_first_epoch": {"keep": {"band": [0.95, 1.0], "from_epoch": 1.0}},
    "drop_own_image": {"drop": {"image": "same"}, "fill": OLDER},
    "retain_hard": {"retain": {"strength": 1.0, "band": [0.95, 1.0], "decay": 0.9}},
}


def make(name: str, *overrides: str) -> DictConfig:
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        return compose(name, list(overrides))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, ()) for name in config_names()),
        *(("mocov2_banded", (f"data={data}",)) for data in DATASETS),
    ],
)
def test_every_config_and_every_dataset_composes(name: str, overrides: tuple[str, ...]) -> None:
    cfg = make(name, *overrides)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    assert plain["backbone"]["name"] in ("resnet18", "resnet50")
    if "augmentations" in plain:
        assert plain["augmentations"][0]["crop_size"] == cfg.data.suggest.crop_size
        assert sum(a["num_crops"] for a in plain["augmentations"]) == 2
    if cfg.get("method", "").startswith("moco"):
        assert plain["method_kwargs"]["queue_size"] % plain["optimizer"]["batch_size"] == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_policy_that_fits_a_queue(preset: str) -> None:
    policy = negatives.build(make("mocov2_banded", f"negatives={preset}").negatives)
    policy.check(65536)
    if preset in PAPERS:
        assert policy.config == PAPERS[preset]
    else:
        assert preset in ("band", "curriculum")  # which have tests of their own
    file = CONFIGS / "negatives" / f"{preset}.yaml"
    negatives.build(OmegaConf.load(file))  # on its own, in somebody else's program
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")  # what `solo-hardneg policies` shows
    assert first.endswith((".", "]"))


def test_imagenet_has_the_papers_settings() -> None:
    """Cai et al. 2020, section 2, and MoCo v2's own settings, which they use; appendix A.2."""
    cfg = make("mocov2_banded", "data=imagenet")
    assert (cfg.backbone.name, cfg.max_epochs, cfg.optimizer.batch_size) == ("resnet50", 200, 256)
    assert (cfg.method_kwargs.queue_size, cfg.method_kwargs.temperature) == (65536, 0.2)
    assert (cfg.momentum.base_tau, cfg.momentum.final_tau, cfg.optimizer.lr) == (0.999, 0.999, 0.03)
    assert cfg.method_kwargs.symmetric is False
    cfg = make("simclr_banded", "data=imagenet")
    assert (cfg.backbone.name, cfg.max_epochs, cfg.optimizer.batch_size) == ("resnet50", 200, 4096)


@pytest.mark.parametrize(
    ("data", "tau_plus"), [("cifar10", 0.1), ("cifar100", 0.05), ("tinyimagenet", 0.05)]
)
def test_sscl_has_the_papers_settings(data: str, tau_plus: float) -> None:
    """Dong et al. 2023, Table 2 and section 4.1.2."""
    cfg = make("simclr_sscl", f"data={data}")
    assert (cfg.backbone.name, cfg.max_epochs, cfg.optimizer.batch_size) == ("resnet18", 200, 256)
    assert (cfg.optimizer.name, cfg.optimizer.lr) == ("sgd", 0.1)
    assert (cfg.scheduler.name, cfg.scheduler.warmup_epochs) == ("warmup_cosine", 20)
    assert (cfg.method_kwargs.temperature, cfg.method_kwargs.proj_output_dim) == (0.5, 128)
    policy = negatives.build(cfg.negatives).config
    assert policy["debias"]["tau_plus"] == tau_plus
    assert policy["reweight"]["beta"] == 1.0
    moco = make("mocov2_sscl", f"data={data}")
    assert (moco.method_kwargs.queue_size, moco.method_kwargs.temperature) == (16384, 0.5)
    assert (moco.momentum.base_tau, moco.momentum.final_tau) == (0.99, 0.99)
    assert moco.optimizer == cfg.optimizer
    linear = make("linear", f"data={data}")
    assert (linear.optimizer.lr, linear.optimizer.weight_decay, linear.max_epochs) == (10, 0, 100)


@pytest.mark.parametrize(
    ("ours", "baseline", "settings"),
    [
        ("mocov2_banded", "mocov2plus", None),
        ("mocov2_sscl", "mocov2plus", "sscl_moco"),
        ("simclr_sscl", "simclr", None),
        ("simclr_banded", "simclr", "cai_simclr"),
    ],
)
def test_baselines_have_the_same_settings(ours: str, baseline: str, settings: str | None) -> None:
    chosen = [] if settings is None else [f"settings={settings}"]
    one, other = (
        OmegaConf.to_container(cfg, resolve=True) for cfg in (make(ours), make(baseline, *chosen))
    )
    differing = {key for key in one if one[key] != other.get(key)}
    one["method_kwargs"].pop("symmetric", None)
    assert one["method_kwargs"] == other["method_kwargs"]
    assert differing <= {
        *("name", "method", "negatives", "backend", "method_kwargs", "performance")
    }
    assert set(other) <= set(one)


def test_the_curriculum_ends_with_the_training() -> None:
    policy = negatives.build(
        make("mocov2_banded", "negatives=curriculum", "max_epochs=50").negatives
    )
    bands = [policy.at(epoch).verbs["keep"].band for epoch in (0, 25, 50)]
    assert bands == [(0.0, 1.0), (0.475, 1.0), (0.95, 1.0)]
    sooner = "negatives.keep.band=[{from: 0.0, to: 0.95, epochs: [0, 50]}, 1.0]"  # as it says there
    assert sooner in (CONFIGS / "negatives" / "curriculum.yaml").read_text()
    policy = negatives.build(make("mocov2_banded", "negatives=curriculum", sooner).negatives)
    assert policy.at(50).verbs["keep"].band == (0.95, 1.0)


def test_a_preset_is_changed_and_added_on_the_command_line() -> None:
    cfg = make("mocov2_banded", "negatives=band", "negatives.keep.band=[0.85,0.9]")
    assert negatives.build(cfg.negatives).config == {"keep": {"band": [0.85, 0.9]}}
    cfg = make("mocov2plus", "method=mocov2_banded", "+negatives=easiest_95")
    assert negatives.build(cfg.negatives).config == {"keep": {"band": [0.0, 0.95]}}


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.download=true", "++data.no_labels=true", "+resume_from_checkpoint=RUN"],
        ["data=custom", "data.no_labels=true"],
        ["auto_resume.enabled=False", "name=another", "++dali.encode_indexes_into_labels=True"],
        ["momentum.base_tau=0.9", "method_kwargs.symmetric=true", "+negatives.drop.image=same"],
        ["negatives=drop_same_class", "negatives.fill.reserve=0.5"],
    ],
)
def test_what_messages_and_readme_advise_can_be_typed(overrides: list[str]) -> None:
    make("mocov2_banded", *overrides)
