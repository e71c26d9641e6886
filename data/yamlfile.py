"""Small YAML files of data sets: plain mappings whose words are taken as they are written."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utils.errors import DataError

DEPTH = 20
LIMIT = 1_000_000                  # bytes; a data set's YAML is a few lines
NOTHING = ("", "~", "null", "None")    # how YAML files leave a value out


def read_text(path: Path) -> str:
    """Return a file's text, UTF-8, GB2312 or Windows-1252; raise DataError for UTF-16 and large files."""
    try:
        if path.stat().st_size > 100 * LIMIT:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes is too large for a text of labels")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: is UTF-16; save it again as UTF-8")
    for encoding in ("utf-8-sig", "gb2312", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def read_yaml(file: Path) -> dict:
    """Return the mapping in a small YAML file, values as text (`on` is no truth); raise DataError else."""
    import yaml
    size = file.stat().st_size
    if size > LIMIT:
        raise DataError(f"{file}: {size:,} bytes, a data set's YAML has at most {LIMIT:,}; "
                        "is this the right file?")
    text, depth = read_text(file), 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):      # a few bytes of these can fill the memory
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise DataError(f"{file}: nested more than {DEPTH} deep; a data set's YAML is flat")
            if isinstance(event, yaml.AliasEvent):
                raise DataError(f"{file}: uses YAML aliases (*name), which a data set does not need; "
                                "write the values out")
            if (getattr(event, "tag", None) or "").startswith("tag:yaml.org,2002:python"):
                raise DataError(f"{file}: not a plain YAML ({event.tag}); python tags and code are refused")
        content = yaml.BaseLoader(text).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        first = str(error).replace("\n", " ")
        raise DataError(f"{file}: not a plain YAML ({first}); python tags and code are refused") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: must hold path, train and val; got {type(content).__name__}")
    return content


def yaml_root(file: Path, content: Mapping[str, object]) -> Path:
    """Return the folder that a YAML's `path` names, from the YAML's own where it is relative or left out."""
    value = str(content.get("path") or "")
    return file.parent / Path("." if value in NOTHING else value).expanduser()


def yaml_names(file: Path, names: object) -> tuple[str, ...] | None:
    """Return the class names of a YAML: a list, or a mapping 0..K-1 -> name; None where it has none."""
    if names is None:
        return None
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise DataError(f"{file}: `names` must number its classes 0, 1, ... K-1 without a gap, "
                            f"got {', '.join(list(names)[:5])}")
        names = [names[str(k)] for k in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise DataError(f"{file}: `names` must be a list of different class names, or 0: name, 1: name, ...")
    return tuple(map(str, names))
