"""One merge without a search: sources, a method and its own defaults, as a folder like an export.

For users who have no judged queries, or no time: what a paper would merge with, from sources named on a command line or
in a study file. Nothing is encoded and nothing is scored, and the folder says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mergesearch.errors import MergeError, Problem, StudyFileError, unknown
from mergesearch.evaluation_schema import DType, EvaluationEntry
from mergesearch.measuring import measure
from mergesearch.merging.declared import OptionValue
from mergesearch.merging.method import MergeMethod
from mergesearch.merging.registry import METHODS
from mergesearch.recipe import CoefficientValue, MergeRecipe
from mergesearch.resolving import resolve
from mergesearch.results.folder import check_destination
from mergesearch.results.licences import concerns
from mergesearch.results.provenance import FORMAT, licences_of
from mergesearch.results.unscored import save_unscored
from mergesearch.search.ranges import is_range
from mergesearch.storage.engine import redact
from mergesearch.study import Study
from mergesearch.study_file import ParsedStudy
from mergesearch.study_schema import GroupsEntry, MergeEntry, SearchEntry, SourceEntry, StudyFile, WorkersEntry

Setting = bool | float | str
OnLoss = Callable[[str, float], None]
_NO_SEARCH = SearchEntry.model_validate({"strategy": "random", "trials": 1, "enqueue": []})
BASE = "base"
"""What a base is called that is no source by another name."""


@dataclass(frozen=True)
class Merged:
    """What was made.

    Attributes:
        folder: where.
        weights: SHA-256 of the weights.
        recipe: what was merged.
        origin: where the coefficients come from that were not set; empty where all were set.
        warnings: about licences.
    """

    folder: Path
    weights: str
    recipe: MergeRecipe
    origin: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A merge that is asked for.

    Attributes:
        parsed: sources and method, as a study file would say them; its collections are not looked at.
        settings: by name what was set: coefficients (`weight`, `weight.domain`, `weight.domain.segment_1`), options.
    """

    parsed: ParsedStudy
    settings: Mapping[str, Setting]


class _Command(ParsedStudy):
    """Sources and method from a command line, whose options stand in the place of lines."""

    def where(self, *keys: str | int) -> str:
        """Such as `--source domain`."""
        entry = [str(k) for k in keys]
        if entry[:2] == ["merge", "coefficients"] or entry[:2] == ["merge", "options"]:
            return f"--set {'.'.join(entry[2:])}" if entry[2:] else "--set"
        if entry[:1] == ["sources"]:
            return f"--source {entry[1]}" if entry[1:] else "--source"
        if entry[:1] == ["merge"] and entry[1:2] in (["method"], ["base"], ["template"]):
            return f"--{entry[1]}"
        return "--other-vocabulary" if "other_vocabulary" in entry else ""

    def problems(self, problems: Sequence[Problem]) -> StudyFileError:
        """All of them, in the words of the command."""
        return StudyFileError([_in_words_of_the_command(p) for p in problems], "this merge cannot be made:")


def _in_words_of_the_command(problem: Problem) -> Problem:
    message = problem.message
    if message.startswith("merge.coefficients."):
        message = message.partition(": ")[2]
    for key, option in (
        ("name a source as `base:`", "name one with --base"),
        ("remove `base:`", "leave --base out"),
        ("`merge.other_vocabulary: shared_tokens`", "`--other-vocabulary shared_tokens`"),
        ("`other_vocabulary: template`", "`--other-vocabulary template`"),
        ("name `examples:` to measure it on, or give the numbers, coefficients: {loss: {SOURCE: …}}",
         "give the numbers, --set loss.SOURCE=…, or a study file with `examples:`"),
    ):  # fmt: skip
        message = message.replace(key, option)
    return Problem(message, problem.where)


