"""The model card: what the model is, how to use it, what it scored in this very run, what it cannot do."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2enc.artifact import head_files
from llm2enc.artifact.metadata import Best, HistoryRow, MergeRecord, Metadata, Parent
from llm2enc.recipe import to_yaml
from llm2enc.text import InputFormat

# Between these the table of engines stands, so that a newer one can take its place; cards show neither.
ENGINES_BEGIN, ENGINES_END = "<!-- llm2enc: engines -->", "<!-- llm2enc: end of engines -->"

EXAMPLE = "The river runs through the old town."


def render(metadata: Metadata, input_format: InputFormat, requirements: dict[str, str]) -> str:
    """README.md of a saved directory.

    requirements  package -> version specifier of what opens it rightly
    """
    sections = [_header(metadata), _title(metadata), _use(metadata, requirements), _input(metadata, input_format)]
    if metadata.history:
        sections.append(_scores(metadata.history))
    sections += [merged(row.merge) for row in metadata.history if row.merge]
    if metadata.merge:
        sections.append(merged(metadata.merge))
    return "\n\n".join([*sections, _limits(metadata)]) + "\n"


def engines_section(rows: Sequence[dict[str, Any]]) -> str:
    """What other programs made of the directory, as a section of the card.

    rows  {"engine", "cosine", "difference", "verdict", "remedy"}; cosine and difference are the worst of all texts, None
          where vectors could not be compared
    """
    lines = [["engine", "verdict", "smallest cosine", "largest difference", "what to do"], ["---"] * 2 + ["---:"] * 2]
    lines[1].append("---")
    for row in rows:
        cosine = "" if row["cosine"] is None else f"{row['cosine']:.6f}"
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        lines.append([_cell(row["engine"]), _cell(row["verdict"]), cosine, difference, _cell(row["remedy"])])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{ENGINES_BEGIN}\n## Engines\n\nVectors of the same texts, with and without prompts, alone and in batches, "
        "compared with llm2enc's own. What was read, not run, is what the sources of that release make of these files."
        f"\n\n{table}\n{ENGINES_END}"
    )


def with_engines(text: str, rows: Sequence[dict[str, Any]]) -> str:
    """The card `text` with the section of `engines_section` in the place of an older one, before the limits, or at the
    end. Without rows an older section is taken out."""
    section = engines_section(rows) if rows else ""
    old = re.search(rf"\n*{re.escape(ENGINES_BEGIN)}.*?{re.escape(ENGINES_END)}\n*", text, re.DOTALL)
    if old:
        before, after = text[: old.start()], text[old.end() :]
    else:
        place = re.search(r"^## Limits$", text, re.MULTILINE)
        cut = place.start() if place else len(text)
        before, after = text[:cut], text[cut:]
    parts = [part.strip("\n") for part in (before, section, after)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _header(metadata: Metadata) -> str:
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-transformers", "feature-extraction", "llm2enc"],
    }
    base = base_model(metadata.recipes)
    if base:
        fields["base_model"] = base
    return f"---\n{to_yaml(fields)}---"


def base_model(recipes: Sequence[dict[str, Any] | None]) -> str | None:
    """The hub id of the one model that all runs started from; a directory means nothing to a reader."""
    names = {recipe["model"]["name"] if recipe else "" for recipe in recipes}
    name = names.pop() if len(names) == 1 else ""
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists() else None


def _title(metadata: Metadata) -> str:
    recipe = metadata.recipe
    name = recipe["name"] if recipe else "Text encoder"
    about = f"{recipe['description']}.\n\n" if recipe and recipe["description"] else ""
    base = base_model(metadata.recipes)
    source = f" made from [{base}](https://huggingface.co/{base})" if base else ""
    head = f", {metadata.head.words}" if metadata.head else ""
    return (
        f"# {name}\n\n{about}A text encoder{source} by llm2enc {metadata.versions['llm2enc']}: a {metadata.model_type} "
        f"with {metadata.attention} attention, {metadata.pooling.replace('_', ' ')} pooling{head} and "
        f"vectors of {metadata.dimensions} dimensions"
        + (" and length 1." if metadata.normalize else ", not normalised.")
    )


def _use(metadata: Metadata, requirements: dict[str, str]) -> str:
    needs = ", ".join(f"`{name}{specifier}`" for name, specifier in requirements.items())
    causal = (
        "transformers before 5.2 ignores the switch for bidirectional attention and would run this model as a causal one. "
        "sentence-transformers before 5.4 therefore stops with a TypeError about `transformer_task`, and recent releases "
        "check the versions above. Other programs may not: compare with the golden vectors in `llm2enc.json`."
        if metadata.attention == "bidirectional"
        else "The golden vectors in `llm2enc.json` show whether another program reads this model rightly."
    )
    query = ""
    if "query" in metadata.prompts:
        query = '\nqueries = model.encode(["Where does the river run?"], prompt_name="query")'
    return f"""## Use

