"""The help of `edge-client train`, with all settings."""

import click
from edgenewton.common.command_line import Command
from edgenewton.common.extras import MissingExtraError, needing


class TrainCommand(Command):
    """The subcommand, whose help lists the settings by what they are about."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write options, and the settings that `--config` takes."""
        super().format_options(ctx, formatter)
        formatter.write_paragraph()
        try:
            # It brings torch, which takes seconds.
            with needing("the list of settings", "training"):
                from edge_client.training.settings_help import settings_by_section
        except MissingExtraError as error:
            formatter.write_text(str(error))
            return
        formatter.write_text("Settings, as -c NAME=VALUE, with their defaults:")
        for section, settings in settings_by_section().items():
            with formatter.section(section.capitalize()):
                formatter.write_dl([(f"{setting.name}={setting.default}", setting.text) for setting in settings])
