"""Every preset, made small enough for a queue of 32 keys or a batch of 8 images."""

from __future__ import annotations

from pathlib import Path

PRESETS = sorted(
    file.stem for file in (Path(__file__).parent.parent / "configs" / "negatives").glob("*.yaml")
)
WITH_A_QUEUE = [name for name in PRESETS if name.startswith(("drop_", "retain_"))]
MIXING = ["negatives.mix.hardest=8", "negatives.mix.pairs=4"]
SIX_KINDS = [
    *(f"negatives.mix.{kind}=2" for kind in ("pairs", "queries", "beyond")),
    *(f"negatives.mix.{kind}.count=2" for kind in ("noise", "toward", "adversarial")),
    *("negatives.mix.hardest=8", "negatives.mix.from_epoch=0"),
]
_SMALL = {
    "glofnd": ["negatives.drop.from_epoch=0"],
    "synco": SIX_KINDS,
    "synco_v2": SIX_KINDS,
    "mochi": [*MIXING, "negatives.mix.queries=2"],
    **dict.fromkeys(("mix", "mix_debias", "mix_moco", "sscl", "sscl_moco"), MIXING),
}
# Each preset with each family. SimCLR has no queue to fill from, or to keep keys in.
RUNS = [(method, preset) for method in ("mocov2_banded", "simclr_banded") for preset in PRESETS]
RUNS.remove(("simclr_banded", "retain_hard"))


def small(method: str, preset: str) -> list[str]:
    """The arguments that run a preset with a method, but for the data."""
    chosen = [f"negatives={preset}", *_SMALL.get(preset, [])]
    if method.startswith("simclr") and preset in WITH_A_QUEUE:
        chosen.append("negatives.fill=null")
    if method.startswith("moco"):
        chosen.append("method_kwargs.queue_size=32")
    return [*chosen, "optimizer.batch_size=8", "method_kwargs.proj_hidden_dim=16"]
