"""The encoder of a checkpoint equals the method's, and other layers are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_helpers import run_python, solo_learn_checkout
from torch import Tensor, nn

from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.study import encoder
from solo_hardneg.study.encoder import Encoder, rebuild

WIDTH = 6
FILE = Path("run/x.ckpt")


def linear(*sizes: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(*sizes, bias=bias)


LAYOUTS: dict[str, Callable[[], nn.Sequential]] = {
    "moco, simclr": lambda: nn.Sequential(linear(WIDTH, 5), nn.ReLU(), linear(5, 3)),
    "byol, nnclr": lambda: nn.Sequential(
        linear(WIDTH, 5), nn.BatchNorm1d(5), nn.ReLU(), linear(5, 3)
    ),
    "mocov3": lambda: nn.Sequential(
        *(linear(WIDTH, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU()),
        *(linear(5, 3, bias=False), nn.BatchNorm1d(3, affine=False)),
    ),
    "one layer": lambda: nn.Sequential(linear(WIDTH, 3)),
    "activation first": lambda: nn.Sequential(nn.ReLU(), linear(WIDTH, 3)),
    "no activation": lambda: nn.Sequential(linear(WIDTH, 5), nn.BatchNorm1d(5), linear(5, 3)),
}


def state_of(projector: nn.Module, prefix: str = "projector.") -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in projector.state_dict().items()}


def trained(projector: nn.Sequential) -> nn.Sequential:
    """The projector after a few batches, which change the statistics of its batch norms."""
    torch.manual_seed(1)
    for _ in range(3):
        projector(torch.randn(8, WIDTH) * 3 + 1)
    for parameter in projector.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return projector.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rebuilt_projector_equals_the_original(layout: str) -> None:
    original = trained(LAYOUTS[layout]())
    rebuilt, outputs = rebuild("projector", state_of(original), WIDTH, FILE)
    assert rebuilt is not None
    assert outputs == 3
    features = torch.randn(16, WIDTH)
    torch.testing.assert_close(rebuilt.eval()(features), original(features), rtol=0, atol=0)


def test_other_parts_of_the_state_are_ignored() -> None:
    state = state_of(linear(WIDTH, 3), "momentum_projector.0.") | state_of(linear(3, 3), "head.")
    assert rebuild("projector", state, WIDTH, FILE) == (None, WIDTH)


def test_vibcreg_has_another_activation() -> None:
    original = nn.Sequential(linear(WIDTH, 5), nn.GELU(), linear(5, 3))
    features = torch.randn(16, WIDTH)
    rebuilt, _ = rebuild("projector", state_of(original), WIDTH, FILE, "vibcreg")
    assert rebuilt is not None
    torch.testing.assert_close(rebuilt(features), original(features))
    other, _ = rebuild("projector", state_of(original), WIDTH, FILE, "simclr")
    assert other is not None
    assert not torch.allclose(other(features), original(features))


@pytest.mark.parametrize(
    ("projector", "message"),
    [
        (
            nn.Sequential(linear(WIDTH, 5), nn.LayerNorm(5)),
            "layer 1 (weight (5,), bias (5,)): it is neither a linear layer nor a batch norm. Take",
        ),
        (
            nn.Sequential(nn.Conv1d(WIDTH, 3, 1)),
            "layer 0 (weight (3, 6, 1), bias (3,)): it is neither a linear layer nor a batch norm",
        ),
        (
            nn.Sequential(linear(WIDTH + 1, 3)),
            "it has 7 input features, but the layer before it has 6 outputs. Take",
        ),
        (
            nn.Sequential(linear(WIDTH, 5), nn.BatchNorm1d(4)),
            "it has 4 input features, but the layer before it has 5 outputs. Take",
        ),
        (
            nn.Sequential(linear(WIDTH, 5), nn.ReLU(), nn.Dropout(), linear(5, 3)),
            "layer 2 (no weights): its layers 1 and 2 are unknown. Take",
        ),
        (
            nn.ModuleDict({"layers": linear(WIDTH, 3)}),
            "layer layers (weight (3, 6), bias (3,)): it isn't a sequence of layers. Take",
        ),
    ],
)
def test_other_layers_are_refused(projector: nn.Module, message: str) -> None:
    for part in ("projector", "predictor"):
        with pytest.raises(CheckpointError) as error:
            rebuild(part, state_of(projector, f"{part}."), WIDTH, FILE)
        text = str(error.value)
        assert message in text
        assert text.startswith(f"checkpoint=run/x.ckpt: its {part} can't be rebuilt: layer ")
        assert f"a method whose {part} is a sequence of" in text


def test_vectors_have_length_one_and_weights_stay() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, WIDTH), nn.BatchNorm1d(WIDTH))
    model = Encoder(backbone, nn.Sequential(linear(WIDTH, 3)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(10, 3, 2, 2)
    features, vectors = encoder.embed(model, iter(images.split(4)), torch.device("cpu"), "queries")
    assert features.shape == (10, WIDTH)
    assert vectors.shape == (10, 3)
    torch.testing.assert_close(torch.from_numpy(vectors).norm(dim=1), torch.ones(10))
    torch.testing.assert_close(model(images, "queries"), torch.from_numpy(vectors))
    plain = Encoder(backbone)(images, "negatives")
    expected = torch.from_numpy(features) / torch.from_numpy(features).norm(dim=1, keepdim=True)
    torch.testing.assert_close(plain, expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


# ---------------------------------------------------------------------- whole checkpoints


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Builds a tiny backbone, and records the arguments of each call."""
    calls: list[tuple[Any, ...]] = []

    def build(*arguments: Any) -> tuple[nn.Module, int]:
        calls.append(arguments)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, WIDTH)), WIDTH

    monkeypatch.setattr(encoder, "build_backbone", build)
    return calls


