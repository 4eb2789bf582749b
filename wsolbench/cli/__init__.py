"""The command `wsolbench`: one file per command, loaded when it is called, so that `--help` is fast.

Exit codes: 0 done; 1 a check failed (`verify`, `leaderboard --check`); 2 wrong usage or data, with a message
and no traceback, and an invalid submission; 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys

import click

from wsolbench.cli.output import make_output_safe, output_failure
from wsolbench.exceptions import WsolbenchError, unknown_name
from wsolbench.system.memory import keep_freed_memory

_COMMANDS = {
    "train": "Train a method.",
    "curves": "Plot the training logs of runs.",
    "eval": "Evaluate a method on a data set: table, record, pictures.",
    "score": "Score a folder of maps from any program.",
    "predict": "Predict labels and boxes of images without annotations.",
    "merge": "Merge the shards of a run into one record.",
    "reproduce": "Run what a plan lists and has no record yet.",
    "compare": "Compare two runs image by image.",
    "table": "Print one table of methods and metrics, for a paper.",
    "correlations": "Plot the feature similarity of every pixel to a chosen point.",
    "train-detector": "Train a detector on data in COCO's layout.",
    "eval-detector": "Evaluate a detector with COCO's average precision.",
    "leaderboard": "Write tables of all records and published numbers.",
    "report": "Write all results as one page for the browser.",
    "submit": "Make a submission of a record, for the leaderboard.",
    "verify-submission": "Check submissions: metadata, data set, protocol, scores and numbers.",
    "list": "List methods, detectors, data sets, metrics, protocols or backbones.",
    "verify": "Check the files of a data set.",
    "export": "Export a data set in COCO's format.",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they run. Their one-line help is in `_COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature, here and below
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(
            f"wsolbench.cli.{cmd_name.replace('-', '_')}"
        ).command
        command.name = cmd_name  # every file calls its function `command`
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise unknown_name("command", args[0], _COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Start here:  wsolbench eval --method cam --dataset toybirds --train --pictures pictures/",
)
@click.version_option(package_name="wsolbench")
def group() -> None:
    """A benchmark for weakly supervised object localization."""


def main() -> None:
    """Run a command. Errors that the user can correct become a message and exit code 2."""
    make_output_safe()
    keep_freed_memory()
    try:
        status = group.main(standalone_mode=False)
    except WsolbenchError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. Run the same command again to resume.", err=True)
        sys.exit(130)
    if reason := output_failure():
        click.echo(
            f"Error: the output of the command could not be written: {reason}. Its files are written.",
            err=True,
        )
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
