"""Where a search is kept while many workers work on it: the database behind a URL, and locks on files."""
from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from utils.errors import EnvironmentFault, UsageError
from utils.redact import masked, without_secrets

HEARTBEAT, GRACE = 20, 120             # seconds between a worker's signs of life; until it counts as dead
TRIES = 6                              # to open a storage whose tables another worker may be making


class _Connection(sqlite3.Connection):
    """A connection with a write-ahead log, which need not wait for the disk at every step."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def alone(file: Path | None) -> Iterator[None]:
    """Let one process at a time into the `with` block; None, or a system without such locks: all of them."""
    if file is None or os.name != "posix":
        yield
        return
    import fcntl
    with open(file, "a+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        yield


def file_url(file: Path) -> str:
    """Return the URL of an SQLite file, whatever its path holds; in braces Optuna would fill in a version."""
    url = URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
    return url.replace("{", "{{").replace("}", "}}")


def lock_file(url: str) -> Path | None:
    """Return the file that workers on a storage lock for each step; None where the database has row locks.

    Without either, two workers pop the same waiting trial. Raises UsageError for a bad or in-memory URL.
    """
    shown = f"--storage {masked(url)}"
    try:
        parsed = make_url(url.replace("{{", "{").replace("}}", "}"))
    except (exc.ArgumentError, ValueError):        # ValueError: a port that is no number
        raise UsageError(f"{shown} is no database URL; it needs one such as sqlite:///study.db or "
                         "postgresql://user@host/name") from None
    if parsed.get_backend_name() != "sqlite":
        return None
    if parsed.database in (None, "", ":memory:"):
        raise UsageError(f"{shown} is kept in memory and would be lost; name a file: sqlite:///study.db")
    if not Path(parsed.database).absolute().parent.is_dir():
        raise UsageError(f"{shown}: there is no folder {masked(str(Path(parsed.database).parent))}")
    return Path(f"{parsed.database}.lock")


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Return an RDB URL's storage, its tables made; EnvironmentFault where it or its driver is missing."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    shown = f"--storage {masked(url)}"
    own = {"connect_args": {"factory": _Connection, "timeout": 60}} if url.startswith("sqlite") else {}
    for left in reversed(range(TRIES)):
        try:
            return optuna.storages.RDBStorage(url, own, heartbeat_interval=HEARTBEAT, grace_period=GRACE,
                                              heartbeat_stale_trial_callback=put_again)
        except (ImportError, exc.NoSuchModuleError) as error:
            raise EnvironmentFault(f"{shown}: the database's driver is missing "
                                   f"({without_secrets(str(error), url)}); install it") from error
        except (exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            if not left:                           # before that, another worker may be making the same tables
                said = without_secrets(str(error), url).splitlines()[0]
                raise EnvironmentFault(f"{shown} cannot be used: {said}; is the database there, and open to "
                                       "you?") from error
            time.sleep(0.3)


def put_again(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Queue a trial that was given up once more, with its parameters and without its worker's name."""
    trial.user_attrs = {}
    optuna.storages.RetryHeartbeatStaleTrialCallback()(study, trial)


def agree(study: optuna.Study, settings: Mapping[str, object]) -> None:
    """Note in a new study what its values depend on. Raises UsageError where an old one says otherwise."""
    mine = json.loads(json.dumps(dict(settings), default=str))
    there = study.user_attrs.get("settings")
    if there is None:
        study.set_user_attr("settings", mine)
        return
    other = [f"{key} was {there.get(key)!r}, is {mine.get(key)!r}" for key in {**there, **mine}
             if there.get(key) != mine.get(key)]
    if other:
        raise UsageError(f"the study {study.study_name!r} was begun with other settings: {'; '.join(other)}; "
                         "restore them, or choose another --study")