def write_checkpoint(
    folder: Path,
    config: Any = None,
    projector: bool = True,
    epoch: int = 7,
    predictor: nn.Module | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, WIDTH))
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    if projector:
        state |= state_of(LAYOUTS["moco, simclr"]())
    if predictor is not None:
        state |= state_of(predictor, "predictor.")
    torch.save({"state_dict": state, "epoch": epoch}, folder / f"x-ep={epoch}.ckpt")
    if config is not None:
        (folder / "args.json").write_text(json.dumps(config))
    return folder / f"x-ep={epoch}.ckpt"


CONFIG = {
    "method": "mocov2plus",
    "backbone": {"name": "resnet18", "kwargs": {"width": 1}},
    "data": {"dataset": "cifar10"},
}


def test_a_checkpoint_is_built_as_in_its_run(tmp_path: Path, built: list[Any]) -> None:
    path = write_checkpoint(tmp_path, CONFIG)
    loaded = encoder.load_encoder(path, data={"dataset": "imagenet"})  # studied with other images
    assert built == [("resnet18", "mocov2plus", {"width": 1}, "cifar10")]
    assert (loaded.file, loaded.config, loaded.epoch, loaded.notes) == (path, CONFIG, 8, [])
    state = torch.load(path)["state_dict"]
    for key, value in loaded.encoder.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_folder_means_its_newest_checkpoint(tmp_path: Path, built: list[Any]) -> None:
    write_checkpoint(tmp_path, CONFIG, epoch=1)
    assert encoder.load_encoder(write_checkpoint(tmp_path, epoch=2).parent).epoch == 3


def test_overrides_win_over_the_run(tmp_path: Path, built: list[Any]) -> None:
    write_checkpoint(tmp_path, CONFIG)
    encoder.load_encoder(
        tmp_path, {"backbone": {"name": "resnet50", "kwargs": {}}, "method": "byol"}
    )
    assert built[0][:2] == ("resnet50", "byol")


def test_without_args_json_the_missing_keys_are_named(tmp_path: Path, built: list[Any]) -> None:
    path = write_checkpoint(tmp_path)
    with pytest.raises(ConfigError) as error:
        encoder.load_encoder(path)
    text = str(error.value)
    assert text.startswith(f"backbone.name, data.dataset: unknown for {path}; its args.json is m")
    assert "Add backbone.name=resnet18 data=cifar10" in text
    encoder.load_encoder(path, {"backbone": {"name": "resnet18"}}, {"dataset": "cifar100"})
    assert built == [("resnet18", None, {}, "cifar100")]


def test_a_config_without_a_backbone(tmp_path: Path, built: list[Any]) -> None:
    path = write_checkpoint(tmp_path, {"data": {"dataset": "cifar10"}})
    text = "backbone.name: unknown for .*; its args.json has no such key. Add"
    with pytest.raises(ConfigError, match=text):
        encoder.load_encoder(path)


def test_a_config_without_keys_is_refused(tmp_path: Path, built: list[Any]) -> None:
    path = write_checkpoint(tmp_path, [1])
    with pytest.raises(
        CheckpointError, match=r"args.json: can't be read .*Repair it, or remove it"
    ):
        encoder.load_encoder(path)


def test_without_a_projector_features_are_compared(tmp_path: Path, built: list[Any]) -> None:
    loaded = encoder.load_encoder(write_checkpoint(tmp_path, CONFIG, projector=False))
    assert loaded.encoder.projector is None
    (note,) = loaded.notes
    assert note.startswith("x-ep=7.ckpt: this checkpoint has no projector, so features of the")


