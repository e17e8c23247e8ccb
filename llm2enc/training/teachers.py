"""Frozen teachers: models that a stage asks about its texts, raw and under the teacher's own prompts.

A text is encoded once in a run: what a teacher has answered is kept by text, in memory by every process and in a file of
the stage's folder, from which a resumed run goes on. Numbers depend in their last bits on what is encoded together, so
that is fixed too: the texts of a global batch that are new are cut into pieces of like length, whatever the number of
processes, and each process encodes some of the pieces.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm2enc import distributed
from llm2enc.encoding import find_encoder, open_encoder
from llm2enc.errors import InputError, NotFinite, explained, require
from llm2enc.recipe import TeacherSpec
from llm2enc.storage import sha256_of, sync_one

PIECE = 32  # texts that are encoded together
KEY = 16  # bytes of a digest by which an answer is found
Item = tuple[str, str]
"""The prompt and the text that an encoder reads, or the query and the document that a cross-encoder reads."""


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch of T texts, N of them documents."""

    scores: Tensor
    """(N,) of each document with the query of its row: cosines, or what a cross-encoder returns."""
    vectors: Tensor | None
    """(T, D) of all texts; None from a cross-encoder."""


class Teacher:
    """One opened teacher and its answers so far."""

    def __init__(self, spec: TeacherSpec):
        """Raises InputError for a model that cannot be opened or is of the other kind, and for a prompt it does not have."""
        self.spec = spec
        self._answer = _cross_encoder(spec) if spec.kind == "cross_encoder" else _encoder(spec)
        with explained(f"teacher {spec.model}", "name a model that encodes texts"):
            self.width = self._answer([(spec.query_prompt, "a text")]).shape[1]
        self._known: dict[bytes, np.ndarray] = {}
        self._unsaved: list[np.ndarray] = []
        self._record = np.dtype([("key", f"V{KEY}"), ("step", "<u4"), ("answer", "<f4", (self.width,))])

    def ask(self, items: Sequence[Item], step: int, device: torch.device) -> np.ndarray:
        """(len(items), width) float32. All processes ask the same; the new items are shared out among them."""
        keys = [hashlib.sha256("\0".join(item).encode()).digest()[:KEY] for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        if new:
            pieces = list(self._pieces(new))
            answers = self._shared_out([[new[key] for key in piece] for piece in pieces], device)
            self._learn([key for piece in pieces for key in piece], answers, step)
        return np.stack([self._known[key] for key in keys])

    def _pieces(self, new: dict[bytes, Item]) -> Iterable[list[bytes]]:
        """Keys of items that are encoded together: of one prompt, and of like length."""
        prompted = self.spec.kind == "encoder"
        for prompt in sorted({item[0] for item in new.values()}) if prompted else [None]:
            own = [key for key, item in new.items() if prompt in (None, item[0])]
            own.sort(key=lambda key: (sum(map(len, new[key])), key))
            yield from (own[start : start + PIECE] for start in range(0, len(own), PIECE))

    def _shared_out(self, pieces: list[list[Item]], device: torch.device) -> np.ndarray:
        """The answers to all pieces, in order, of which this process computes its share."""
        answers = [self._checked(pieces[number]) for number in distributed.rank_slice(len(pieces))]
        own = torch.from_numpy(np.concatenate([np.empty((0, self.width), np.float32), *answers]))
        counts = [
            sum(len(pieces[number]) for number in distributed.rank_slice(len(pieces), process))
            for process in range(distributed.world_size())
        ]
        return distributed.gather(own.to(device), counts).cpu().numpy()

    def _checked(self, piece: list[Item]) -> np.ndarray:
        answers = self._answer(piece)
        bad = np.flatnonzero(~np.isfinite(answers).all(axis=1))
        if len(bad):
            raise NotFinite(f"the teacher {self.spec.model} answers {piece[bad[0]][1]!r:.80} with what is no number")
        return answers

    def _learn(self, keys: list[bytes], answers: np.ndarray, step: int) -> None:
        self._known.update(zip(keys, answers, strict=True))
        if distributed.is_main():
            records = np.empty(len(keys), self._record)
            records["key"], records["step"], records["answer"] = np.array(keys, f"V{KEY}"), step, answers
            self._unsaved.append(records)

    def save(self, file: Path) -> None:
        """Add the answers since the last time to the file; one process calls it."""
        with file.open("ab") as out:
            for records in self._unsaved:
                out.write(records.tobytes())
        sync_one(file)
        self._unsaved.clear()

    def resume(self, file: Path, step: int) -> None:
        """Know what was known before step `step`, and let the file say no more. InputError if there is no file."""
        if step and not file.is_file():
            raise InputError(
                f"{file} is missing: it holds what the teacher {self.spec.model} said before the checkpoint beside it. Put "
                "it back, or start again with --overwrite"
            )
        records = np.fromfile(file, self._record) if step else np.empty(0, self._record)
        records = records[records["step"] < step]
        self._known = dict(zip((key.tobytes() for key in records["key"]), records["answer"], strict=True))
        distributed.barrier()  # all have read it
        if distributed.is_main():
            with file.open("ab") as out:
                out.truncate(len(records) * self._record.itemsize)


class Teachers:
    """The teachers of a stage."""

    def __init__(self, specs: Iterable[TeacherSpec]):
        """Opens them, which raises InputError as `Teacher` does."""
        self._opened = {spec: Teacher(spec) for spec in dict.fromkeys(specs)}

    def resume(self, folder: Path, step: int) -> None:
        """Know what was known before step `step` of the stage in `folder`; raises as `Teacher.resume`."""
        for number, teacher in enumerate(self._opened.values()):
            teacher.resume(answers_file(folder, number), step)

    def save(self, folder: Path) -> None:
        """Keep the answers so far; to be called before the checkpoint that builds on them."""
        if distributed.is_main():
            for number, teacher in enumerate(self._opened.values()):
                teacher.save(answers_file(folder, number))

    def width(self, spec: TeacherSpec) -> int:
        """Width of a teacher's vectors."""
        return self._opened[spec].width

    def lessons(
        self,
        texts: Sequence[str],
        queries: Sequence[int],
        documents: Sequence[int],
        owners: Sequence[int],
        step: int,
        device: torch.device,
    ) -> dict[TeacherSpec, Lesson]:
        """What every teacher says of the texts of a global batch.

        texts               T
        queries, documents  which of them are what
        owners              of each document: which of `queries` it belongs to
        """
        own = [queries[owner] for owner in owners]
        found: dict[TeacherSpec, Lesson] = {}
        for spec, teacher in self._opened.items():
            if spec.kind == "cross_encoder":
                pairs = [(texts[query], texts[document]) for query, document in zip(own, documents, strict=True)]
                scores = torch.from_numpy(teacher.ask(pairs, step, device)[:, 0])
                found[spec] = Lesson(scores.to(device), None)
                continue
            prompts = [spec.document_prompt] * len(texts)
            for query in queries:
                prompts[query] = spec.query_prompt
            vectors = torch.from_numpy(teacher.ask(list(zip(prompts, texts, strict=True)), step, device)).to(device)
            found[spec] = Lesson(torch.cosine_similarity(vectors[own], vectors[documents]), vectors)
        return found


def answers_file(folder: Path, number: int | str) -> Path:
    """Where the answers of a stage's teacher are kept; `*` for all of them as a pattern."""
    return folder / f"teacher-{number}.answers"


def teacher_digest(spec: TeacherSpec) -> str:
    """SHA-256 of a teacher's files but for texts about it, or its commit on the hub. InputError if it is not at hand."""
    place = find_encoder(spec.model) if spec.kind == "encoder" else None
    folder = place or Path(spec.model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        with explained(
            f"teacher {spec.model}", "give a directory, or a hub id such as owner/name", (ValueError, OSError)
        ):
            return Path(snapshot_download(spec.model, local_files_only=True)).name
    return sha256_of(path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".md")


def _encoder(spec: TeacherSpec) -> Callable[[Sequence[Item]], np.ndarray]:
    model = open_encoder(spec.model)
    known = list(dict.fromkeys(["query", "document", *model.prompts]))
    for prompt in (spec.query_prompt, spec.document_prompt):
        if prompt not in known:
            raise InputError(f"teacher {spec.model} has no prompt named {prompt!r}; it has {', '.join(known)}")

    def vectors(items: Sequence[Item]) -> np.ndarray:
        ((prompt, _), *_) = items
        return np.asarray(model.encode([text for _, text in items], prompt_name=prompt), dtype=np.float32)

    return vectors


def _cross_encoder(spec: TeacherSpec) -> Callable[[Sequence[Item]], np.ndarray]:
    require("sentence_transformers", extra="serve")
    from sentence_transformers import CrossEncoder

    kinds = (ValueError, OSError)
    with explained(f"teacher {spec.model}", "name a cross-encoder of sentence-transformers", kinds):
        model = CrossEncoder(spec.model, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    architectures = getattr(model.config, "architectures", None) or []
    if len(model) == 1 and not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise InputError(
            f"teacher {spec.model} ({', '.join(architectures)}) has no layer that scores a pair, so that its scores would "
            "be random; name a cross-encoder, or ask it for vectors with `kind: encoder`"
        )
    if model.num_labels != 1:
        raise InputError(
            f"teacher {spec.model} returns {model.num_labels} numbers a pair; a teacher's score is one number"
        )

    def scores(items: Sequence[Item]) -> np.ndarray:
        found = model.predict(list(items), activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return np.asarray(found, dtype=np.float32).reshape(-1, 1)

    return scores
