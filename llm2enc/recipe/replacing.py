"""A recipe with another model and other data: `llm2enc convert llm2vec --model MODEL --data PAIRS`."""

import glob
import re
from pathlib import Path
from typing import Any

from llm2enc.errors import RecipeError
from llm2enc.recipe.data import FilesData, HubData
from llm2enc.recipe.recipe import Recipe

_TABLES = {".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"}


def replaced(recipe: Recipe, model: str | None, data: str | None) -> dict[str, Any]:
    """The fields of the recipe with another model, other data, or both, named and described after them.

    model   hub id, directory, GGUF file, package or `pocket`; all but attention and dtype belonged to the former model and
            goes with it
    data    what every stage trains on, see `sources_of`: pairs, and their queries and positives where a stage reads texts.
            The named prompts are the tasks of the former data and go with it; evaluation stays as it is
    raises  RecipeError for a folder without tables, and for texts where a stage needs pairs
    """
    fields = recipe.model_dump(mode="json")
    said = f"recipe {recipe.name}"
    if model is not None:
        own = dict.fromkeys(("package", "gguf", "revision", "layers"))
        fields["model"] |= {"name": model, "trust_remote_code": False, **own}
        fields["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{recipe.name}-{Path(model).name}")[:100]
        said += f", model {model}"
    if data is not None:
        sources = [source.model_dump(mode="json") for source in sources_of(data)]
        for number, stage in enumerate(recipe.stages):
            pairs = stage.row in ("pair", "scored pair")
            if pairs and any(".txt" in Path(source["path"]).suffixes for source in sources):
                raise RecipeError(
                    f"{data} holds texts, and stages.{number} ({stage.objective}) trains on pairs: give a table of pairs"
                )
            fields["stages"][number]["data"] = [source | {"view": None if pairs else "texts"} for source in sources]
        fields["input"]["prompts"] = {}
        said += f", data {data}"
    return fields | {"description": said}


def sources_of(path: str) -> list[FilesData | HubData]:
    """The sources that a user names: a file or glob, the files of a folder each on its own, a BEIR folder, a hub id."""
    folder = Path(path)
    if folder.is_dir() and not any((folder / f"corpus.jsonl{end}").is_file() for end in ("", ".gz")):
        files = sorted(file for file in folder.iterdir() if file.is_file() and set(file.suffixes) & _TABLES)
        if not files:
            raise RecipeError(
                f"{path} holds no file that can be read as data: expected {', '.join(sorted(_TABLES))}, or a BEIR data set"
            )
        return [FilesData(kind="files", path=str(file)) for file in files]
    looks_local = path.startswith((".", "/", "~")) or set(folder.suffixes) & _TABLES or path.count("/") != 1
    if folder.exists() or glob.has_magic(path) or looks_local:
        return [FilesData(kind="files", path=path)]
    return [HubData(kind="hub", path=path)]
