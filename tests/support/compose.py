"""The repository's docker-compose.yml and Dockerfile, read as their engines read them."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?P<empty>:?)-(?P<default>[^}]*)\}")


def compose_defaults() -> dict[str, str]:
    """Return the variables that a person can set, and what they are otherwise."""
    found: dict[str, str] = {}
    for match in _VARIABLE.finditer(COMPOSE_FILE.read_text(encoding="utf-8")):
        assert found.setdefault(match["name"], match["default"]) == match["default"], f"two defaults of {match['name']}"
    return found


def read_compose(given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the file with its variables filled in and its merges done."""

    def fill(match: re.Match[str]) -> str:
        value = (given or {}).get(match["name"])
        return match["default"] if value is None or (match["empty"] and not value) else value

    filled = _VARIABLE.sub(fill, COMPOSE_FILE.read_text(encoding="utf-8"))
    assert "${" not in filled, "a variable without a default"
    content: dict[str, Any] = yaml.safe_load(filled)
    return content


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, continuation lines joined."""

    name: str
    text: str


@cache
def dockerfile() -> tuple[Instruction, ...]:
    """Return the instructions of the Dockerfile."""
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return tuple(Instruction(*line.split(None, 1)) for line in joined.splitlines() if line.strip())


def instructions(name: str) -> list[str]:
    """Return the texts of all instructions of one name."""
    return [one.text for one in dockerfile() if one.name == name]


def image_environment() -> dict[str, str]:
    """Return what ENV sets."""
    return dict(pair.split("=", 1) for text in instructions("ENV") for pair in text.split())


def health_command() -> list[str]:
    """Return the command of HEALTHCHECK."""
    (text,) = instructions("HEALTHCHECK")
    command: list[str] = json.loads(text.partition(" CMD ")[2])
    return command


def copied_paths() -> list[str]:
    """Return what COPY takes from the repository."""
    copies = [text.split() for text in instructions("COPY")]
    return [path for words in copies if not words[0].startswith("--from") for path in words[:-1]]


def lay_out_image(folder: Path) -> None:
    """Copy into `folder` exactly what the image gets from the repository."""
    for path in copied_paths():
        source, target = REPOSITORY / path, folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
