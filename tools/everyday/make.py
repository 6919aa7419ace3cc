"""Make the questions that ship as the default to calibrate on: `python -m tools.everyday.make`, from the repository's root.

Photographs come from the installed scikit-image 0.26 and scikit-learn 1.9, whose data's licences tools/everyday/photographs.py names.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from converters.data.everyday import FOLDER
from tools.everyday.drawings import drawings
from tools.everyday.photographs import PHOTOGRAPHS, Photograph

LONGEST = 512  # pixels of a photograph's longer side
QUALITY = 82
COLORS = 48  # of a drawing
INTRODUCTION = """# Where the pictures come from

Drawings (pages, tables, charts, screens, signs) are made by `tools/everyday` of this project and have its licence. Photographs were reduced
in size, some to a part. They ship with scikit-image and scikit-learn, whose documentation names these sources and licences:

| picture | file | from | licence |
|---|---|---|---|
"""


def photograph(one: Photograph, packages: Path) -> Image.Image:
    """The picture, or its part, no larger than LONGEST."""
    with Image.open(packages / one.file) as opened:
        image = opened.convert("RGB").crop(one.box) if one.box else opened.convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return image


def make(packages: Path, folder: Path) -> None:
    """Write pictures, questions and licences into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, licences = [], []
    for one in PHOTOGRAPHS:
        photograph(one, packages).save(folder / f"{one.name}.jpg", quality=QUALITY, optimize=True)
        lines += [{"image": f"{one.name}.jpg", "question": question, "kind": "photograph"} for question in one.questions]
        licences.append(f"| {one.name}.jpg | {one.file} | {one.credit} | {one.licence} |")
    for drawing in drawings():
        reduced = drawing.image.quantize(COLORS, dither=Image.Dither.NONE)
        reduced.save(folder / f"{drawing.name}.png", optimize=True)
        kind = drawing.name.partition("-")[0]
        lines += [{"image": f"{drawing.name}.png", "question": question, "kind": kind} for question in drawing.questions]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "LICENSES.md").write_text(INTRODUCTION + "\n".join(licences) + "\n")


def packages_folder() -> Path:
    """Where the two packages are installed."""
    places = getattr(find_spec("skimage"), "submodule_search_locations", None)
    if not places:
        raise SystemExit("pip install --no-deps scikit-image==0.26.0 scikit-learn==1.9.1")
    return Path(places[0]).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="folder that holds skimage and sklearn (default: where they are installed)")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    make(options.packages or packages_folder(), options.output)


if __name__ == "__main__":
    main()
