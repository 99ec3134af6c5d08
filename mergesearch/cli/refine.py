"""`mergesearch refine`: a study file with finer groups, which starts from a study's trials."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import examples, open_existing, storage_option, study_argument


@click.command(
    "refine",
    short_help="Make a study with finer groups that starts from another.",
    epilog=examples(
        "mergesearch refine my.yaml --segments 4 --out finer.yaml",
        "mergesearch refine my.yaml --per-layer --strategy embedding_surrogate --trials 20 --out layers.yaml",
        "mergesearch refine my.yaml --segments 4 --around 0.25 --out finer.yaml   # ranges about the best merges",
    ),
)
@study_argument
@click.option("--segments", type=click.IntRange(2), help="How many; each lies within one of the study's.")
@click.option("--per-layer", is_flag=True, help="A group for every layer.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The study file to write.")
@click.option("--name", help="The new study's; by default the old one's and what it is divided into.")
@click.option("--strategy", help="Another strategy, with its default options.")
@click.option("--trials", type=click.IntRange(1), help="Another budget; what comes over does not count.")
@click.option(
    "--around",
    type=click.FloatRange(0, 1, min_open=True),
    help="Narrow every range to the best merges' values and this share of it to either side.",
)
@click.option("--best", type=click.IntRange(1), default=3, show_default=True, help="With --around: so many merges.")
@click.option("--force", is_flag=True, help="Replace the file when it exists.")
@storage_option
def command(
    study_file: Path,
    segments: int | None,
    per_layer: bool,
    out: Path,
    name: str | None,
    strategy: str | None,
    trials: int | None,
    around: float | None,
    best: int,
    force: bool,
    storage: str | None,
) -> None:
    """Make a study file with finer groups, whose study starts from what this one scored; comments stay.

    Merges that the study has scored are points of the finer space, and come over with their scores when it is run.
    """
    from mergesearch.errors import StorageError
    from mergesearch.refining import narrow, refine
    from mergesearch.resolving import load_study
    from mergesearch.starting import offered

    if (segments is None) != per_layer:
        raise click.UsageError("say how it is to be divided: --segments N or --per-layer")
    if out.exists() and not force:
        raise click.UsageError(f"{out} exists; choose another name or replace it with --force")
    if out.parent.resolve() != study_file.parent.resolve():
        beside = study_file.parent / out.name
        raise click.UsageError(f"paths in {study_file} start from its folder, so write beside it: --out {beside}")
    fine = refine(
        load_study(study_file),
        out,
        segments=segments,
        name=name,
        storage=default_storage(study_file, storage),
        strategy=strategy,
        trials=trials,
    )
    try:
        with open_existing(study_file, storage) as store:
            if around is not None:
                fine = narrow(fine, store, around, best)
            _, brought = offered(fine, store)
            found = brought.describe()
    except StorageError as error:
        if around is not None:
            raise
        found = f"nothing to start from yet: {error}"
    out.write_text(fine.parsed.text, encoding="utf-8")
    space, size = fine.space, fine.space.size()
    points = "" if size is None else f", {size:,} points"
    click.echo(f"wrote {out}: study {fine.name}, {len(space.groups)} groups, {len(space.free)} coefficients{points}")
    click.echo(found)
    click.echo(f"next: mergesearch run {out}")


def default_storage(study_file: Path, option: str | None) -> str | None:
    """The database of a study that nobody names one for, which is another than that of the next study."""
    from mergesearch.storage.secrets import storage_from_environment
    from mergesearch.study_file import parse_study, storage_url

    content = parse_study(study_file).content
    return None if option or storage_from_environment() or content.storage else storage_url(content)
