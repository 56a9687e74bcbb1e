"""Run a notebook through papermill: unknown or mistyped parameters are refused before anything is written."""

import ast
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nbformat
import papermill
import yaml

from idsel_core.hints import did_you_mean

_STARTS: Final = 3
_START_SECONDS: Final = 600


class _PlainLoader(yaml.SafeLoader):
    """YAML without references, which a few lines can let grow beyond any memory, and without keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "references (*name) are not allowed here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a name is given twice", node.start_mark)
        return mapping


def read_yaml(text: str, source: str | Path) -> Any:
    """Return what YAML says; references, names given twice and endless nesting are refused.

    Parameters
    ----------
    text : str
        The YAML.
    source : str or Path
        What error messages call it.

    Raises
    ------
    ValueError
        If it is not such YAML.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # a SafeLoader, so no code is ever run
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{source} is not YAML that can be read: {why}") from error


def load_parameters(path: str | Path) -> dict[str, Any]:
    """Read notebook parameters from a YAML file.

    Parameters
    ----------
    path : str or Path
        A file with one mapping of names to values; an empty one means no parameters.

    Returns
    -------
    dict
        The parameters.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML, or holds something else than a mapping.
    """
    parameters = read_yaml(Path(path).read_text(), path)
    if not isinstance(parameters, dict | None):
        raise ValueError(f"{path} must hold a mapping of names to values, not a {type(parameters).__name__}")
    return {str(name): value for name, value in (parameters or {}).items()}


def defaults(notebook: str | Path) -> dict[str, Any]:
    """Return the parameters of a notebook and their default values.

    Parameters
    ----------
    notebook : str or Path
        An .ipynb file whose parameters stand in a cell tagged `parameters`.

    Returns
    -------
    dict
        Default by name; Ellipsis where the default is no plain literal.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook; names those in its folder.
    """
    notebook = Path(notebook)
    if not notebook.is_file():
        there = sorted(path.name for path in notebook.parent.glob("*.ipynb"))
        raise FileNotFoundError(f"no notebook {notebook}; its folder has {there}")
    found = papermill.inspect_notebook(notebook)
    return {name: _literal(parameter["default"]) for name, parameter in found.items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ...


def _fits(value: Any, default: Any) -> bool:
    if default is None or default is ...:
        return True
    allowed = {float: (float, int), tuple: (tuple, list)}.get(type(default), (type(default),))
    return isinstance(value, allowed) and isinstance(value, bool) == isinstance(default, bool)


def check_parameters(notebook: str | Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that a notebook does not have or whose type differs from the default's.

    Parameters
    ----------
    notebook : str or Path
        See `defaults`.
    parameters : Mapping
        What it is to be run with.

    Raises
    ------
    ValueError
        If a name is unknown or a value has the wrong type; names the known ones.
    """
    known = defaults(notebook)
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(
                f"{notebook} has no parameter {name!r}{did_you_mean(name, known, '.')} Known are {sorted(known)}"
            )
        if not _fits(value, known[name]):
            raise ValueError(
                f"parameter {name!r} of {notebook} is {value!r} ({type(value).__name__}); "
                f"allowed is {type(known[name]).__name__}, e.g. {known[name]!r}"
            )


class _Prefixed:
    """A text stream that puts a name before each line, for jobs that share a terminal."""

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if line.strip():
                print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def run(notebook: str | Path, output: str | Path, parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """Run a notebook and keep the executed copy, also of one that fails.

    Parameters
    ----------
    notebook : str or Path
        The notebook.
    output : str or Path
        Where the executed copy goes; saved after each cell.
    parameters : Mapping
        Values for its parameters; the others keep their defaults.

    Returns
    -------
    NotebookNode
        The executed notebook.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `check_parameters`, before anything is written.
    papermill.PapermillExecutionError
        If a cell raises.
    RuntimeError
        If the kernel dies.
    """
    check_parameters(notebook, parameters)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    stream = _Prefixed(Path(notebook).stem)
    progress = {"file": stream, "bar_format": "cell {n_fmt} of {total_fmt}, {elapsed}"}
    starts = 0
    while True:
        starts += 1
        try:
            return papermill.execute_notebook(
                notebook,
                output,
                dict(parameters),
                kernel_name="python3",
                start_timeout=_START_SECONDS,
                progress_bar=progress,
                stdout_file=stream,
                stderr_file=stream,
                extra_arguments=["--log-level=CRITICAL"],
            )
        except RuntimeError as error:
            # Kernels get ports that are free but not yet taken, so that one started beside another may lose its own.
            if "before replying" not in str(error) or starts == _STARTS:
                raise
            print(f"{notebook}: the kernel could not start; once more", file=sys.stderr)


def given_parameters(files: Iterable[str | Path], pairs: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Return the parameters that a command line gives.

    Parameters
    ----------
    files : iterable of str or Path
        YAML files, as for `load_parameters`; later ones win.
    pairs : iterable of pairs
        Names and their values in YAML, which win over the files.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `load_parameters`.
    """
    parameters: dict[str, Any] = {}
    for file in files:
        parameters |= load_parameters(file)
    return parameters | {name: read_yaml(text, f"the value of -p {name}") for name, text in pairs}
