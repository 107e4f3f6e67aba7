"""Exports a run's backbone for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors.torch import save

from solo_hardneg.errors import DataError, bad_value
from solo_hardneg.files import literal, write_atomically
from solo_hardneg.models.backbones import (
    build_backbone,
    common_name,
    has_small_stem,
    load_backbone,
)
from solo_hardneg.models.checkpoints import read_encoder
from solo_hardneg.study.encoder import check_backbone_keys, run_config
from solo_hardneg.validate import read

KEY = "export"  # in messages


def export_backbone(run: Path, to: Path) -> str:
    """Writes the backbone of a checkpoint, with the names of torchvision and timm.

    Args:
        run: Checkpoint of either host, or a run's folder, whose newest one is taken.
        to: File to write, ``*.safetensors``. An existing one is replaced.

    Returns:
        How to load it.

    Raises:
        CheckpointError: The checkpoint can't be read, or holds another backbone than it says.
        ConfigError: Neither library has this backbone, or ``to`` has another suffix.
        DataError: The file can't be written.
    """
    if to.suffix != ".safetensors":
        raise bad_value(
            "--to", str(to), "must end in .safetensors", f"For example {to.stem}.safetensors."
        )
    file, checkpoint = read_encoder(KEY, run.expanduser())
    cfg: Any = OmegaConf.create(literal(run_config(file)))
    check_backbone_keys(cfg, file)
    name, dataset = str(read(cfg, "backbone.name")), str(read(cfg, "data.dataset"))
    known = common_name(name)
    kwargs: Any = OmegaConf.to_container(read(cfg, "backbone.kwargs", OmegaConf.create()))
    method = read(cfg, "method", read(cfg, "pretrain_method"))
    backbone, _ = build_backbone(name, method, kwargs, dataset)
    load_backbone(backbone, checkpoint["state_dict"], KEY, file)
    state = {key: value.contiguous().clone() for key, value in backbone.state_dict().items()}
    metadata = {"format": "pt", "model": known, "dataset": dataset}
    try:
        write_atomically(to, save(state, metadata))
    except OSError as error:
        raise DataError(f"--to={to}: can't be written ({error.strerror}).") from error
    arguments = "".join(f", {key}={value!r}" for key, value in kwargs.items())
    lines = [
        f"{to}: {known} of {file}, {len(state)} tensors. Load it with",
        "  from safetensors.torch import load_file",
        f'  model = timm.create_model("{known}", num_classes=0{arguments})',
    ]
    if has_small_stem(state):
        lines += [
            "  model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=2, bias=False)  # for small images",
            "  model.maxpool = torch.nn.Identity()",
        ]
    lines.append(f'  model.load_state_dict(load_file("{to}"))')
    return "\n".join(lines)
