"""The standalone host beside solo-learn: equal weights and batches give equal results.

Both run in one process of their own, so that solo-learn doesn't become importable for the other
tests. What it finds comes back as JSON, one entry per comparison.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CHECKOUTS = [os.environ.get("SOLO_LEARN_DIR"), PROJECT.parent / "solo-learn", "~/solo-learn"]

SCRIPT = r"""
import copy, json, math, sys
import numpy as np, torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image
from solo.args.pretrain import parse_cfg
from solo.data.pretrain_dataloader import build_transform_pipeline
from solo.methods import METHODS as theirs
from solo.utils.auto_resumer import AutoResumer
from solo.utils.lars import LARS
from solo.utils.lr_scheduler import LinearWarmupCosineAnnealingLR
from solo_hardneg.standalone import METHODS as ours
from solo_hardneg.standalone.config import parse_pretrain
from solo_hardneg.standalone.run import linear, pretrain
from solo_hardneg.standalone.training import build_optimizer, warmup_cosine
from solo_hardneg.standalone.transforms import view_pipeline

root, found = sys.argv[1], {}

def config(name, *overrides):
    small = ["optimizer.batch_size=4", "data.num_workers=0", "accelerator=cpu",
             "+enable_progress_bar=false", "+enable_model_summary=false",
             f"checkpoint.dir={root}/runs", "method_kwargs.proj_hidden_dim=8"]
    small = small[:-1] if name == "linear" else small
    small += ["method_kwargs.pred_hidden_dim=8"] if name == "byol" else []
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(name, [*small, *overrides])
    OmegaConf.set_struct(cfg, False)
    return cfg

def quiet(model):
    model.log = model.log_dict = lambda *a, **k: None
    return model

# ---- configs, steps and gradients
for name in ("byol", "mocov2plus", "simclr"):
    cfg = config(name, "data=cifar10", f"data.train_path={root}", f"data.val_path={root}",
                 "data.suggest.queue_size=64")
    host_cfg, our_cfg = parse_cfg(copy.deepcopy(cfg)), parse_pretrain(cfg)
    torch.manual_seed(0)
    host, mine = quiet(theirs[name](host_cfg)), quiet(ours[name](our_cfg))
    plain = [OmegaConf.to_container(c, resolve=True) for c in (host_cfg, our_cfg)]
    flat = [json.loads(json.dumps(p, default=str)) for p in plain]
    skip = {"strategy", "dali", "auto_umap", "debug_augmentations", "num_nodes", "momentum"}
    found[f"{name}: config"] = [
        (key, value, flat[1].get(key)) for key, value in flat[0].items()
        if key not in skip and not (value == flat[1].get(key) or isinstance(value, dict) and
            all(flat[1][key].get(k) == v for k, v in value.items()))]
    found[f"{name}: keys"] = sorted(set(host.state_dict()) ^ set(mine.state_dict()))
    mine.load_state_dict(host.state_dict())
    batch = [torch.arange(4), [torch.randn(4, 3, 32, 32) for _ in range(2)], torch.arange(4)]
    losses = [model.training_step(batch, 0) for model in (host, mine)]
    found[f"{name}: loss"] = [loss.item() for loss in losses]
    for loss in losses:
        loss.backward()
    grads = [torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
             for model in (host, mine)]
    found[f"{name}: gradient"] = ((grads[0] - grads[1]).norm() / grads[0].norm()).item()
    states = [model.state_dict() for model in (host, mine)]  # batch statistics, above all
    found[f"{name}: state"] = max((value - states[1][key]).abs().max().item()
                                  for key, value in states[0].items())
    if name == "mocov2plus":
        found["queue"] = (host.queue - mine.queue).abs().max().item()
    if name != "simclr":
        for model in (host, mine):
            with torch.no_grad():
                for group in model.learnable_params:
                    for p in group["params"]:
                        p.add_(0.1)
            for pair in model.momentum_pairs:
                model.momentum_updater.update(*pair)
        averages = [[p for _, momentum in model.momentum_pairs for p in momentum.parameters()]
                    for model in (host, mine)]
        found[f"{name}: momentum"] = max((a - b).abs().max().item() for a, b in zip(
            *averages, strict=True))

# ---- schedule, LARS and transformations
parameter = torch.nn.Parameter(torch.ones(2, 2))
optimizer = torch.optim.SGD([parameter], lr=0.5)
schedule = LinearWarmupCosineAnnealingLR(optimizer, 4, 12, 0.01, 0.001)
gap = 0.0
for step in range(12):
    gap = max(gap, abs(schedule.get_last_lr()[0] - warmup_cosine(step, 0.5, 4, 12, 0.01, 0.001)))
    optimizer.step(); schedule.step()
found["schedule"] = gap

for exclude in (False, True):
    kwargs = dict(momentum=0.9, eta=0.02, clip_lr=True, exclude_bias_n_norm=exclude)
    torch.manual_seed(1)
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [LARS(layers[0].parameters(), lr=0.3, weight_decay=0.1, **kwargs),
                  build_optimizer("lars", [{"params": layers[1].parameters()}], 0.3, 0.1, kwargs)]
    for _ in range(3):
        x = torch.randn(5, 3)
        for layer, optimizer in zip(layers, optimizers):
            optimizer.zero_grad(); layer(x).square().mean().backward(); optimizer.step()
    found[f"lars {exclude}"] = (layers[0].weight - layers[1].weight).abs().max().item() + (
        layers[0].bias - layers[1].bias).abs().max().item()

