"""Search a detector's kernels and block types: all choices trained from the same start, or one supernet.

The same command again, on this machine or with --storage on many, shares the work; killed, it continues.
"""
from __future__ import annotations

from compress.search.config import SearchConfig
from utils import cli, runs


def main() -> None:
    """Search as the flags say; write and print what was found."""
    parser = cli.config_parser(__doc__.splitlines()[0], SearchConfig)
    config = cli.to_config(parser, parser.parse_args(), SearchConfig, "data")
    config.check()
    from compress.search.report import write_answer
    from compress.search.search import Search, brute_force, one_shot
    from training.start import settle
    against = runs.read_record("--against", config.against, "search") if config.against else None
    search = Search.open(settle(config))
    try:
        rows, failed = (one_shot if config.one_shot else brute_force)(search)
        write_answer(search, rows, failed, against)
    finally:
        search.tuner.close()


if __name__ == "__main__":
    cli.run(main)