def ask_merge(
    sources: Mapping[str, str],
    *,
    method: str = "linear",
    template: str | None = None,
    base: str | None = None,
    settings: Mapping[str, Setting] | None = None,
    embeddings: Literal["merged", "template"] = "merged",
    other_vocabulary: Literal["refuse", "template", "shared_tokens"] = "refuse",
    dtype: DType = "float32",
    seed: int = 0,
    trusted: Sequence[str] = (),
    relative_to: Path | None = None,
) -> Asked:
    """A merge of sources that are named here.

    Args:
        sources: by name a hub id, a folder or `package:NAME`.
        method: a merge method.
        template: the source that gives architecture, tokenizer and what is not merged; the first by default.
        base: what task vectors are taken from: a source's name, or where another model lies.
        settings: coefficients and options by name; what is not set is the method's own for one shot.
        embeddings: merged as the layers are, or the template's.
        other_vocabulary: what becomes of sources with another vocabulary than the template's, see the study file's key.
        dtype: of the merged weights.
        seed: of random masks.
        trusted: sources whose own Python code may be run.
        relative_to: the folder that paths start from; the current one by default.

    Raises:
        StudyFileError: a source is called what nothing can be called.
    """
    models = dict(sources)
    if base is not None and base not in models:
        if BASE in models:
            problem = Problem(f"a source is called {BASE!r}, and --base names another model: name both as sources")
            raise StudyFileError([problem], "this merge cannot be made:")
        models[BASE], base = base, BASE
    copied = embeddings == "template" or other_vocabulary == "template"
    merge = MergeEntry(
        method=method,
        template=template or next((name for name in models if name != base), ""),
        base=base,
        groups=GroupsEntry(segments=1, embeddings="template" if copied else "first_segment"),
        coefficients={},
        other_vocabulary=other_vocabulary,
    )
    entries = {name: SourceEntry(model=m, trust_remote_code=name in trusted) for name, m in models.items()}
    content = StudyFile.model_construct(
        study="merged",
        seed=seed,
        sources=entries,
        merge=merge,
        search=_NO_SEARCH,
        evaluation=EvaluationEntry.model_construct(collections=[], dtype=dtype),
        workers=WorkersEntry(),
    )
    path = (relative_to or Path()) / "command"
    return Asked(_Command(content, path, "", {}), settings or {})


def ask_in_study(parsed: ParsedStudy, settings: Mapping[str, Setting] | None = None) -> Asked:
    """A merge of a study's sources: what its file fixes stays, what it searches is set or the method's own.

    Args:
        parsed: the study file.
        settings: coefficients and options by name.
    """
    return Asked(parsed, settings or {})


def merge_once(
    asked: Asked, out: Path, *, device: str | None = None, force: bool = False, on_loss: OnLoss | None = None
) -> Merged:
    """Merge and save, with everything checked before a weight is read.

    Losses that a method weighs by are measured where a study file names examples.

    Args:
        asked: what `ask_merge` or `ask_in_study` gave.
        out: the folder to make.
        device: where to merge; by default what the study file says.
        force: replace `out` when it is an earlier export, or empty.
        on_loss: told of every source and its loss.

    Raises:
        StudyFileError: everything that is wrong with what is asked for, and with the sources.
        ExportError: `out` cannot be made.
    """
    study, recipe, origin = resolve_once(asked)
    check_destination(out, force=force, needed=[*study.folders.values(), *study.adapters.values()])
    if study.sources_to_measure:
        losses = {}
        for source in study.sources_to_measure:
            losses[source] = measure(study, source)
            if on_loss is not None:
                on_loss(source, losses[source])
        study = study.with_losses(losses)
        recipe = study.recipe_of({g.name: g.coefficients for g in recipe.groups if g.copy_from is None})
        _check(recipe)
    spec = replace(study.evaluator_spec(device=device), collections=())
    study_file = (
        {} if isinstance(asked.parsed, _Command) else {"study": study.name, "study_file": redact(asked.parsed.text)}
    )

    def told(made: dict[str, Any]) -> dict[str, Any]:
        shot = {"set": dict(asked.settings), "origin": origin}
        return {"format": FORMAT, **study_file, "fingerprint": recipe.fingerprint, "recipe": recipe.to_dict(),
                "one_shot": shot, **made}  # fmt: skip

    made = save_unscored(recipe, spec, study.checkpoints, out, force=force, told=told)
    return Merged(out, made["weights"], recipe, origin, tuple(concerns(licences_of(made))))


def resolve_once(asked: Asked) -> tuple[Study, MergeRecipe, str]:
    """Everything that a merge needs, checked; losses are still to be measured.

    Returns:
        The study without collections, the recipe, and where the coefficients come from that were not set.

    Raises:
        StudyFileError: listing everything that is wrong.
    """
    parsed, content = asked.parsed, asked.parsed.content
    method = METHODS.get(content.merge.method)
    problems: list[Problem] = []
    merge, defaults = content.merge, False
    later: dict[str, Setting] = {}
    if method is not None:
        merge, later, defaults, problems = _settled(asked, method)
    content = content.model_copy(
        update={
            "merge": merge,
            "search": _NO_SEARCH,
            "evaluation": content.evaluation.model_copy(update={"collections": []}),
        }
    )
    try:
        study = resolve(replace(parsed, content=content), searched=False)
    except StudyFileError as error:
        raise parsed.problems([*problems, *(p for p in error.problems if p not in problems)]) from None
    coefficients = {group: dict(values) for group, values in study.space.coefficients({}).items()}
    for name, value in later.items():
        problems += _apply(coefficients, name, value, study)
    recipe = study.recipe_of(coefficients)
    if not problems and not study.sources_to_measure:
        try:
            _check(recipe)
        except MergeError as error:
            problems.append(Problem(str(error)))
    if problems:
        raise parsed.problems(problems)
    shot = study.method.one_shot
    return study, recipe, shot.origin if defaults and shot is not None else ""


