"""Compare networks: each trained alike with several seeds, by equal epochs and equal wall-clock, and judged.

The same command again, on this machine or with --storage on many, shares the work; killed, it continues; with
more networks or seeds it trains what is new.
"""
from __future__ import annotations

from bench.compare.config import CompareConfig
from utils import cli


def main() -> None:
    """Train what is left, measure, and write and print the conclusion."""
    parser = cli.config_parser(__doc__.splitlines()[0], CompareConfig)
    config = cli.to_config(parser, parser.parse_args(), CompareConfig, "data")
    config.check()
    from bench.compare.run import compare
    compare(config)


if __name__ == "__main__":
    cli.run(main)
