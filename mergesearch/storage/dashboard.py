"""optuna-dashboard on a study database."""

from __future__ import annotations

from mergesearch.errors import StorageError
from mergesearch.storage import schema
from mergesearch.storage.engine import Database


def serve(url: str, *, host: str, port: int) -> None:
    """Serve optuna-dashboard until interrupted. It has no authentication: bind it to loopback.

    An empty PostgreSQL database gets its tables first, so that the dashboard of a service may start before its studies.

    Raises:
        StorageError: the database cannot be used, or the port is taken.
    """
    import optuna_dashboard

    database = Database.parse(url)
    if database.path is not None and not database.path.is_file():
        raise StorageError(f"there is no study database {database.path}. Start one: mergesearch run STUDY.yaml")
    schema.prepare(database, database.engine(), create=not database.is_sqlite)
    storage = database.optuna_storage(create_tables=False)
    try:
        optuna_dashboard.run_server(storage, host=host, port=port)
    except OSError as error:
        raise StorageError(f"cannot serve on {host}:{port}: {error.strerror}; choose another --port") from error
