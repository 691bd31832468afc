"""One verb per program; no logic of its own. Heavy imports wait until a verb needs them, so that help comes at once."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from agartha.core.errors import AgarthaError, BudgetReached, ConfigError, Interrupted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From nothing to a reasoning model, on one ordinary machine.",
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(help="A recipe (packaged name or TOML file), then key.sub=value overrides.", show_default=False),
]
Folder = Annotated[Path | None, typer.Option(help="Run folder; runs/VERB if not given.", show_default=False)]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and the model's size; write nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.command()
def zero(settings: Settings = None, folder: Folder = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Random weights, pretraining, pure reinforcement learning, held-out problems, a report."""
    from agartha.zero.config import ZeroConfig

    def run(config: ZeroConfig, where: Path) -> dict[str, Any]:
        from agartha.zero import program

        return program.run(config, where, command())

    _program("zero", ZeroConfig, settings, folder, dry_run, as_json, run, recipe="zero")


@app.command()
def pretrain(settings: Settings = None, folder: Folder = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """A language model from a mixture of sources."""
    from agartha.pretrain.config import PretrainConfig

    def run(config: PretrainConfig, where: Path) -> dict[str, Any]:
        from agartha.pretrain import program

        return program.run(config, where, command())

    _program("pretrain", PretrainConfig, settings, folder, dry_run, as_json, run)


@app.command()
def rl(settings: Settings = None, folder: Folder = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Improve a model by reinforcement learning on a reward that a program can check."""
    from agartha.rl.config import RLConfig

    def run(config: RLConfig, where: Path) -> dict[str, Any]:
        from agartha.rl import program

        return program.run(config, where, command())

    _program("rl", RLConfig, settings, folder, dry_run, as_json, run)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    world: Annotated[str, typer.Argument(help="countdown, gym:NAME, maths:FILE.jsonl or the path of a Python file.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value overrides.", show_default=False)] = None,
    problems: Annotated[
        Path | None, typer.Option(help="Your own problems, one JSON object a line.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model on held-out problems of a world, or on your own."""
    from agartha.core.config import load
    from agartha.evaluate.config import EvalConfig

    config = load(EvalConfig, None, settings or ())
    from agartha.evaluate.program import run

    _print(run(model, world, config, problems), as_json)


@app.command()
def runs(
    root: Annotated[Path, typer.Option(help="Where the run folders are.")] = Path("runs"), as_json: Json = False
) -> None:
    """What was run, how it ended and what it cost; failed and aborted runs count."""
    from agartha.ledger.runs import list_runs, total_costs

    found = list_runs(root)
    if as_json:
        _print(
            {"runs": [r.model_dump(mode="json") for r in found], "totals": total_costs(found).model_dump(mode="json")},
            True,
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "status", "minutes", "tokens", "FLOPs", "dollars", "command")
    for entry in found:
        table.add_row(entry.run_id, entry.status, *_costs(entry.totals), entry.command)
    table.add_section()
    table.add_row("all", "", *_costs(total_costs(found)), "")
    Console().print(table)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False) -> None:
    """Write FOLDER/report.html from what the run left there."""
    from agartha.report.folder import read_folder
    from agartha.report.html import write_report

    facts, metrics = read_folder(folder)
    write_report(folder / "report.html", facts, metrics)
    _print({"report": str(folder / "report.html")}, as_json)


def _program(
    name: str,
    config_class: Any,
    settings: Settings,
    folder: Path | None,
    dry_run: bool,
    as_json: bool,
    run: Any,
    recipe: str | None = None,
) -> None:
    from agartha.core.config import load, resolved

    words = list(settings or ())
    if words and "=" not in words[0]:
        recipe = words.pop(0)
    config = load(config_class, recipe, words)
    if dry_run:
        _print({"config": resolved(config)} | _size(config), True)
        return
    _print(run(config, folder or Path("runs") / name), as_json)


def _size(config: Any) -> dict[str, Any]:
    """Parameters of the model to be made, where one is."""
    stage = getattr(config, "pretrain", config)
    model = getattr(stage, "model", None)
    if model is None or isinstance(model, str):
        return {}
    return {"parameters": model.num_parameters(), "active_parameters": model.num_parameters(active=True)}


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    from agartha.report.text import summary

    typer.echo(summary(result))


def _costs(costs: Any) -> list[str]:
    dollars = "?" if costs.dollars is None else f"{costs.dollars:.4f}"
    return [f"{costs.seconds / 60:.1f}", f"{costs.tokens:,}", f"{costs.model_flops:.2e}", dollars]


def command() -> list[str]:
    """The exact command, to be written into the run."""
    return ["agartha", *sys.argv[1:]]


def main() -> None:
    """Entry point: errors of ours become a message and an exit code, never a traceback."""
    try:
        app(standalone_mode=False)
    except Interrupted as error:
        _fail(error, 130)
    except BudgetReached as error:
        _fail(error, 3)
    except ConfigError as error:
        _fail(error, 2)
    except AgarthaError as error:
        _fail(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of Typer's
            error.show()  # type: ignore[attr-defined]
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        raise


def _fail(error: AgarthaError, code: int) -> None:
    typer.echo(f"agartha: {error}", err=True)
    if code in (3, 130):
        typer.echo(f"to go on: {shlex.join(command())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
