"""The two hosts are interchangeable: equal losses, equal checkpoints.

As a script (``python test_equal_hosts.py write|read FOLDER``), takes the steps of one host, which
the environment selects.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_helpers import CLASSES, Images, Run, load_checkpoint, only_checkpoint, run_python

pytestmark = [pytest.mark.full, pytest.mark.host, pytest.mark.timeout(900)]

# Losses of solo-learn and of the standalone host, and the folder with their tensors.
Losses = tuple[dict[str, Any], dict[str, Any], Path]

# Our methods, by config and overrides; standalone/ compares the baselines.
MODELS = {
    "simclr_sscl": ["simclr_sscl", "negatives.mix.hardest=4", "negatives.mix.pairs=2"],
    "mocov2_banded_symmetric": [
        *("mocov2_banded", "method_kwargs.queue_size=16", "method_kwargs.symmetric=true"),
        "negatives.keep.band=[0.5,1.0]",
    ],
    "mocov2_banded": [
        *("mocov2_banded", "method_kwargs.queue_size=16", "negatives=drop_same_class"),
    ],
}
SMALL = [
    *("data=cifar10", "optimizer.batch_size=8"),
    *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=16"),
]


def batch(seed: int, size: int = 8, classes: int = 3) -> list[Any]:
    """A batch in the format of both hosts."""
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(size, 3, 32, 32, generator=generator) for _ in range(2)]
    return [torch.arange(size) + size * seed, views, torch.arange(size) % classes]


def build(config_name: str, *overrides: str) -> Any:
    """Builds a method of this process's host from one of our configs."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from solo_hardneg import host, plugin

    plugin.register()
    if host.NAME == "solo":
        from solo.args.pretrain import parse_cfg as parse
    else:
        from solo_hardneg.standalone.config import parse_pretrain as parse
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(config_name, [*SMALL, *overrides])
    OmegaConf.set_struct(cfg, False)
    cfg = parse(cfg)
    return host.METHODS[cfg.method](cfg)


def step(model: Any, seed: int) -> torch.Tensor:
    """The loss of one training step, without a trainer and without the optimizer."""
    model.train()
    torch.manual_seed(seed)  # for mix
    return model.training_step(batch(seed), seed)


def main(task: str, folder: Path) -> None:
    from solo_hardneg import host

    losses: dict[str, Any] = {"host": host.NAME, "solo": "solo" in sys.modules}
    for name, (config_name, *overrides) in MODELS.items():
        torch.manual_seed(1)
        model = build(config_name, *overrides)
        if task == "write":
            step(model, seed=0)  # puts keys into the queue
            torch.save(model.state_dict(), folder / f"{name}.pt")
        else:
            model.load_state_dict(torch.load(folder / f"{name}.pt"), strict=True)
        loss = step(model, seed=1)
        loss.backward()
        losses[name] = loss.item()
        after = {
            "gradient": model.backbone.conv1.weight.grad,
            **{k: v for k, v in model.state_dict().items() if k.startswith("queue")},
        }
        torch.save(after, folder / f"{name}.{host.NAME}.after.pt")
    (folder / f"{host.NAME}.json").write_text(json.dumps(losses))


@pytest.fixture(scope="module")
def losses(solo_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Losses]:
    """Losses of solo-learn, and of the standalone host with solo-learn's weights."""
    folder = tmp_path_factory.mktemp("losses")
    path = f"{solo_learn}:{Path(__file__).parents[1]}"
    for host, task in (("solo", "write"), ("standalone", "read")):
        env = {"SOLO_HARDNEG_HOST": host, "PYTHONPATH": path}
        run_python(__file__, task, folder, cwd=folder, env=env).ok()
    solo, standalone = (
        json.loads((folder / f"{host}.json").read_text()) for host in ("solo", "standalone")
    )
    yield solo, standalone, folder
    for file in folder.glob("*.pt"):
        file.unlink()


def test_each_process_used_its_host(losses: Losses) -> None:
    solo, standalone, _ = losses
    assert (solo["host"], solo["solo"]) == ("solo", True)
    assert (standalone["host"], standalone["solo"]) == ("standalone", False)


@pytest.mark.parametrize("name", MODELS)
def test_equal_weights_and_batches_give_equal_losses(losses: Losses, name: str) -> None:
    solo, standalone, folder = losses
    assert solo[name] == pytest.approx(standalone[name], abs=1e-6)
    one, other = (torch.load(folder / f"{name}.{host}.after.pt") for host in ("solo", "standalone"))
    assert one.keys() == other.keys()
    assert one["gradient"].abs().max() > 1e-4
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=1e-4, msg=key)


def test_losses_of_the_models_differ(losses: Losses) -> None:
    """So the test above doesn't compare constants."""
    values = [losses[0][name] for name in MODELS]
    assert len({round(value, 3) for value in values}) == len(MODELS)


# ---------------------------------------------------------------------- checkpoints


def linear_arguments(images: Images, checkpoint: Path, folder: Path) -> list[str]:
    return [
        *("--config-name", "linear", "data=custom", *images.overrides(val=True)),
        *("data.suggest.crop_size=32", "optimizer.batch_size=8", "max_epochs=1"),
        f"checkpoint.dir={folder / 'linear'}",
        f"pretrained_feature_extractor='{checkpoint}'",
    ]


def check_backbone(pretrained: Path, evaluated: Path) -> None:
    """Checks that the evaluated backbone equals the pretrained one, including batch statistics."""
    before, after = (load_checkpoint(path)["state_dict"] for path in (pretrained, evaluated))
    names = [name for name in before if name.startswith("backbone.")]
    assert len(names) > 100
    for name in names:
        assert torch.equal(before[name], after[name]), name
    assert after["classifier.weight"].shape[0] == CLASSES


def test_solo_learn_evaluates_a_standalone_checkpoint(
    solo_learn: Path, images: Images, small: list[str], tmp_path: Path
) -> None:
    run_python(
        *("-m", "solo_hardneg", "pretrain", "--config-name", "mocov2_banded", *small),
        "method_kwargs.queue_size=32",
        f"checkpoint.dir={tmp_path / 'pretrained'}",
        cwd=tmp_path,
        env={"SOLO_HARDNEG_HOST": "standalone"},
    ).ok()
    checkpoint = only_checkpoint(tmp_path / "pretrained")
    arguments = linear_arguments(images, checkpoint, tmp_path)
    run_python(solo_learn / "main_linear.py", *arguments, cwd=tmp_path).ok()
    evaluated = only_checkpoint(tmp_path / "linear")
    check_backbone(checkpoint, evaluated)
    for file in (checkpoint, evaluated):
        file.unlink()


def test_standalone_evaluates_a_solo_learn_checkpoint(
    pretrained: Run, images: Images, tmp_path: Path
) -> None:
    arguments = linear_arguments(images, pretrained.checkpoint, tmp_path)
    run_python(
        *("-m", "solo_hardneg", "linear", *arguments),
        cwd=tmp_path,
        env={"SOLO_HARDNEG_HOST": "standalone"},
    ).ok()
    evaluated = only_checkpoint(tmp_path / "linear")
    check_backbone(pretrained.checkpoint, evaluated)
    evaluated.unlink()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
