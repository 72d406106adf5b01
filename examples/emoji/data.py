"""Google's emoji pictures and their names, from npm's `emoji-datasource-google`.

The package's data is MIT, its pictures are Noto Emoji's, Apache-2.0 by Google. Skin tones are left out.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "emoji-datasource-google@16.0.0"
ARCHIVE = "emoji-datasource-google-16.0.0.tgz"
WORK = Path("out/emoji")
SIDE = 40  # pixels; the package has 64


@dataclass(frozen=True)
class Emoji:
    """One picture's words. `name` is Unicode's, `short_names` are chat programs', `group` such as "animal-bird"."""

    code: str
    name: str
    short_names: tuple[str, ...]
    category: str
    group: str


def load(work: Path = WORK, side: int = SIDE) -> tuple[list[Emoji], np.ndarray]:
    """The emoji, and their pictures on white, uint8 [n, side, side, 3]; downloads the package into `work` if need be.

    Exits with what to do where it cannot be had.
    """
    archive = work / ARCHIVE
    if not archive.exists():
        download(work)
    kept, pictures = work / "emoji.json", work / f"pictures-{side}.npy"
    if not (kept.exists() and pictures.exists()):
        unpack(archive, kept, pictures, side)
    rows = json.loads(kept.read_text())
    emoji = [Emoji(**row | {"short_names": tuple(row["short_names"])}) for row in rows]
    return emoji, np.load(pictures)


def download(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(f"missing {work / ARCHIVE}: install npm, or put the archive of `npm pack {PACKAGE}` there")
    command = [npm, "pack", PACKAGE, "--pack-destination", str(work), "--silent"]  # else it names 3,809 files
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def unpack(archive: Path, kept: Path, pictures: Path, side: int) -> None:
    """Write the words of the emoji that have a picture to `kept`, the pictures to `pictures`."""
    with tarfile.open(archive) as package:
        files = {member.name: member for member in package.getmembers()}

        def read(name: str) -> bytes:
            stream = package.extractfile(files[f"package/{name}"])
            assert stream is not None
            return stream.read()

        entries = json.loads(read("emoji.json"))
        chosen = [entry for entry in entries if entry["has_img_google"] and entry["category"] != "Component"]
        chosen.sort(key=lambda entry: entry["sort_order"])
        images = [picture(read(f"img/google/64/{entry['image']}"), side) for entry in chosen]
    rows = [
        {
            "code": entry["unified"],
            "name": entry["name"],
            "short_names": entry["short_names"],
            "category": entry["category"],
            "group": entry["subcategory"],
        }
        for entry in chosen
    ]
    np.save(pictures, np.stack(images))
    kept.write_text(json.dumps(rows, indent=1) + "\n")


def picture(png: bytes, side: int) -> np.ndarray:
    """A PNG on white, uint8 [side, side, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    white.alpha_composite(colours)
    return np.asarray(white.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
