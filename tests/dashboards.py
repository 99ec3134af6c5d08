"""A dashboard that answers on this machine while a test looks at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mergesearch.storage.dashboard import application, server


@contextmanager
def served(url: str, **options: object) -> Iterator[str]:
    """Its address; `options` are those of `application`."""
    with server(application(url, **options), host="127.0.0.1", port=0) as serving:  # type: ignore[arg-type]
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()
            thread.join()
