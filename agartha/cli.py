"""One verb per program; no logic of its own. Heavy imports wait until a verb needs them, so that help comes at once."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agartha.core.errors import AgarthaError, BudgetReached, ConfigError, Interrupted


class _Stopped(Exception):
    """An `Interrupted` on its way through Typer, which would take it for a bare Ctrl-C and drop what it says."""


class _Verbs(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Interrupted as error:
            raise _Stopped from error


app = typer.Typer(
    cls=_Verbs,
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


@app.command()
def traces(settings: Settings = None, folder: Folder = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """A data set of a teacher's answers, of which only those that a world verifies are kept."""
    from agartha.distill.config import CollectConfig

    def run(config: CollectConfig, where: Path) -> dict[str, Any]:
        from agartha.distill import collect

        return collect.run(config, where, command())

    _program("traces", CollectConfig, settings, folder, dry_run, as_json, run)


@app.command()
def distill(settings: Settings = None, folder: Folder = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Teach a student what another model knows: from its answers, its logits, or its opinion of the student's own."""
    from agartha.distill.config import DistillConfig

    def run(config: DistillConfig, where: Path) -> dict[str, Any]:
        from agartha.distill import program

        return program.run(config, where, command())

    _program("distill", DistillConfig, settings, folder, dry_run, as_json, run)


@app.command()
def compare(settings: Settings = None, folder: Folder = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """The same start and the same money, spent in several ways: held-out accuracy against cost, and a verdict."""
    from agartha.compare.config import CompareConfig

    def run(config: CompareConfig, where: Path) -> dict[str, Any]:
        from agartha.compare import program

        return program.run(config, where, command())

    _program("compare", CompareConfig, settings, folder, dry_run, as_json, run, recipe="compare")


@app.command()
def improve(settings: Settings = None, folder: Folder = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """A loop that needs nobody: tasks at the edge of ability, practice, teaching, judging; better beyond noise, or back."""
    from agartha.improve.config import ImproveConfig

    def run(config: ImproveConfig, where: Path) -> dict[str, Any]:
        from agartha.improve import program

        return program.run(config, where, command())

    _program("improve", ImproveConfig, settings, folder, dry_run, as_json, run)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file or a pulled hf:OWNER/NAME.")],
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
    root: Annotated[Path, typer.Option(help="Where the run folders are.")] = Path("runs"),
    tree: Annotated[bool, typer.Option("--tree", help="Who descends from whom, and what came of each.")] = False,
    as_json: Json = False,
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
    if tree:
        from agartha.ledger.tree import forest, lines

        for drawn, entry in lines(forest(found)):
            name = entry.folder.name if entry.part_of and entry.folder else entry.run_id
            typer.echo(f"{drawn}{name}  {entry.status}  {entry.outcome or ''}".rstrip())
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


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="hf:OWNER/NAME[:FILE.gguf][@REVISION]")],
    to: Annotated[
        Path | None, typer.Option(help="A folder of your own; the cache if not given.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection; fail if it is not here.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch published weights from the Hugging Face hub, checked and pinned to a commit; go on where it stopped."""
    from agartha.model.hub import pull as fetch

    _print({"model": model, "path": str(fetch(model, to, offline))}, as_json)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a pulled hf:OWNER/NAME.")],
    to: Annotated[Path, typer.Option(help="A new folder, or a file that ends in .gguf.")],
    form: Annotated[str | None, typer.Option("--format", help="hf or gguf.", show_default=False)] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="f32, f16, bf16, q8_0, q4_0, q4_1.", show_default=False)
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A folder with an adapter, multiplied into the weights.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for other programs, then compare what was written with it."""
    from agartha.engine.export import checked_choice
    from agartha.engine.export import export as write

    _print(write(model, to, *checked_choice(form, kind), adapter), as_json)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a pulled hf:OWNER/NAME.")],
    system: Annotated[str | None, typer.Option(help="A system prompt of your own.", show_default=False)] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 takes the likeliest token. As the model's makers advise, else 0.", show_default=False),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="The longest reply; all the room there is if not given.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For the same replies again.", show_default=False)] = None,
    weights: Annotated[str, typer.Option(help="float32, bfloat16, int8, int4; auto: float32 below 2 GiB.")] = "auto",
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on from the text as it is: no chat template, no turns.")
    ] = False,
    adapter: Annotated[
        Path | None, typer.Option(help="A folder with an adapter, to speak beside the model.", show_default=False)
    ] = None,
) -> None:
    """Talk to a model; or pipe a question in, and get the answer alone."""
    from agartha.serve.conversation import Options, checked_weights
    from agartha.serve.terminal import run

    run(model, Options(temperature, max_tokens, system, seed, checked_weights(weights), raw, adapter))


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="Model folders, .gguf files, or pulled hf:OWNER/NAME.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    model_name: Annotated[
        list[str] | None, typer.Option(help="What clients call it; once for each model.", show_default=False)
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Keys, one a line; or AGARTHA_API_KEYS, by commas.", show_default=False)
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which browsers may reach us.", show_default=False)
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web page that may use the API: https://...", show_default=False)
    ] = None,
    max_rows: Annotated[int, typer.Option(help="Replies written at once.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a conversation; the model's own, at most 8192.", show_default=False)
    ] = None,
    cache_tokens: Annotated[
        int | None, typer.Option(help="Tokens kept for all together; twice the length.", show_default=False)
    ] = None,
    queue_limit: Annotated[int, typer.Option(help="Replies that may wait; more are refused.")] = 64,
    draft: Annotated[str | None, typer.Option(help="Guess ahead: mtp or lookup.", show_default=False)] = None,
    weights: Annotated[str, typer.Option(help="auto, float32, bfloat16, int8 or int4.")] = "auto",
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER, a model of its own beside the one.", show_default=False)
    ] = None,
    drain_seconds: Annotated[float, typer.Option(help="For what runs to finish, when told to end.")] = 30.0,
) -> None:
    """Answer over the API that every tool speaks, with a page to chat on. Nothing leaves this machine."""
    from agartha.serve.settings import Settings, check_installed, read_keys

    check_installed()
    settings = Settings(host, port, read_keys(api_key_file), tuple(allow_host or ()), tuple(allow_origin or ()),
                        queue_limit=queue_limit, drain_seconds=drain_seconds)  # fmt: skip
    from agartha.serve.program import EngineOptions, named_adapters, run

    options = EngineOptions(max_rows, max_length, cache_tokens, draft, weights, named_adapters(adapter or ()))
    run(models, model_name or (), options, settings)


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
        if code := app(standalone_mode=False):  # of a Typer that answers Ctrl-C by itself
            sys.exit(code)
    except _Stopped as stop:
        assert isinstance(stop.__cause__, Interrupted)
        _fail(stop.__cause__, 130)
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
