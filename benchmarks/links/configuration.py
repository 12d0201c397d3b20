"""A method with its options, as one run has it."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgenewton.v1.codecs import CodecChoice

from benchmarks.frontier.interface import Options, Recipe
from benchmarks.frontier.methods import METHODS
from benchmarks.links import default
from benchmarks.shared.record_store import options_text

RECIPES: Mapping[str, Recipe] = {method.name: method.recipe for method in METHODS if method.recipe is not None}
"""Of the frontier's baselines, by name."""


@dataclass(frozen=True)
class Configuration:
    """What is run."""

    method: str
    """A baseline of the frontier benchmark, or ours."""
    options: Options

    @property
    def is_ours(self) -> bool:
        """Whether it is ours."""
        return self.method == default.NAME

    @property
    def codec(self) -> CodecChoice:
        """The session's codec."""
        if self.is_ours:
            return default.CODEC
        rank, fraction = int(self.options.get("rank", 1)), self.options.get("fraction", CodecChoice.topk_fraction)
        return CodecChoice(RECIPES[self.method].codec, rank, fraction)

    def __str__(self) -> str:
        return self.method if self.is_ours else f"{self.method}: {options_text(self.options)}"


OURS = Configuration(default.NAME, {})