image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
entry = OmegaConf.to_container(config("simclr", "data=cifar10").augmentations, resolve=True)[0]
for dataset in ("cifar10", "cifar100", "imagenet", "custom"):
    same = copy.deepcopy(entry)
    same["rrc"]["enabled"] = False
    same["crop_size"] = 32
    for key in ("color_jitter", "gaussian_blur"):
        same[key]["prob"] = 0.0
    for key in ("grayscale", "solarization", "equalization", "horizontal_flip"):
        same[key]["prob"] = 1.0
    host_view = build_transform_pipeline(dataset, OmegaConf.create(same))(image)
    gap = host_view - view_pipeline(dataset, same, "")(image)
    found[f"view {dataset}"] = gap.abs().max().item()

# ---- checkpoints: solo-learn's class in our runner, then our evaluation; ours into solo-learn's
for split in ("train", "val"):
    for label in "ab":
        import os
        os.makedirs(f"{root}/{split}/{label}")
        for i in range(4):
            image.rotate(i * 30 + ord(label)).save(f"{root}/{split}/{label}/{i}.png")
paths = ["data=custom", f"data.train_path={root}/train", f"data.val_path={root}/val",
         "max_epochs=1", "data.suggest.crop_size=32"]
import solo_hardneg.host as seam
found["host"] = seam.NAME
run = pretrain(config("simclr", *paths))
result = linear(config("linear", *paths, f"pretrained_feature_extractor={run.folder}"))
found["evaluated"] = result.metrics["val_knn_acc1"]
args = OmegaConf.create(json.load(open(run.folder / "args.json")))
found["theirs in ours"] = ours["simclr"].load_from_checkpoint(run.checkpoint, cfg=args).num_classes

seam.METHODS = dict(ours)
cfg = config("mocov2plus", *paths, "method_kwargs.queue_size=8", "name=found-again")
run = pretrain(cfg)
args = OmegaConf.create(json.load(open(run.folder / "args.json")))
model = theirs["mocov2plus"].load_from_checkpoint(run.checkpoint, cfg=args)
found["ours in theirs"] = model.queue_ptr.item()
resumer = AutoResumer(f"{root}/runs/mocov2plus", max_hours=1)
cfg = theirs["mocov2plus"].add_and_assert_specific_cfg(parse_cfg(cfg))
found["resumer"] = str(resumer.find_checkpoint(cfg)[0]) == str(run.checkpoint)

for methods, others in ((theirs, ours), (ours, theirs)):
    seam.METHODS = dict(methods)
    run = pretrain(config("byol", *paths))
    result = linear(config("linear", *paths, f"pretrained_feature_extractor={run.folder}"))
    args = OmegaConf.create(json.load(open(run.folder / "args.json")))
    model = others["byol"].load_from_checkpoint(run.checkpoint, cfg=args)
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    same = all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    place = "ours in theirs" if methods is ours else "theirs in ours"
    found[f"byol: {place}"] = [same, type(model).__module__, result.metrics["val_knn_acc1"]]
json.dump(found, open(f"{root}/found.json", "w"))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    places = [Path(place).expanduser() for place in CHECKOUTS if place]
    checkout = next((p for p in places if (p / "solo/methods/mocov2plus.py").is_file()), None)
    if checkout is None:
        pytest.skip("no solo-learn checkout at $SOLO_LEARN_DIR, ../solo-learn or ~/solo-learn")
    folder = tmp_path_factory.mktemp("parity")
    env = {**os.environ, "PYTHONPATH": f"{PROJECT}:{checkout}", "SOLO_HARDNEG_HOST": "solo"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.full
@pytest.mark.host
@pytest.mark.parametrize("method", ["byol", "mocov2plus", "simclr"])
class TestMethods:
    def test_the_config_is_parsed_alike(self, found, method):
        assert found[f"{method}: config"] == []

    def test_the_state_has_the_same_keys(self, found, method):
        assert found[f"{method}: keys"] == []

    def test_the_loss_is_equal(self, found, method):
        theirs, ours = found[f"{method}: loss"]
        assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6)
        assert theirs > 1

    def test_the_gradient_is_equal(self, found, method):
        assert found[f"{method}: gradient"] < 1e-4

    def test_the_state_after_the_step_is_equal(self, found, method):
        assert found[f"{method}: state"] < 1e-5


@pytest.mark.full
@pytest.mark.host
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("queue", 1e-6),
        ("mocov2plus: momentum", 1e-6),
        ("byol: momentum", 1e-6),
        ("schedule", 1e-12),
        ("lars False", 1e-6),
        ("lars True", 1e-6),
        *((f"view {d}", 1e-6) for d in ("cifar10", "cifar100", "imagenet", "custom")),
    ],
)
def test_the_parts_are_equal(found, name, bound):
    assert found[name] <= bound


@pytest.mark.full
@pytest.mark.host
def test_checkpoints_move_between_the_hosts(found):
    assert found["host"] == "solo"
    assert 0 <= found["evaluated"] <= 100
    assert found["theirs in ours"] == 2
    assert found["ours in theirs"] == 0  # two batches of four filled the queue of eight
    assert found["resumer"] is True


@pytest.mark.full
@pytest.mark.host
@pytest.mark.parametrize(
    ("place", "module"),
    [("ours in theirs", "solo.methods.byol"), ("theirs in ours", "solo_hardneg.standalone.byol")],
)
def test_byols_checkpoints_move_both_ways(found, place, module):
    same, where, accuracy = found[f"byol: {place}"]
    assert same is True
    assert where == module
    assert 0 <= accuracy <= 100