def _check(recipe: MergeRecipe) -> None:
    METHODS[recipe.method].check(recipe)


def _settled(asked: Asked, method: MergeMethod) -> tuple[MergeEntry, dict[str, Setting], bool, list[Problem]]:
    """The `merge` of a study file without anything to be searched.

    Returns:
        The entry; what is to be set per source or group once these are known; whether a default of the method's was
        taken; and what is wrong with names.
    """
    parsed, merge = asked.parsed, asked.parsed.content.merge
    sources = [name for name in parsed.content.sources if name != merge.base]
    in_file = merge.coefficients
    config: dict[str, Any] = {}
    names = list(in_file) or list(method.coefficients)
    taken: set[str] = set()
    for name in names:
        if name in method.measured:
            config[name] = in_file[name]
        elif name in method.coefficients or name in method.shorthands:
            default = method.one_shot_value(name, len(sources))
            entry = in_file.get(name, default)
            config[name] = _fixed(entry, default)
            if config[name] != entry or name not in in_file:
                taken.add(name)
        else:
            config[name] = in_file[name]  # whoever reads it says that it is unknown
    options: dict[str, OptionValue] = dict(merge.options)
    if not in_file and method.one_shot is not None:
        options = {**method.one_shot.options, **options}
    later: dict[str, Setting] = {}
    problems: list[Problem] = []
    known = (*method.coefficients, *method.shorthands, *method.measured, *method.options)
    for name, value in asked.settings.items():
        first, _, rest = name.partition(".")
        if first in method.options and not rest:
            options[first] = value
        elif first not in known:
            what = f"coefficient or option of {method.name}"
            problems.append(Problem(unknown(what, first, known), f"--set {name}"))
        elif first in method.measured:
            config[first] = {**config.get(first, {}), **({rest: value} if rest else dict.fromkeys(sources, value))}
        elif rest:
            later[name] = value
        else:
            config[first] = value
            taken.discard(first)
    if method.shorthands.keys() & asked.settings.keys():  # one number says the weights, or weights do
        config.pop("weight", None)
    elif "weight" in asked.settings:
        config = {name: value for name, value in config.items() if name not in method.shorthands}
    taken &= config.keys()
    config = {name: value for name, value in config.items() if value is not None}
    examples = None if config.keys() & method.measured.keys() else merge.examples
    update = {"coefficients": config, "options": options, "examples": examples}
    return merge.model_copy(update=update), later, bool(taken), problems


def _fixed(entry: Any, default: float | None) -> Any:
    """What a study file says of a coefficient, with the default in the place of everything that it searches."""
    if not isinstance(entry, Mapping):
        return entry
    return default if is_range(entry) else {key: _fixed(inner, default) for key, inner in entry.items()}


def _apply(
    coefficients: Mapping[str, dict[str, CoefficientValue]], name: str, value: Setting, study: Study
) -> list[Problem]:
    """Set a coefficient of sources or groups that are named behind a dot, in any order; or say what is wrong."""
    coefficient, *parts = name.split(".")
    method, sources = study.method, study.merged_sources
    where = f"--set {name}"
    strangers = [p for p in parts if p not in coefficients and p not in sources]
    if strangers:
        return [Problem(unknown("source or group", p, [*sources, *coefficients]), where) for p in strangers]
    if isinstance(value, bool | str):
        return [Problem(f"expected a number, found {value!r}", where)]
    of_sources = [p for p in parts if p in sources]
    per_source = coefficient in method.coefficients and method.coefficients[coefficient].per_source
    if of_sources and not per_source:
        return [Problem(f"{coefficient} is one number per group, and not one per source", where)]
    for group in [p for p in parts if p in coefficients] or coefficients:
        if coefficient in method.shorthands:
            template = study.parsed.content.merge.template
            coefficients[group].update(method.shorthands[coefficient].expand(value, template, sources))
        elif per_source:
            now = coefficients[group].get(coefficient, {})
            by_source = dict(now) if isinstance(now, Mapping) else dict.fromkeys(sources, now)
            coefficients[group][coefficient] = {**by_source, **dict.fromkeys(of_sources or sources, value)}
        else:
            coefficients[group][coefficient] = value
    return []
