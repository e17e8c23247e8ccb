"""`tools/gpu/pack --data FOLDER`: wheels and text for a machine without network, small enough to travel with the code."""

import argparse
import gzip
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

MIB = 2**20
LIMIT, SPARE = 64.0, 2.0  # MiB of code, wheels and text together, and what stays free of it
# What the run imports and a machine with torch, transformers, sentence-transformers, peft and accelerate may lack. Of
# `datasets`' needs pyarrow and pandas are too large to travel; without them the rows about pairs of texts fail.
WHEELS = (
    "annotated-types", "datasets", "dill", "multiprocess", "pydantic", "pydantic-core", "ruamel.yaml",
    "typing-extensions", "typing-inspection", "xxhash",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
SOURCES = ("wiki", "wikinews", "books", "squad_contexts")
VALIDATION = "wiki.valid.txt.gz"
ROOT = Path(__file__).parents[2]


class TooLarge(ValueError):
    """What was asked for cannot travel."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/gpu/pack", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with wiki.train.txt.gz and the others")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "carried")
    parser.add_argument("--python", default="3.10,3.11,3.12,3.13", help="versions that the wheels are for, by commas")
    parser.add_argument("--limit-mib", type=float, default=LIMIT, help="for code, wheels and text together")
    parser.add_argument("--text-mib", type=float, help="of it for text; default: what is left")
    arguments = parser.parse_args()
    out, limit = arguments.out, int(arguments.limit_mib * MIB)
    (out / "wheels").mkdir(parents=True, exist_ok=True)
    (out / "text").mkdir(exist_ok=True)
    for old in [*(out / "wheels").iterdir(), *(out / "text").iterdir()]:
        old.unlink()
    try:
        fetch_wheels(out / "wheels", arguments.python.split(","))
        code, wheels = size_of_code(ROOT), size(out / "wheels")
        room = text_room(limit, code + wheels, arguments.text_mib)
        write_text(arguments.data, out / "text", room)
        print(f"code {code / MIB:.1f}, wheels {wheels / MIB:.1f}, text {size(out / 'text') / MIB:.1f} MiB in {out}")
        check(code + size(out), limit)
    except (TooLarge, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def fetch_wheels(folder: Path, pythons: list[str]) -> None:
    """The wheels of the releases that are installed here, for each Python; and their names for `pip install -r`."""
    names = [f"{name}=={version(name)}" for name in WHEELS]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    for python in pythons:
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder),
                "--implementation", "cp", "--python-version", python, *platforms, *names,
            ],
            check=True,
        )  # fmt: skip
    (folder / "names.txt").write_text("\n".join(names) + "\n")


def text_room(limit: int, others: int, wanted_mib: float | None) -> int:
    """Bytes for text beside so many of code and wheels. TooLarge if there are none."""
    room = limit - others - int(SPARE * MIB)
    if wanted_mib is not None:
        room = min(room, int(wanted_mib * MIB))
    if room <= 0:
        raise TooLarge(f"code and wheels take {others / MIB:.1f} of {limit / MIB:.1f} MiB: no room for text")
    return room


def check(total: int, limit: int) -> None:
    """TooLarge if that does not travel."""
    if total > limit:
        raise TooLarge(f"{total / MIB:.1f} MiB together, {limit / MIB:.1f} may travel; lower --text-mib or --python")


def write_text(data: Path, folder: Path, room: int) -> None:
    """The validation text whole, and the beginning of each source; small ones leave their share to the others."""
    left = room - (data / VALIDATION).stat().st_size
    (folder / VALIDATION).write_bytes((data / VALIDATION).read_bytes())
    files = sorted((data / f"{name}.train.txt.gz" for name in SOURCES), key=lambda path: path.stat().st_size)
    for number, path in enumerate(files):
        left -= shorten(path, folder / path.name, left // (len(files) - number))


def shorten(source: Path, target: Path, room: int) -> int:
    """Write the first lines of a compressed text, at most `room` bytes; returns how many those are."""
    if source.stat().st_size <= room:
        target.write_bytes(source.read_bytes())
        return target.stat().st_size
    lines: list[bytes] = []
    share = room / source.stat().st_size  # of the lines: a text compresses alike all over
    with gzip.open(source) as text:
        everything = text.readlines()
    while True:
        lines = everything[: int(share * len(everything))]
        target.write_bytes(gzip.compress(b"".join(lines), mtime=0))
        if target.stat().st_size <= room:
            return target.stat().st_size
        share *= 0.97


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_of_code(root: Path) -> int:
    """Bytes of the files that git knows, and of new ones that it does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    return sum((root / name).stat().st_size for name in listed if name and (root / name).is_file())


if __name__ == "__main__":
    sys.exit(main())
