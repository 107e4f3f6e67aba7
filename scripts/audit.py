"""Known advisories and the licences of what is installed: ``python scripts/audit.py``.

Everything that solo-hardneg depends on, directly or not, in this environment. All that is found is
a warning: an advisory for a dependency is no fault of a change, and must not keep it from landing.
Where the database of advisories can't be asked, that is a warning, too. The exit status is 0.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PACKAGE = "solo-hardneg"
SECONDS = 75  # for all of pip-audit; a request of it may take SECONDS_EACH
SECONDS_EACH = 5
# What an MIT package may depend on without a second thought: permissive, or, as a library that is
# imported and not changed, weak copyleft that asks nothing of those who use it (MPL, LGPL).
ALLOWED = (
    *("mit", "bsd", "apache", "isc", "psf", "python software foundation", "zlib", "unlicense"),
    *("public domain", "hpnd", "historical permission", "0bsd", "cc0", "mpl", "mozilla public"),
    *(
        "cnri",
        "lgpl",
        "lesser general public",
        "boost",
        "bsl-1.0",
        "zpl",
        "ncsa",
        "blueoak",
        "libpng",
    ),
)
COPYLEFT = (r"\ba?gpl", "affero", r"(?<!lesser )general public license", "eupl", "sspl", "cc-by-nc")
# Not free software, and known to be: whoever installs CUDA's libraries accepts their terms.
KNOWN = {
    r"nvidia-.*|cuda-.*": "NVIDIA's terms; PyTorch's CUDA builds bring it along",
}


@dataclass(frozen=True)
class Licence:
    """A package's licence as its metadata says it.

    Attributes:
        name, version, text: of the package.
        verdict: ``allowed``, ``known``, ``copyleft`` or ``unknown``.
    """

    name: str
    version: str
    text: str
    verdict: str


# ---------------------------------------------------------------------- licences


def judge(name: str, text: str) -> str:
    """``allowed``, ``known``, ``copyleft`` or ``unknown``; of ``A OR B`` the better one counts."""
    if any(re.fullmatch(pattern, name.lower()) for pattern in KNOWN):
        return "known"
    verdicts = [_judge_all(choice) for choice in re.split(r"\bOR\b", text)]
    return next(v for v in ("allowed", "copyleft", "unknown") if v in verdicts)


def _judge_all(text: str) -> str:
    """Of ``A AND B; C`` the worst one counts; what follows WITH is an exception for the user."""
    parts = [part.partition(" WITH ")[0] for part in re.split(r"\bAND\b|;", text)]
    verdicts = [_judge_one(part.strip(" ()").lower()) for part in parts if part.strip(" ()")]
    if not verdicts:
        return "unknown"
    return next((v for v in ("copyleft", "unknown") if v in verdicts), "allowed")


def _judge_one(text: str) -> str:
    if re.search(r"\blgpl|lesser general public", text):
        return "allowed"
    if any(re.search(pattern, text) for pattern in COPYLEFT):
        return "copyleft"
    return "allowed" if any(re.search(rf"\b{name}", text) for name in ALLOWED) else "unknown"


def licence_text(about: Any) -> str:
    """What a package's metadata says: its SPDX expression, its classifiers, or its free text."""
    if expression := about.get("License-Expression"):
        return str(expression)
    classifiers = [c for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    named = [c.split(" :: ")[-1] for c in classifiers if c != "License :: OSI Approved"]
    if named:
        return "; ".join(named)
    lines = str(about.get("License") or "").strip().splitlines()
    return lines[0][:60] if lines else ""  # some have all of it there


def dependencies(package: str) -> list[str]:
    """The names of all that is installed of what a package needs, without its extras."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, None] = {}
    todo: list[tuple[str, frozenset[str]]] = [(package, frozenset())]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        try:
            requires = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue  # only for another system or Python
        found[canonicalize_name(name)] = None
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            wanted = marker is None or any(marker.evaluate({"extra": e}) for e in {"", *extras})
            one = (requirement.name, frozenset(requirement.extras))
            if wanted and one not in seen:
                seen.add(one)
                todo.append(one)
    return sorted(set(found) - {canonicalize_name(package)})


def licences(names: Iterable[str]) -> list[Licence]:
    """Their licences, in this order."""
    found = []
    for name in names:
        about = metadata.metadata(name)
        text = licence_text(about)
        found.append(Licence(name, str(about["Version"]), text, judge(name, text)))
    return found


def licence_lines(found: Sequence[Licence]) -> list[str]:
    """The list, and a warning for each that somebody should look at."""
    width = max((len(f"{one.name} {one.version}") for one in found), default=0)
    lines = [f"{f'{one.name} {one.version}':{width}}  {one.text or '-'}" for one in found]
    for one in found:
        if one.verdict in ("copyleft", "unknown"):
            text = one.text or "its metadata say nothing"
            lines.append(f"WARNING: licence of {one.name} is {one.verdict}: {text}")
    return lines


# ---------------------------------------------------------------------- advisories


def ask(names: Sequence[str]) -> str:
    """What pip-audit says of the installed versions, as JSON.

    Raises:
        RuntimeError: it isn't installed, took too long, or got no answer.
    """
    if importlib.util.find_spec("pip_audit") is None:
        raise RuntimeError("pip-audit isn't installed; pip install 'solo-hardneg[audit]'")
    # With "+cpu" or "+cu121", a version is in no database.
    pins = "".join(f"{name}=={metadata.version(name).partition('+')[0]}\n" for name in names)
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--timeout", str(SECONDS_EACH), "--no-deps", "--disable-pip"]
    command += ["--requirement", "/dev/stdin"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(pins, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"no answer within {SECONDS} seconds") from None
    if not out.strip():
        last = (err.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(last[:200])
    return out


def advisory_lines(answer: str) -> list[str]:
    """A warning for each advisory in pip-audit's JSON, and how many packages were looked up.

    Raises:
        RuntimeError: it is no answer of pip-audit.
    """
    try:
        content: Mapping[str, Any] = json.loads(answer)
        packages = content["dependencies"]
        lines, skipped = [], []
        for package in packages:
            if "skip_reason" in package:
                skipped.append(package["name"])
            for known in package.get("vulns", ()):
                names = ", ".join([known["id"], *known.get("aliases", ())])
                fixed = ", ".join(known.get("fix_versions", ())) or "no version yet"
                which = f"{package['name']} {package['version']}"
                lines.append(f"WARNING: {which}: {names}; fixed in {fixed}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeError(f"its answer can't be read ({error})") from error
    asked = len(packages) - len(skipped)
    if skipped and not asked:
        reason = next(p["skip_reason"] for p in packages if "skip_reason" in p)
        raise RuntimeError(f"none of the packages is known ({reason})"[:300])
    if skipped:
        lines.append(f"WARNING: not in the database: {', '.join(skipped)}")
    number = sum("vulns" in package and bool(package["vulns"]) for package in packages)
    return [*lines, f"{asked} packages were looked up; {number} have advisories."]


def main() -> int:
    """Prints both lists; returns 0, whatever is in them."""
    names = dependencies(PACKAGE)
    print(f"== licences of the {len(names)} packages that {PACKAGE} depends on")
    print("\n".join(licence_lines(licences(names))))
    print("== advisories")
    try:
        print("\n".join(advisory_lines(ask(names))))
    except RuntimeError as error:
        print(f"WARNING: advisories were not looked up: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
