"""What can be checked of a study file from the file and the registries alone, and how problems find their lines.

The names of methods, strategies, formats, metrics and backends, the options of each, and the coefficients are
checked against the plug-ins themselves, so a new plug-in needs no change here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any

from pydantic import BaseModel, ValidationError

from mergesearch.errors import MergesearchError, Problem, ProblemsError, StudyFileError, unknown
from mergesearch.evaluation.backends import BACKENDS
from mergesearch.evaluation.formats import FORMATS
from mergesearch.evaluation.metrics import parse_metric
from mergesearch.merging.method import MergeMethod
from mergesearch.merging.registry import METHODS
from mergesearch.search.ranges import number
from mergesearch.search.registry import STRATEGIES
from mergesearch.search.space import SearchSpace, build_space
from mergesearch.sources.layout import COMPONENTS
from mergesearch.study_file import ParsedStudy
from mergesearch.study_prompts import prompt_dimensions, unused_lists
from mergesearch.study_schema import RESERVED_SOURCE_NAMES, CollectionEntry, ExamplesEntry, GroupsEntry, WorkersEntry

Key = str | int
_SOURCE = re.compile(r"source '([^']+)'")


class Checks:
    """Collects problems with the lines of the study file that they belong to."""

    def __init__(self, parsed: ParsedStudy) -> None:
        self._parsed = parsed
        self._keys: list[tuple[Key, ...]] = []
        self._problems: list[Problem] = []

    def add(self, message: str, *keys: Key) -> None:
        """Note a problem of the entry at `keys`; the same problem twice is one."""
        self._keys.append(keys)
        problem = Problem(message, self._parsed.where(*keys))
        if problem not in self._problems:
            self._problems.append(problem)

    def found_at(self, *keys: Key) -> bool:
        """Whether something at `keys` or below is a problem."""
        return any(k[: len(keys)] == keys for k in self._keys)

    @contextmanager
    def at(self, *keys: Key) -> Iterator[None]:
        """Errors raised inside become problems of the entry at `keys`, or of the source that they name."""
        try:
            yield
        except ProblemsError as error:
            for problem in error.problems:
                source = _SOURCE.fullmatch(problem.where)
                self.add(str(problem), *keys, *(source.groups() if source and keys == ("sources",) else ()))
        except MergesearchError as error:
            self.add(str(error), *keys)

    @contextmanager
    def below(self, *keys: Key) -> Iterator[None]:
        """Like `at`, for errors whose problems say by dotted keys where below `keys` they lie."""
        try:
            yield
        except StudyFileError as error:
            for problem in error.problems:
                inner = problem.where.split(".") if problem.where else []
                self.add(f"{'.'.join([*map(str, keys), *inner])}: {problem.message}", *keys, *inner)

    def options(self, model: type[BaseModel], options: Mapping[str, Any], *keys: Key, beside: type[BaseModel]) -> None:
        """Check a plug-in's options against its own model; `beside` is what else may stand at `keys`."""
        try:
            model(**options)
        except ValidationError as error:
            known = [*model.model_fields, *beside.model_fields]
            for e in error.errors(include_url=False):
                name = ".".join(str(k) for k in e["loc"])
                message = e["msg"].removeprefix("Value error, ")
                if e["type"] == "extra_forbidden":
                    message = unknown("key", name, known)
                elif e["type"] == "missing":
                    message = f"{name}: is required"
                elif name:
                    message = f"{name}: {message[:1].lower()}{message[1:]}, found {e['input']!r}"
                self.add(message, *keys, *e["loc"])

    def raise_if_any(self) -> None:
        """Raise the StudyFileError that lists everything found."""
        if self._problems:
            raise self._parsed.problems(self._problems)


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
    _check_evaluation(checks, parsed)
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