```python
from llm2enc import Encoder

encoder = Encoder.load("path/to/this/directory")
documents = encoder.encode(["{EXAMPLE}"])
queries = encoder.encode(["Where does the river run?"], prompt_name="query")
```

{_native(metadata)}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory"{", trust_remote_code=True" * metadata.needs_code})
documents = model.encode(["{EXAMPLE}"]){query}
```

It needs {needs}. {causal}{_truncation(metadata)}

Commands for vLLM, text-embeddings-inference and llama.cpp are in the README of llm2enc; `llm2enc verify` compares their
vectors with these."""


def _truncation(metadata: Metadata) -> str:
    """How sentence-transformers cuts vectors: behind its Normalize module."""
    if not metadata.normalize:
        return ""
    return (
        "\n\nFor vectors of the first k dimensions alone write `model.encode(texts, truncate_dim=k, "
        "normalize_embeddings=True)`, which gives `encoder.encode(texts, truncate_dim=k)`: sentence-transformers cuts what "
        "is normalised already, and without the second argument leaves it shorter than 1."
    )


def _native(metadata: Metadata) -> str:
    """How far sentence-transformers agrees."""
    if metadata.native and metadata.needs_code:
        return (
            f"sentence-transformers gives the same vectors. It runs `{head_files.CODE}` of this directory, which it must be "
            "told to trust:"
        )
    if metadata.native:
        return "sentence-transformers gives the same vectors, without code of llm2enc:"
    left_out = sorted({d.prompt for d in metadata.differences} - metadata.prompts.keys())
    lacks = f" It lacks the prompts {', '.join(left_out)}." if left_out else ""
    return (
        "sentence-transformers opens this directory but does **not** give the same vectors for every input (see Limits): "
        f"for those, use llm2enc as above.{lacks}"
    )


def _input(metadata: Metadata, input_format: InputFormat) -> str:
    spec = input_format.spec
    instruction = next(iter(spec.prompts.values()), "Find the answer")
    return f"""## Input

A document, as the model reads it:

```text
{input_format.render(EXAMPLE)}
```

A query with the instruction "{instruction}":

```text
{input_format.render("Where does the river run?", instruction, "query")}
```

At most {spec.max_tokens} tokens, the template included. Longer texts are cut at the end; what follows the text stays."""


def _scores(history: Sequence[HistoryRow]) -> str:
    """The measurements of the run, one row per stage."""
    metrics = list(dict.fromkeys(metric for row in history for metric in row.scores))
    lines = [["stage", *metrics, "seconds"]]
    for row in history:
        scores = [f"{row.scores[metric]:.4f}" if metric in row.scores else "" for metric in metrics]
        lines.append([row.stage, *scores, f"{row.seconds:.0f}"])
    lines.insert(1, ["---"] + ["---:"] * (len(metrics) + 1))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    adapters = [
        f"\n\nThe adapter of {row.stage.removeprefix('after ')} was {row.adapter}." for row in history if row.adapter
    ]
    best = [f"\n\n{_chosen(row.stage.removeprefix('after '), row.best)}" for row in history if row.best]
    return f"## Scores\n\nMeasured in the run that made this model.\n\n{table}{''.join(adapters + best)}"


def _chosen(stage: str, best: Best) -> str:
    """Which of a stage's weights were kept."""
    return (
        f"The weights of {stage} are those after step {best.step} of the {best.last} that were trained: they had the "
        f"highest {best.score_name} measured within the stage, {best.score:.4f}."
    )


def merged(record: MergeRecord) -> str:
    """What was merged and how, from the record that `llm2enc.merging.merge` returns."""
    total = sum(parent.weight for parent in record.parents)
    how = {"average": "the weighted average of", "slerp": "the spherical interpolation (SLERP), in this order, of"}
    lines = [
        "## Merged",
        "",
        f"The weights are {how[record.method]} those of these encoders (fingerprints as in their `llm2enc.json`):",
        "",
        "| weights | share |",
        "| --- | ---: |",
        *(f"| {_named(parent)} | {parent.weight / total:.3f} |" for parent in record.parents),
    ]
    if record.base:
        share = f"{record.base_weight:.3f}"
        lines += ["", f"Then mixed with the base model `{record.base[:12]}`, whose share is {share}."]
    return "\n".join(lines)


def _named(parent: Parent) -> str:
    return f"{_cell(parent.name)}, `{parent.fingerprint[:12]}`" if parent.name else f"`{parent.fingerprint[:12]}`"


def _limits(metadata: Metadata) -> str:
    items = [] if metadata.native else [metadata.reason[0].upper() + metadata.reason[1:]]
    items += metadata.notes
    items.append("Texts in languages or of kinds that the training data did not have may get poor vectors.")
    return "## Limits\n\n" + "\n".join(f"- {item}" for item in items)
