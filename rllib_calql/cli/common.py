"""What the commands `rllib` and `calql` have in common: declaring and reading options, plain errors. No Ray."""

import inspect
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rllib_calql.data import DatasetWarning


class UserError(Exception):
    """The command line, or a file it names, cannot be used as it is. Printed as one line; exit code 2."""


@dataclass(frozen=True, kw_only=True)
class DebugOptions:
    vv: Annotated[bool, typer.Option("--log-debug", "-vv", help="Tracebacks of errors.")] = False


T = TypeVar("T")


def new_app(help: str) -> typer.Typer:
    """A command of plain text: no markup, no coloured tracebacks."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def takes(options: type[T]) -> Callable[[Callable[[typer.Context, T], None]], Callable[..., None]]:
    """Makes a typer command of `command(ctx, options)`: the fields of the dataclass become its parameters."""
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)  # type: ignore[arg-type]
        ),
    ]

    def wrap(command: Callable[[typer.Context, T], None]) -> Callable[..., None]:
        def call(ctx: typer.Context, **values: Any) -> None:
            command(ctx, options(**values))

        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return wrap


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-4 is a number (YAML 1.1 reads it as a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, what: str) -> Any:
    """Value of a YAML (so also JSON) text; UserError naming `what` where it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not valid YAML or JSON: {error}") from error


def parse_mapping(text: str, what: str) -> dict[str, Any]:
    value = parse_yaml(text, what)
    if not isinstance(value, dict):
        raise UserError(f"{what} must be a mapping such as '{{gamma: 0.99}}', not {value!r}")
    return value


@contextmanager
def plain_errors(options: DebugOptions) -> Iterator[None]:
    """An error becomes one line and an exit code: 2 for what the user wrote, 1 for what went wrong."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        typer.echo("Interrupted", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    except Exception as error:
        if options.vv:
            raise
        text = " ".join(str(error).split())
        # Messages of these two kinds are written for people; of other errors the kind says most.
        if not isinstance(error, (UserError, ValueError)):
            text = f"{type(error).__name__}: {text} (-vv shows the traceback)"
        typer.echo(f"Error: {text}", err=True)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


@contextmanager
def counting(what: str, total: int | None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's standard error; gives the function that is told how many are done.

    Ctrl-C and SIGTERM stop the block where that function is called: h5py and others swallow what a signal raises
    in the middle of their work. A second one is raised at once.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        _signals_noted() as noted,
        Progress(*columns, TextColumn(unit), console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task(what, total=total)

        def told(done: int) -> None:
            bar.update(task, completed=done)
            if noted:
                raise _stop(noted[0])

        yield told


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """The first signal that would end the process is noted in the list instead."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted:
            raise _stop(number)
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield noted
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """A `DatasetWarning` becomes one line, said once; other warnings stay as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DatasetWarning)
        show = warnings.showwarning
        said: set[str] = set()  # a dataset may be read several times

        def say(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, DatasetWarning):
                show(message, category, *where, **more)
            elif str(message) not in said:
                said.add(str(message))
                typer.echo(f"Warning: {message}", err=True)

        warnings.showwarning = say
        yield


def stop_on_sigterm() -> None:
    """Lets a terminated command clean up, as an interrupted one does."""

    def stop(number: int, frame: object) -> NoReturn:
        raise _stop(number)

    signal.signal(signal.SIGTERM, stop)