@pytest.mark.parametrize(("method", "predicted"), [("mocov3", "queries"), ("nnclr", "negatives")])
def test_one_side_passes_the_predictor_as_in_the_loss(
    tmp_path: Path, built: list[Any], method: str, predicted: str
) -> None:
    predictor = nn.Sequential(linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 3)).eval()
    loaded = encoder.load_encoder(
        write_checkpoint(tmp_path, CONFIG | {"method": method}, predictor=predictor)
    )
    model, images = loaded.encoder, torch.randn(8, 3, 2, 2)
    assert model.predicted == predicted
    z = model.projector(model.backbone(images))
    for what in ("queries", "negatives"):
        expected = predictor(z) if what == predicted else z
        expected = expected / expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(model(images, what), expected)
    assert len(loaded.notes) == (method == "nnclr")
    assert all("nearest neighbour in a queue" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("method", "predictor", "note"),
    [
        ("byol", nn.Sequential(linear(3, 3)), "its predictor is ignored"),
        ("mocov3", None, "it lacks the predictor of mocov3"),
    ],
)
def test_an_ignored_or_missing_predictor_is_noted(
    tmp_path: Path, built: list[Any], method: str, predictor: nn.Module | None, note: str
) -> None:
    loaded = encoder.load_encoder(
        write_checkpoint(tmp_path, CONFIG | {"method": method}, predictor=predictor)
    )
    assert (loaded.encoder.predictor, loaded.encoder.predicted) == (None, "")
    assert loaded.notes[0].startswith(f"x-ep=7.ckpt: {note}")


def test_a_backbone_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, CONFIG | {"backbone": {"name": "resnet18", "kwargs": {}}})
    with pytest.raises(CheckpointError, match="its backbone doesn't fit backbone.name and data"):
        encoder.load_encoder(path)


IN_THE_HOST = """
import json, sys, torch
from pathlib import Path
from omegaconf import OmegaConf
from solo.methods import METHODS
from torch.nn import functional as F
from solo_hardneg.study import encoder

small = {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 8, "temperature": 0.2,
         "queue_size": 32, "temperature_q": 0.1, "temperature_k": 0.1, "sim_loss_weight": 1.0,
         "var_loss_weight": 1.0, "cov_loss_weight": 1.0, "lamb": 1.0, "scale_loss": 1.0,
         "iternorm": False}
for number, (method, backbone) in enumerate(json.loads(sys.argv[2])):
    cfg = OmegaConf.create({
        "method": method, "max_epochs": 1, "backbone": {"name": backbone, "kwargs": {}},
        "data": {"dataset": "cifar10", "num_classes": 10, "num_large_crops": 2,
                 "num_small_crops": 0},
        "optimizer": {"name": "sgd", "batch_size": 4, "lr": 0.1, "weight_decay": 0,
                      "classifier_lr": 0.1},
        "scheduler": {"name": "none"}, "momentum": {"base_tau": 0.99, "final_tau": 1.0},
        "method_kwargs": small})
    torch.manual_seed(number)
    model = METHODS[method](cfg).train()
    size = 224 if backbone.startswith("vit") else 32
    images = torch.randn(4, 3, size, size)
    model(images)  # moves the batch norms
    model.eval()
    folder = Path(sys.argv[1]) / f"{method}-{backbone}"
    folder.mkdir()
    torch.save({"state_dict": model.state_dict(), "epoch": 0}, folder / "x-ep=0.ckpt")
    (folder / "args.json").write_text(json.dumps(OmegaConf.to_container(cfg)))
    with torch.no_grad():
        out = model(images)
    passed = {"mocov3": ("q", "z"), "nnclr": ("z", "p")}.get(method, ("z", "z"))
    for what, name in zip(("queries", "negatives"), passed):
        found = encoder.load_encoder(folder).encoder(images, what)
        difference = found - F.normalize(out[name], dim=1)
        print("DIFFERENCE", method, backbone, difference.abs().max().item())
    (folder / "x-ep=0.ckpt").unlink()
"""


@pytest.mark.full
@pytest.mark.host
def test_encoders_of_the_hosts_methods_equal_the_methods(tmp_path: Path) -> None:
    checkout = solo_learn_checkout()
    if checkout is None:
        pytest.skip("no checkout of solo-learn")
    names = ("mocov2plus", "simclr", "supcon", "nnclr", "byol", "ressl", "vibcreg", "simsiam")
    pairs = [(name, "resnet18") for name in names]
    # Backbones of solo-learn only, such as the ViT of MoCo v3.
    pairs += [("mocov3", "resnet18"), ("simclr", "wide_resnet28w2"), ("mocov3", "vit_tiny")]
    script = tmp_path / "in_the_host.py"
    script.write_text(IN_THE_HOST)
    paths = {"PYTHONPATH": str(checkout)}
    result = run_python(script, tmp_path, json.dumps(pairs), cwd=tmp_path, env=paths).ok()
    lines = [line.split()[1:] for line in result.out.splitlines() if line.startswith("DIFFERENCE")]
    both = [pair for pair in pairs for _ in ("queries", "negatives")]
    assert [(method, backbone) for method, backbone, _ in lines] == both
    for method, backbone, difference in lines:
        assert float(difference) < 1e-5, (method, backbone)
