"""From numbers to sentences: which variant to use, and with what confidence. Every sentence carries its numbers."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from llm2enc.comparison.results import Layers, SystemResult
from llm2enc.evaluation import Interval, difference


def advise(
    systems: Sequence[SystemResult],
    differences: Mapping[str, Interval],
    baseline: SystemResult | None,
    layers: Sequence[Layers],
    stages: Sequence[str],
    rows: int,
) -> list[str]:
    """Sentences, the most important first.

    systems   best first
    differences  by name of every other system: how far the best lies above it
    stages       names of the systems in the order in which they were measured: of a run, in the order of training
    rows         rows and queries that the scores were computed from
    """
    best = systems[0]
    sentences = [_choice(systems, differences)]
    if baseline is not None:
        sentences += _useless(best, baseline)
    by_name = {system.name: system for system in systems}
    sentences += _direction(by_name)
    sentences += _echo(by_name)
    sentences += _pooling(by_name)
    sentences += _training(by_name, stages)
    sentences += _layers(layers)
    sentences += _anisotropy(best)
    if best.mean.high - best.mean.low > 0.1:
        sentences.append(
            f"The data is small ({rows} rows and queries): the best mean score is known to "
            f"±{(best.mean.high - best.mean.low) / 2:.3f} only. More of your own data would decide more."
        )
    return [*sentences, "Ranges are 95 % intervals: of a difference by paired bootstrap over the same rows."]


def _choice(systems: Sequence[SystemResult], differences: Mapping[str, Interval]) -> str:
    """The best, or the cheapest of those without a significant difference from it."""
    best = systems[0]
    said = f"mean score {_range(best.mean)}"
    if len(systems) == 1:
        return f"{best.name}: {said}. Nothing was compared with it."
    level = [best, *(other for other in systems[1:] if not differences[other.name].certain)]
    choice = min(level, key=lambda system: system.tokens)
    if choice is best and len(level) == 1:
        runner = systems[1]
        return (
            f"Use {best.name}: {said}. It is better than the next, {runner.name}, by {_gap(differences[runner.name])}."
        )
    if choice is best:
        equals = _list([other.name for other in level[1:]])
        return f"Use {best.name}: {said}. No significant difference from {equals} on this data, and none of them is cheaper."
    return (
        f"Use {choice.name}: no significant difference from the best, {best.name} ({said}; difference "
        f"{_gap(differences[choice.name])}), and reads {choice.tokens:.0f} tokens per text instead of {best.tokens:.0f}."
    )


def _useless(best: SystemResult, baseline: SystemResult) -> list[str]:
    gap = difference(best.outcomes, baseline.outcomes)
    if gap.low > 0:
        return [f"It beats word overlap (TF-IDF, {baseline.mean.value:.3f}) by {_gap(gap)}."]
    if gap.high < 0:
        return [
            f"Word overlap alone (TF-IDF) scores {baseline.mean.value:.3f}, {_gap(_turned(gap))} beside the best of these: "
            "none is good enough as it stands. Train it (llm2enc convert) or take a stronger model."
        ]
    return [f"No significant difference from word overlap (TF-IDF, {baseline.mean.value:.3f}; difference {_gap(gap)})."]


def _direction(by_name: Mapping[str, SystemResult]) -> list[str]:
    return [
        _versus(by_name[two], by_name[one], f"Bidirectional attention without training{of}", "helps", "hurts")
        for one, two, of in _pairs(by_name, "causal-mean", "bidirectional-mean")
    ]


def _echo(by_name: Mapping[str, SystemResult]) -> list[str]:
    sentences = []
    for one, two, of in _pairs(by_name, "causal-mean", "echo-mean"):
        ratio = by_name[two].tokens / by_name[one].tokens
        what = f"Reading the text twice (Echo{of}, {ratio:.1f} times the tokens)"
        sentences.append(_versus(by_name[two], by_name[one], what, "helps", "hurts"))
    return sentences


def _pooling(by_name: Mapping[str, SystemResult]) -> list[str]:
    return [
        _versus(by_name[two], by_name[one], f"Mean pooling instead of the last token{of}", "helps", "hurts")
        for one, two, of in _pairs(by_name, "causal-last", "causal-mean")
    ]


def _training(by_name: Mapping[str, SystemResult], stages: Sequence[str]) -> list[str]:
    """What each stage of a run adds to the one before."""
    runs: dict[str, list[str]] = {}
    for name in stages:
        if re.search(r"(^| )(untrained|after \w+)$", name):
            runs.setdefault(re.sub(r"(untrained|after \w+)$", "", name), []).append(name)
    return [
        _versus(by_name[two], by_name[one], f"Training: {two}, beside {one.removeprefix(run)},", "helps", "hurts")
        for run, names in runs.items()
        for one, two in pairwise(names)
    ]


def _layers(layers: Sequence[Layers]) -> list[str]:
    sentences = []
    for found in layers:
        last = len(found.scores) - 1
        best = max(range(last + 1), key=found.scores.__getitem__)
        if best == last or found.gain is None:
            continue
        sure = found.gain.low > 0
        if best == 0:
            verdict = "the embeddings are better" if sure else "the embeddings look better, but not surely,"
        else:
            verdict = (
                f"layer {best} of {last} is better" if sure else f"layer {best} of {last} looks better, but not surely,"
            )
        keep = f" `model.layers: {best}` in a recipe keeps the model up to there, and its final norm." if best else ""
        sentences.append(
            f"{found.name}: {verdict} than the last layer by {_gap(found.gain)}. It was chosen on the same data.{keep}"
        )
    return sentences


def _anisotropy(best: SystemResult) -> list[str]:
    mean, spread = best.similarities.anisotropy, best.similarities.spread
    if mean < 0.5:
        return []
    return [
        f"Two random texts have a cosine of {mean:.2f} ± {spread:.2f} with {best.name}: rank by it, but don't set "
        "thresholds as for other models."
    ]


def _pairs(by_name: Mapping[str, SystemResult], one: str, two: str) -> list[tuple[str, str, str]]:
    """Systems of one model that differ in their variant, with the words that name the model."""
    owners = [name.removesuffix(one) for name in by_name if name.endswith(one)]
    return [
        (f"{owner}{one}", f"{owner}{two}", f" of {owner.strip()}" if owner.strip() else "")
        for owner in owners
        if f"{owner}{two}" in by_name
    ]


def _versus(first: SystemResult, second: SystemResult, what: str, helps: str, hurts: str) -> str:
    gap = difference(first.outcomes, second.outcomes)
    verdict = "makes no significant difference"
    if gap.certain:
        verdict = helps if gap.low > 0 else hurts
    return f"{what} {verdict}: {second.mean.value:.3f} to {first.mean.value:.3f}, {_gap(gap)}."


def _turned(gap: Interval) -> Interval:
    return Interval(-gap.value, -gap.high, -gap.low, 1 - gap.above_zero)


def _gap(gap: Interval) -> str:
    return f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def _range(score: Interval) -> str:
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
