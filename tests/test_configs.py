"""Every config composes, every preset is a policy, and both say what the papers say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from solo_hardneg import negatives

OLDER = {"kind": "older", "reserve": 0.125}
CONFIGS = Path(__file__).parent.parent / "configs"


def names(group: str = "") -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def make(name: str, *overrides: str) -> DictConfig:
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        return compose(name, list(overrides))


@pytest.mark.parametrize("data", names("data"))
@pytest.mark.parametrize("name", names())
def test_every_config_composes_with_every_dataset(name: str, data: str) -> None:
    cfg = make(name, f"data={data}")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert plain["backbone"]["name"] in ("resnet18", "resnet50")
    if "augmentations" in plain:
        assert plain["augmentations"][0]["crop_size"] == cfg.data.suggest.crop_size
        assert sum(a["num_crops"] for a in plain["augmentations"]) == 2
    if cfg.get("method", "").startswith("moco"):
        assert plain["method_kwargs"]["queue_size"] % plain["optimizer"]["batch_size"] == 0


@pytest.mark.parametrize("preset", names("negatives"))
def test_every_preset_is_a_policy_that_fits_a_queue(preset: str) -> None:
    cfg = make("mocov2_banded", f"negatives={preset}", "data=imagenet")
    policy = negatives.build(cfg.negatives)
    policy.check(65536)
    assert (policy.config == {}) == (preset == "all")
    first = (CONFIGS / "negatives" / f"{preset}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")  # what `solo-hardneg policies` shows
    assert first.endswith((".", "]"))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("hardest_5", {"keep": {"band": [0.95, 1.0]}}),
        ("hardest_10", {"keep": {"band": [0.9, 1.0]}}),
        ("easiest_95", {"keep": {"band": [0.0, 0.95]}}),
        ("easiest_90", {"keep": {"band": [0.0, 0.9]}}),
        ("drop_hardest_0.1", {"drop": {"band": [0.999, 1.0]}, "fill": OLDER}),
        (
            "drop_hardest_0.1_same_class",
            {"drop": {"band": [0.999, 1.0], "label": "same"}, "fill": OLDER},
        ),
        (
            "drop_hardest_0.1_different_class",
            {"drop": {"band": [0.999, 1.0], "label": "different"}, "fill": OLDER},
        ),
    ],
)
def test_presets_are_the_papers(preset: str, expected: dict) -> None:
    cfg = make("mocov2_banded", f"negatives={preset}")
    assert negatives.build(cfg.negatives).config == expected


def test_same_class_presets_drop_by_class() -> None:
    for preset, band in (("drop_same_class", None), ("drop_easiest_99.9_same_class", [0.0, 0.999])):
        policy = negatives.build(make("mocov2_banded", f"negatives={preset}").negatives)
        assert policy.config["drop"].get("band") == band
        assert policy.config["drop"]["label"] == "same"
        assert policy.reserve == 0.25


def test_imagenet_has_the_papers_settings() -> None:
    """Cai et al. 2020, section 2, and MoCo v2's own settings, which they use."""
    cfg = make("mocov2_banded", "data=imagenet")
    assert (cfg.backbone.name, cfg.max_epochs, cfg.optimizer.batch_size) == ("resnet50", 200, 256)
    assert (cfg.method_kwargs.queue_size, cfg.method_kwargs.temperature) == (65536, 0.2)
    assert (cfg.momentum.base_tau, cfg.momentum.final_tau, cfg.optimizer.lr) == (0.999, 0.999, 0.03)
    assert cfg.method_kwargs.symmetric is False


def test_a_preset_is_changed_and_added_on_the_command_line() -> None:
    cfg = make("mocov2_banded", "negatives=band", "negatives.keep.band=[0.85,0.9]")
    assert negatives.build(cfg.negatives).config == {"keep": {"band": [0.85, 0.9]}}
    cfg = make("mocov2plus", "method=mocov2_banded", "+negatives=easiest_95")
    assert negatives.build(cfg.negatives).config == {"keep": {"band": [0.0, 0.95]}}


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.download=true"],
        ["++data.no_labels=true"],
        ["data=custom", "data.no_labels=true"],
        ["+resume_from_checkpoint=RUN"],
        ["auto_resume.enabled=False", "name=another"],
        ["++dali.encode_indexes_into_labels=True"],
        ["momentum.base_tau=0.9", "method_kwargs.symmetric=true"],
        ["negatives=drop_same_class", "negatives.fill.reserve=0.5"],
        ["negatives=drop_hardest_0.1", "negatives.fill.reserve=0.5"],
        ["+negatives.drop.image=same"],
    ],
)
def test_what_messages_and_readme_advise_can_be_typed(overrides: list[str]) -> None:
    make("mocov2_banded", *overrides)
