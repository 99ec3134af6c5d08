"""The comparison as tables: means and standard deviations, paired tests, and what was chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergesearch.evaluation.labels import PSEUDO
from mergesearch.evaluation.significance import Comparison, compare, holm
from mergesearch.protocols.limited_data import RIVAL, Outcome
from mergesearch.results.evaluate import Table
from mergesearch.results.tested import shown_p

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """One model against another on a collection's test queries.

    Attributes:
        collection, model, against: which.
        few: of the means over the samples; else with all dev queries.
        comparison: paired by query.
        p_holm: `comparison.p_ttest`, corrected over all models that are compared with the same one.
        p_samples: of the paired t-test over the samples' means; None with all dev queries, and where every sample has
            the same difference, as where all chose the same merge: without spread there is no t.
    """

    collection: str
    model: str
    against: str
    few: bool
    comparison: Comparison
    p_holm: float
    p_samples: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        c = self.comparison
        return {
            "collection": self.collection,
            "model": self.model,
            "against": self.against,
            "dev_queries": "few" if self.few else "all",
            "difference": c.mean_difference,
            "interval": list(c.interval),
            "p_ttest": c.p_ttest,
            "p_permutation": c.p_permutation,
            "p_holm": self.p_holm,
            "p_samples": self.p_samples,
            "queries": c.n,
        }


def differences(outcome: Outcome) -> list[Difference]:
    """Merges against the rival and against the template alone, and the rival against the template alone."""
    found: list[Difference] = []
    for collection, scores in outcome.scores.items():
        alone, rival, *merges = scores
        for against, models in ((rival, merges), (alone, [rival, *merges])):
            for few in (False, True):
                found += _against(collection, scores, against, models, few=few)
    return found


def _against(collection: str, scores: Any, against: str, models: Sequence[str], *, few: bool) -> Iterator[Difference]:
    comparisons = [compare(_by_query(scores[m], few), _by_query(scores[against], few)) for m in models]
    corrected = holm([c.p_ttest for c in comparisons])
    for model, comparison, p in zip(models, comparisons, corrected, strict=True):
        samples = _over_samples(scores[model], scores[against]) if few else None
        yield Difference(collection, model, against, few, comparison, p, samples)


def _by_query(scores_RQ: NDArray[np.float64], few: bool) -> NDArray[np.float64]:
    """Scores with all dev queries, or their means over the samples, float64 [Q]."""
    found: NDArray[np.float64] = scores_RQ[1:].mean(axis=0) if few else scores_RQ[0]
    return found


def _over_samples(a_RQ: NDArray[np.float64], b_RQ: NDArray[np.float64]) -> float | None:
    a_R, b_R = a_RQ[1:].mean(axis=1), b_RQ[1:].mean(axis=1)
    return compare(a_R, b_R).p_ttest if len(set(a_R - b_R)) > 1 else None


def tables(outcome: Outcome) -> list[Table]:
    """Per collection the scores and the differences; then what was chosen."""
    settings = outcome.settings
    few = f"{settings.queries} dev queries × {settings.repeats}"
    found: list[Table] = []
    every = differences(outcome)
    for collection, scores in outcome.scores.items():
        n_queries = next(iter(scores.values())).shape[1]
        rows: list[tuple[Any, ...]] = []
        for i, (model, s) in enumerate(scores.items()):
            means = s.mean(axis=1)
            spread = (f"{means[1:].mean():.4f}", f"{means[1:].std(ddof=1):.4f}") if i else ("", "")
            rows.append((model, f"{means[0]:.4f}", *spread))
        queries = PSEUDO if collection in outcome.pseudo else "queries"
        title = f"{collection}: {outcome.metric} on {n_queries} test {queries}"
        found.append((title, ["model", f"all {outcome.dev_queries[collection]} dev queries", few, "SD"], rows))
        tested: list[tuple[Any, ...]] = [
            (
                f"{d.model} − {d.against}",
                few if d.few else "all",
                f"{d.comparison.mean_difference:+.4f}",
                "[{:+.4f}, {:+.4f}]".format(*d.comparison.interval),
                shown_p(d.comparison.p_ttest),
                shown_p(d.p_holm),
                "" if d.p_samples is None else shown_p(d.p_samples),
            )
            for d in every
            if d.collection == collection
        ]
        headers = ["difference", "with", outcome.metric, "95% interval", "p (t)", "p (t, Holm)", "p (t, samples)"]
        found.append((f"{collection}: paired by test query, and by sample", headers, tested))
    models = dict.fromkeys(p.model for p in outcome.picked)
    chosen: list[tuple[Any, ...]] = []
    for model in models:
        mine = [p for p in outcome.picked if p.model == model]
        often = Counter(p.what for p in mine if p.number).most_common()
        whole = next(p.what for p in mine if not p.number)
        chosen.append((model, whole, "; ".join(f"{what} ({n} ×)" for what, n in often)))
    found.append(("what was chosen", ["model", "all", few], chosen))
    return found


def notes(outcome: Outcome) -> list[str]:
    """What the tables do not say."""
    said = [f"test read once for each of {outcome.read} models, every reading recorded with the study"]
    if outcome.settings.repeats < 10:
        said.append(f"{outcome.settings.repeats} samples are few for a standard deviation; the paper has 10")
    said += [
        f"test queries of {name} are {PSEUDO}: no user asked them, and nobody judged them" for name in outcome.pseudo
    ]
    return [*said, f"{RIVAL} is the template fine-tuned on the same dev queries, 80% of which chose the passes"]
