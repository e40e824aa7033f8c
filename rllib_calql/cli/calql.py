"""The `calql` command. Each command imports what it needs when it runs, so that none waits for another's Ray."""

from __future__ import annotations

from rllib_calql.cli.common import new_app
from rllib_calql.cli.data import data_app

app = new_app("Everything around Cal-QL besides training it (for that: rllib train).")
app.add_typer(data_app, name="data")


@app.callback()
def calql() -> None:
    """Keeps `calql` a command of commands, however few there are."""


def main() -> None:
    app(prog_name="calql")


if __name__ == "__main__":
    main()
