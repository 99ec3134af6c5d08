"""What can be checked of a study file from the file and the registries alone, and how problems find their lines.

The names of methods, strategies, formats, metrics and backends, the options of each, and the coefficients are
checked against the plug-ins themselves, so a new plug-in needs no change here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

from mergesearch.checks import Checks, Key
from mergesearch.errors import StudyFileError, unknown
from mergesearch.evaluation.formats import FORMATS
from mergesearch.evaluation_checks import check_evaluation
from mergesearch.merging.method import MergeMethod
from mergesearch.merging.registry import METHODS
from mergesearch.search.ranges import number
from mergesearch.search.registry import STRATEGIES
from mergesearch.search.space import SearchSpace, build_space
from mergesearch.sources.layout import COMPONENTS
from mergesearch.study_file import ParsedStudy
from mergesearch.study_prompts import prompt_dimensions
from mergesearch.study_schema import RESERVED_SOURCE_NAMES, ExamplesEntry, GroupsEntry, WorkersEntry


def check_file(parsed: ParsedStudy) -> None:
    """Check a study file without looking at any model or collection.

    Raises:
        StudyFileError: with every problem.
    """
    checks = Checks(parsed)
    check_names(parsed, checks)
    check_coefficients(parsed, checks)
    checks.raise_if_any()


def check_names(parsed: ParsedStudy, checks: Checks) -> None:
    """Names, options and references; coefficients are left to `check_coefficients` or to the real model."""
    content, merge = parsed.content, parsed.content.merge
    for name in content.sources:
        if name in RESERVED_SOURCE_NAMES or "." in name:
            checks.add(f"{name!r} cannot name a source: it is a word of coefficients or holds a dot", "sources", name)
    for name, source in content.sources.items():
        if source.adapter_of is not None and source.adapter_of not in content.sources:
            checks.add(unknown("source", source.adapter_of, content.sources), "sources", name, "adapter_of")
    for role in ("template", "base"):
        name = getattr(merge, role)
        if name is not None and name not in content.sources:
            checks.add(unknown("source", name, content.sources), "merge", role)
    if merge.method not in METHODS:
        checks.add(unknown("merge method", merge.method, METHODS), "merge", "method")
    else:
        _check_method(checks, parsed, METHODS[merge.method])
    if not _well_formed(merge.groups):
        checks.add("say exactly one of `segments`, `boundaries`, `per_layer`", "merge", "groups")
    copied = merge.groups.embeddings == "template"
    if merge.other_vocabulary == "template" and not copied:
        message = "`template` leaves the embeddings to the template: write `embeddings: template` under `groups`, or "
        checks.add(f"{message}`shared_tokens` here", "merge", "other_vocabulary")
    if merge.other_vocabulary == "shared_tokens" and copied:
        message = (
            "`shared_tokens` merges embeddings: give them another rule under `groups`, such as `embeddings: own`, or "
        )
        checks.add(f"{message}write `template` here", "merge", "other_vocabulary")
    _check_search(checks, parsed)
    check_evaluation(parsed, checks)
    if content.workers.kind == "local" and content.workers.count != 1:
        checks.add("local is one worker; use `kind: ray` for several", "workers", "count")
    device = content.workers.device
    if content.workers.residency == "pinned" and device != "auto" and not device.startswith("cuda"):
        checks.add(f"pinned is for CUDA devices, and `device` is {device}; take auto or mapped", "workers", "residency")
    _check_gpus(checks, content.workers)


def _check_gpus(checks: Checks, workers: WorkersEntry) -> None:
    if workers.gpus == 1:
        return
    if workers.device not in ("auto", "cuda"):
        message = f"a model is spread over the first {workers.gpus} CUDA GPUs of a worker, and `device` is"
        checks.add(f"{message} {workers.device}: write `cuda`, or leave it out", "workers", "gpus")
    if workers.prefix_cache not in ("auto", "off"):
        message = "hidden states are not reused by a model on several GPUs: write `off`, or leave it out"
        checks.add(message, "workers", "prefix_cache")


def check_coefficients(parsed: ParsedStudy, checks: Checks, *, searched: bool = True) -> None:
    """Check coefficients against the groups that follow from the file alone, where they do.

    Args:
        parsed: the study file.
        checks: are told what is wrong.
        searched: there has to be something to search.
    """
    merge, groups = parsed.content.merge, parsed.content.merge.groups
    if merge.method not in METHODS or merge.template not in parsed.content.sources:
        return
    if not _well_formed(groups):
        return
    if groups.per_layer:  # how many groups that makes, the model says; the names are known
        method = METHODS[merge.method]
        known = (*method.coefficients, *method.shorthands, *method.measured)
        for name in merge.coefficients:
            if name not in known:
                message = unknown(f"coefficient of {method.name}", name, known)
                checks.add(f"merge.coefficients.{name}: {message}", "merge", "coefficients", name)
        return
    # A model need not have a final norm, a pooler, a head or a decoder: coefficients are wrong when no choice fits.
    whole = parsed.content.evaluation.rerank is not None
    ends = ("final_norm", "pooler", "head") if whole else ("final_norm", "pooler")
    optional = [p for p in ends if getattr(groups, p) == "own"]
    candidates = [c for n in range(len(optional), -1, -1) for c in combinations(optional, n)]
    errors = []
    for decodes, present in product([False, True] if whole and groups.decoder == "own" else [False], candidates):
        certain = _certain_groups(groups, decodes=decodes)
        try:
            search_space(parsed, certain | dict.fromkeys(present, 1.0), searched=searched)
            return
        except StudyFileError as error:
            errors.append(error)
    with checks.below("merge", "coefficients"):
        raise errors[0]


def search_space(parsed: ParsedStudy, groups: Mapping[str, float], *, searched: bool = True) -> SearchSpace:
    """The space over these merged groups, given with their depths; of a single point only where nothing is searched.

    Raises:
        StudyFileError: places are dotted keys below `merge.coefficients`.
    """
    merge, method = parsed.content.merge, METHODS[parsed.content.merge.method]
    base = merge.base if method.takes_base else None  # a base too many is a problem of its own
    return build_space(
        method,
        sources=[s for s in parsed.content.sources if s != base],
        groups=groups,
        template=merge.template,
        config={name: entry for name, entry in merge.coefficients.items() if name not in method.measured},
        base=base,
        prompts=prompt_dimensions(parsed.content.evaluation),
        searched=searched,
    )


def sources_to_measure(parsed: ParsedStudy) -> dict[str, tuple[str, ...]]:
    """What the method measures, and of which sources; none where it measures nothing."""
    merge, method = parsed.content.merge, METHODS[parsed.content.merge.method]
    names = method.merged_sources(parsed.content.sources, merge.base, merge.template)
    return {name: method.measured_sources(name, names, merge.options) for name in method.measured}


def given_measurements(parsed: ParsedStudy) -> dict[str, dict[str, float]]:
    """Measurements that the study file gives as numbers, of the sources that matter."""
    given = parsed.content.merge.coefficients
    return {
        name: {source: float(given[name][source]) for source in sources}
        for name, sources in sources_to_measure(parsed).items()
        if name in given
    }


def _well_formed(groups: GroupsEntry) -> bool:
    return sum([groups.segments is not None, groups.boundaries is not None, groups.per_layer]) == 1


def _certain_groups(groups: GroupsEntry, *, decodes: bool) -> dict[str, float]:
    """The merged groups that every model has, or every encoder-decoder, with the depths of even segments."""
    n = (groups.segments or 1) if groups.boundaries is None else len(groups.boundaries) + 1
    parts = [f"_{component}" for component in COMPONENTS] if groups.components else [""]
    own = {"embeddings": 0.0} if groups.embeddings == "own" else {}
    stacks = ["", "decoder_"] if decodes else [""]
    return own | {
        f"{stack}segment_{i + 1}{part}": (s + (i + 0.5) / n) / len(stacks)
        for s, stack in enumerate(stacks)
        for i in range(n)
        for part in parts
    }


def _check_method(checks: Checks, parsed: ParsedStudy, method: MergeMethod) -> None:
    merge, sources = parsed.content.merge, parsed.content.sources
    if method.needs_base and merge.base is None:
        checks.add(f"{method.name} takes task vectors from a base: name a source as `base:`", "merge", "method")
    if not method.takes_base and merge.base is not None:
        checks.add(f"{method.name} has no base; remove `base:` or choose a method of task vectors", "merge", "base")
    n = len(sources) - (method.takes_base and merge.base in sources)
    if n < method.min_sources or (method.max_sources is not None and n > method.max_sources):
        most = "" if method.max_sources is None else f" and at most {method.max_sources}"
        beside = " beside the base" if merge.base else ""
        checks.add(f"{method.name} needs at least {method.min_sources}{most} sources{beside}, found {n}", "sources")
    for name, setting in merge.options.items():
        option = method.options.get(name)
        if option is None:
            checks.add(unknown(f"option of {method.name}", name, method.options), "merge", "options", name)
        elif not option.accepts(setting):
            message = f"{name} is {option.wanted}, found {setting!r}"
            checks.add(message, "merge", "options", name)
    if merge.template in sources:
        _check_measured(checks, parsed, method)


def _check_measured(checks: Checks, parsed: ParsedStudy, method: MergeMethod) -> None:
    """What is measured of the sources has to be given, or examples to measure it on."""
    merge = parsed.content.merge
    open_ones = []
    for name, sources in sources_to_measure(parsed).items():
        if name in merge.coefficients:
            _check_given(checks, parsed, name, sources)
        elif sources:
            open_ones.append(f"{name} of {', '.join(sources)}")
    if open_ones and merge.examples is None:
        message = (
            f"{method.name} weighs sources by the {' and the '.join(open_ones)}: name `examples:` to measure it on"
        )
        checks.add(f"{message}, or give the numbers, coefficients: {{loss: {{SOURCE: …}}}}", "merge", "method")
    if merge.examples is not None and not open_ones:
        given = [name for name in method.measured if name in merge.coefficients]
        why = f"`{given[0]}` is given" if given else f"{method.name} measures nothing of these sources"
        checks.add(f"{why}: remove `examples:`", "merge", "examples")
    elif merge.examples is not None:
        _check_examples(checks, parsed, merge.examples)


def _check_given(checks: Checks, parsed: ParsedStudy, name: str, needed: tuple[str, ...]) -> None:
    keys, given = ("merge", "coefficients", name), parsed.content.merge.coefficients[name]
    if not isinstance(given, Mapping):
        checks.add(f"{name} is measured and not searched: give one number per source, found {given!r}", *keys)
        return
    for source, value in given.items():
        if source not in parsed.content.sources:
            checks.add(f"{name}: {unknown('source', str(source), parsed.content.sources)}", *keys, source)
        elif number(value) is None:
            checks.add(
                f"{name}.{source} is measured and not searched: expected a number, found {value!r}", *keys, source
            )
    for source in needed:
        if source not in given:
            checks.add(f"{name} has no value for source {source!r}", *keys)


def _check_examples(checks: Checks, parsed: ParsedStudy, examples: ExamplesEntry) -> None:
    collection = examples.collection
    keys: tuple[Key, ...] = ("merge", "examples")
    if (examples.file is None) == (collection is None):
        checks.add("say where examples come from: exactly one of `file` and `collection`", *keys)
    if collection is None:
        return
    keys = (*keys, "collection")
    if examples.loss == "language_model":
        checks.add("a collection has no outputs to generate: give a `file` of inputs and outputs", *keys)
    if collection.format not in FORMATS:
        checks.add(unknown("collection format", collection.format, FORMATS), *keys, "format")
        return
    checks.options(FORMATS[collection.format].options, collection.options, *keys, beside=type(collection))

    def read(name: str, options: Mapping[str, Any], split: str) -> tuple[Any, ...]:
        """What is read, however its path is written."""
        folder = options.get("folder")
        return name, {**options, "folder": folder and (parsed.folder / str(folder)).resolve()}, split

    tests = [read(*c.tested, c.test_split) for c in parsed.content.evaluation.collections]
    if collection.split == "test" or read(collection.format, collection.options, collection.split) in tests:
        checks.add("examples may not be test queries, which are to choose nothing", *keys, "split")


def _check_search(checks: Checks, parsed: ParsedStudy) -> None:
    search = parsed.content.search
    strategy = search.strategy
    start = search.start_from
    if start is not None and start.study == parsed.content.study and start.storage in (None, parsed.content.storage):
        checks.add("a study cannot start from itself: name another one", "search", "start_from")
    if strategy.name not in STRATEGIES:
        checks.add(unknown("strategy", strategy.name, STRATEGIES), "search", "strategy", "name")
        return
    options = STRATEGIES[strategy.name].Options
    checks.options(options, strategy.options, "search", "strategy", beside=type(strategy))
    if (
        search.trials is None
        and search.minutes is None
        and search.gpu_hours is None
        and not STRATEGIES[strategy.name].finite
    ):
        checks.add(f"{strategy.name} needs a budget: `trials:`, `minutes:` or `gpu_hours:`", "search")
