"""What each setting of training is for, with its default, as `edge-client train --help` shows it."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from edgenewton.common.attribute_docs import attribute_docs
from edgenewton.common.options import flat_names

from edge_client.curvature.estimators import ESTIMATORS
from edge_client.training.settings import GROUPS, UNSET, TrainSettings

_SECTIONS = {
    "what is trained": ("task", "steps", "batch_size", "partition", "alpha", "seed", "evaluate_every"),
    "on what": ("threads", "device"),
    "step size": ("lr", "momentum", "weight_decay", "schedule"),
    "curvature": ("curvature", "curvature_scope", "probe_samples", "probe_share", "whiten"),
    "when the curvature is renewed": ("refresh",),
    "how far a step goes": ("trust", "nonfinite", "clip_grad_norm"),
    "which weights are the result": ("averaging",),
    "exchange with other devices": ("cadence", "local_steps", "overlap", "outer", "sync_every", "personal"),
    "privacy": ("epsilon", "delta", "clip_norm", "noise_devices", "privacy_unit", "passes"),
}
"""Fields of `TrainSettings`, in the order in which they are shown."""


_SOURCE = re.compile(r"\s*\([^()]*https?://[^()]*\)")
"""Where a formula comes from."""


class SettingHelp(NamedTuple):
    """What is said of a setting."""

    name: str
    """As `-c NAME=VALUE` takes it."""
    default: str
    text: str


def settings_by_section() -> dict[str, list[SettingHelp]]:
    """Return all settings, by what they are about."""
    defaults, docs, hints = TrainSettings(), attribute_docs(TrainSettings), _hints(TrainSettings)
    sections: dict[str, list[SettingHelp]] = {}
    for section, fields in _SECTIONS.items():
        sections[section] = []
        for field in fields:
            if field in GROUPS:
                sections[section] += _of_group(field, getattr(defaults, field), docs.get(field, ""))
            else:
                told = _told(field, getattr(defaults, field), docs.get(field, ""), hints[field])
                sections[section].append(told)
    return sections


def _of_group(group: str, values: Any, about: str) -> Iterator[SettingHelp]:
    """Give the options of a group; what is said of the group itself stands with its first one."""
    docs, hints = attribute_docs(type(values)), _hints(type(values))
    names = flat_names(type(values))
    first_name = group if group in names else next(iter(names))
    # The one that the group is called after comes first.
    for flat, field in sorted(names.items(), key=lambda of: of[0] != group):
        text = docs.get(field, "")
        if flat == first_name:
            text = " ".join(filter(None, [about, text] if flat == group else [text, about]))
        yield _told(flat, getattr(values, field), text, hints[field])


def _told(name: str, default: object, text: str, hint: Any) -> SettingHelp:
    if name == "curvature":
        text = f"How the inverse Hessian is estimated: {', '.join(ESTIMATORS)}."
    elif choices := [choice for choice in _choices(hint) if f'"{choice}"' not in text]:
        text += (
            f" ({', '.join(_choices(hint))})" if len(choices) == len(_choices(hint)) else f" Or {', '.join(choices)}."
        )
    if default is None:
        text = text.replace("None for", f'"{_written(name, default)}" for')
    return SettingHelp(name.replace("_", "-"), _written(name, default), _SOURCE.sub("", text).strip())


def _written(name: str, value: object) -> str:
    """Return a default as it would be written."""
    if value is None:
        return UNSET.get(name, "auto")
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value}".lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else f"{value}"


def _hints(of_class: type) -> dict[str, Any]:
    return get_type_hints(of_class, include_extras=True)


def _choices(hint: Any) -> list[str]:
    """Return the names that a setting may have; none if it has values."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    if get_origin(hint) in (Annotated, Union):
        return [choice for part in get_args(hint) for choice in _choices(part)]
    return []
