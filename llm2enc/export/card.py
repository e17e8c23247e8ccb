"""The model card: what the model is, how to use it, what it scored in this very run, what it can't do."""

import re
from pathlib import Path
from typing import Any

import yaml

from llm2enc.tokens import InputFormat

EXAMPLE = "The river runs through the old town."


def render(facts: dict[str, Any], input_format: InputFormat, requirements: dict[str, str]) -> str:
    """README.md of a directory.

    facts         the content of its llm2enc.json
    requirements  package -> version specifier of what opens it rightly
    """
    sections = [_header(facts), _title(facts), _use(facts, requirements), _input(facts, input_format)]
    if facts["history"]:
        sections.append(_scores(facts["history"]))
    return "\n\n".join([*sections, _limits(facts)]) + "\n"


def _header(facts: dict[str, Any]) -> str:
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-transformers", "feature-extraction", "llm2enc"],
    }
    base = _base_model(facts["recipe"])
    if base:
        fields["base_model"] = base
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _base_model(recipe: dict[str, Any] | None) -> str | None:
    """The hub id of the model the run started from; a directory means nothing to a reader."""
    name = recipe["model"]["name"] if recipe else ""
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists() else None


def _title(facts: dict[str, Any]) -> str:
    recipe = facts["recipe"]
    name = recipe["name"] if recipe else "Text encoder"
    about = f"{recipe['description']}.\n\n" if recipe and recipe["description"] else ""
    base = _base_model(recipe)
    source = f" made from [{base}](https://huggingface.co/{base})" if base else ""
    return (
        f"# {name}\n\n{about}A text encoder{source} by llm2enc {facts['versions']['llm2enc']}: a {facts['model_type']} "
        f"with {facts['attention']} attention, {facts['pooling'].replace('_', ' ')} pooling and vectors of "
        f"{facts['dimensions']} dimensions" + (" and length 1." if facts["normalize"] else ", not normalised.")
    )


def _use(facts: dict[str, Any], requirements: dict[str, str]) -> str:
    needs = ", ".join(f"`{name}{specifier}`" for name, specifier in requirements.items())
    other = (
        "gives the same vectors"
        if facts["native"]
        else "opens this directory but does **not** give the same vectors for every input (see Limits)"
    )
    causal = (
        "transformers before 5.2 ignores the switch for bidirectional attention and would run this model as a causal one. "
        "sentence-transformers before 5.4 therefore stops with a TypeError about `transformer_task`, and recent releases "
        "check the versions above. Other programs may not: compare with the golden vectors in `llm2enc.json`."
        if facts["attention"] == "bidirectional"
        else "The golden vectors in `llm2enc.json` show whether another program reads this model rightly."
    )
    query = ""
    if "query" in facts["prompts"]:
        query = '\nqueries = model.encode(["Where does the river run?"], prompt_name="query")'
    return f"""## Use

```python
from llm2enc.encoder import Encoder

encoder = Encoder.load("path/to/this/directory")
documents = encoder.encode(["{EXAMPLE}"])
queries = encoder.encode(["Where does the river run?"], prompt_name="query")
```

sentence-transformers {other}:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
documents = model.encode(["{EXAMPLE}"]){query}
```

It needs {needs}. {causal}"""


def _input(facts: dict[str, Any], input_format: InputFormat) -> str:
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


def _scores(history: list[dict[str, Any]]) -> str:
    """The measurements of the run, one row per stage."""
    metrics = list(dict.fromkeys(metric for row in history for metric in row["scores"]))
    lines = [["stage", *metrics, "seconds"]]
    for row in history:
        scores = [f"{row['scores'][metric]:.4f}" if metric in row["scores"] else "" for metric in metrics]
        lines.append([str(row["stage"]), *scores, f"{row['seconds']:.0f}"])
    lines.insert(1, ["---"] + ["---:"] * (len(metrics) + 1))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## Scores\n\nMeasured in the run that made this model.\n\n{table}"


def _limits(facts: dict[str, Any]) -> str:
    items = [] if facts["native"] else [facts["reason"][0].upper() + facts["reason"][1:]]
    items += facts["notes"]
    items.append("Texts in languages or of kinds that the training data did not have may get poor vectors.")
    return "## Limits\n\n" + "\n".join(f"- {item}" for item in items)