def check_coefficients(parsed: ParsedStudy, checks: Checks) -> None:
    """Check coefficients against the groups that follow from the file alone, where they do."""
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
    # A model need not have a final norm or a pooler: coefficients are wrong when no choice of them fits.
    optional = [p for p in ("final_norm", "pooler") if getattr(groups, p) == "own"]
    candidates = [c for n in range(len(optional), -1, -1) for c in combinations(optional, n)]
    errors = []
    for present in candidates:
        try:
            search_space(parsed, _certain_groups(groups) | dict.fromkeys(present, 1.0))
            return
        except StudyFileError as error:
            errors.append(error)
    with checks.below("merge", "coefficients"):
        raise errors[0]


def search_space(parsed: ParsedStudy, groups: Mapping[str, float]) -> SearchSpace:
    """The space over these merged groups, given with their depths.

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


def _certain_groups(groups: GroupsEntry) -> dict[str, float]:
    """The merged groups that every model has, with the depths of even segments."""
    n = (groups.segments or 1) if groups.boundaries is None else len(groups.boundaries) + 1
    parts = [f"_{component}" for component in COMPONENTS] if groups.components else [""]
    own = {"embeddings": 0.0} if groups.embeddings == "own" else {}
    return own | {f"segment_{i + 1}{part}": (i + 0.5) / n for i in range(n) for part in parts}


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


def _check_objectives(checks: Checks, parsed: ParsedStudy) -> None:
    collections, racing = parsed.content.evaluation.collections, parsed.content.search.racing
    keys = ("evaluation", "collections")
    names = dict.fromkeys(c.objective for c in collections)
    for i, c in enumerate(collections):
        if c.objective is None and len(names) > 1:
            checks.add("name an `objective` here as well, or none anywhere", *keys, i)
    for name in names:
        if not any(c.weight for c in collections if c.objective == name):
            what = "collections" if name is None else f"collections of objective {name!r}"
            checks.add(f"the {what} have no weight: give at least one a `weight` above 0", *keys)
    if racing is not None and len(names) > 1:
        message = "a trial cannot be stopped early by its value where there are several objectives: leave `racing` out"
        checks.add(message, "search", "racing")
    guarded = [i for i, c in enumerate(collections) if c.may_lose is not None]
    if guarded and not _gives_template(parsed):
        message = (
            f"is measured against the template alone, and no coefficients of {parsed.content.merge.method} give that: "
            "leave it out, or take another method or template"
        )
        checks.add(f"may_lose: {message}", *keys, guarded[0], "may_lose")


def _gives_template(parsed: ParsedStudy) -> bool:
    merge, sources = parsed.content.merge, list(parsed.content.sources)
    if merge.method not in METHODS or merge.template not in sources:
        return True  # a problem of its own
    method = METHODS[merge.method]
    base = merge.base if method.takes_base else None
    merged = [s for s in sources if s != base]
    return method.coefficients_for_source(merge.template, merged, base, merge.template) is not None


def _check_evaluation(checks: Checks, parsed: ParsedStudy) -> None:
    evaluation = parsed.content.evaluation
    names = [c.name for c in evaluation.collections]
    for i, collection in enumerate(evaluation.collections):
        keys = ("evaluation", "collections", i)
        if names[i] in names[:i]:
            checks.add(f"two collections are called {names[i]!r}", *keys, "name")
        if collection.format not in FORMATS:
            checks.add(unknown("collection format", collection.format, FORMATS), *keys, "format")
            continue
        options = FORMATS[collection.format].options
        checks.options(options, collection.options, *keys, beside=CollectionEntry)
        if collection.test and not checks.found_at(*keys):
            name, merged = collection.tested
            if name not in FORMATS:
                checks.add(unknown("collection format", name, FORMATS), *keys, "test", "format")
            else:
                checks.options(FORMATS[name].options, merged, *keys, "test", beside=CollectionEntry)
    for kind in unused_lists(evaluation):
        checks.add(
            "every collection has a prompt of its own, so this list is not searched", "evaluation", "prompts", kind
        )
    _check_objectives(checks, parsed)
    with checks.at("evaluation", "metric"):
        parse_metric(evaluation.metric)
    if evaluation.search not in BACKENDS:
        checks.add(unknown("search backend", evaluation.search, BACKENDS), "evaluation", "search")
