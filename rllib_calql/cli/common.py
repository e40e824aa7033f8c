"""What the commands `rllib` and `calql` have in common: declaring options, and plain errors. Imports no Ray."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer


class UserError(Exception):
    """The command line, or a file it names, cannot be used as it is. Printed as one line; exit code 2."""


@dataclass(frozen=True, kw_only=True)
class DebugOptions:
    vv: Annotated[bool, typer.Option("--log-debug", "-vv", help="DEBUG logging, and tracebacks.")] = False


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


@contextmanager
def plain_errors(options: DebugOptions) -> Iterator[None]:
    """An error becomes one line and an exit code: 2 for what the user wrote, 1 for what went wrong."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if options.vv:
            raise
        text = " ".join(str(error).split())
        # Messages of these two kinds are written for people; of other errors the kind says most.
        if not isinstance(error, (UserError, ValueError)):
            text = f"{type(error).__name__}: {text} (-vv shows the traceback)"
        typer.echo(f"Error: {text}", err=True)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None
