"""What a run is told: the device, the sizes, and how long everything may take."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MINUTES = 9.0
# Seconds of a whole run at 9 minutes. What is not used here is the training's.
STARTUP = 60  # the first import of torch and the others on a cold disk
CLOSING = 15  # to stop a part that will not stop, and to write the last page
GRACE = 4  # seconds after its own end at which a part is killed


@dataclass(frozen=True)
class Part:
    """A piece of work that fails alone."""

    name: str
    section: str
    seconds: float
    """At most so long at 9 minutes; infinite: until the end of the run."""
    function: str
    """`module:function` of this package; it takes a Context and `arguments`, and yields rows."""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """All that a worker needs to know."""

    out: str
    work: str
    """A folder for everything that is not brought back."""
    carried: str
    end: float
    """When all must be over, as time.time() says it."""
    device: str = "cuda"
    rehearse: bool = False
    minutes: float = MINUTES
    shapes: tuple[str, ...] = ("qwen3-0.6b", "llama-3.2-1b", "mistral-7b")
    max_tokens: int = 512
    piece_mib: float = 15.0
    """Largest file that may come back."""
    out_mib: float = 60.0
    """All files together that may come back."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Settings":
        values = json.loads(text)
        return Settings(**{**values, "shapes": tuple(values["shapes"])})


def part_end(part: Part, settings: Settings, now: float) -> float:
    """When a part that begins `now` must be over."""
    return min(now + part.seconds * settings.minutes / MINUTES, settings.end - CLOSING)


@dataclass(frozen=True)
class Context:
    """What a part sees of the run."""

    settings: Settings
    end: float

    @property
    def device(self) -> str:
        return self.settings.device

    @property
    def rehearse(self) -> bool:
        return self.settings.rehearse

    @property
    def left(self) -> float:
        """Seconds until this part must be over."""
        return self.end - time.time()

    def folder(self, name: str) -> Path:
        """An empty folder for files that nobody else needs."""
        path = Path(self.settings.work) / f"{name}-{time.monotonic_ns()}"
        path.mkdir(parents=True)
        return path


def parts(settings: Settings) -> list[Part]:
    """The whole run, in its order: correctness 120 s, speed 240 s, training the rest."""
    right, fast = "1 Correctness", "2 Speed and memory"
    found = [
        Part("attention-flash", right, 15, "attention:compare", ("flash",)),
        Part("attention-varlen", right, 15, "attention:compare", ("varlen",)),
        Part("attention-sdpa", right, 20, "attention:compare", ("sdpa",)),
        Part("proof", right, 15, "exactness:proofs"),
        Part("resume", right, 20, "exactness:resume"),
        Part("one-process", right, 35, "exactness:one_process"),
        Part("ceiling", fast, 10, "speed:ceiling"),
    ]
    weights = {"mistral-7b": 1.5}
    share = 190 / sum(weights.get(shape, 1.0) for shape in settings.shapes)
    found += [
        Part(f"speed-{shape}", fast, share * weights.get(shape, 1.0), "speed:side_by_side", (shape,))
        for shape in settings.shapes
    ]
    return [
        *found,
        Part("mntp", fast, 40, "mntp:step"),
        Part("training", "3 Training", float("inf"), "pretraining:pretrain"),
    ]
