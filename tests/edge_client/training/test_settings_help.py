from collections import Counter

from edge_client.training.settings import check_settings, setting_names
from edge_client.training.settings_help import settings_by_section

SETTINGS = [setting for settings in settings_by_section().values() for setting in settings]


def test_each_setting_is_told_of_once():
    assert Counter(setting.name for setting in SETTINGS) == Counter(setting_names())
    assert all(setting.text for setting in SETTINGS)


def test_what_is_shown_as_the_default_is_the_default():
    shown = {s.name: s.default for s in SETTINGS if not (s.name.startswith("personal") or s.name == "device")}
    as_values = {name: {"true": True, "false": False}.get(text, text) for name, text in shown.items()}
    assert check_settings(as_values) == check_settings({})


def test_choices_are_listed():
    texts = {setting.name: setting.text for setting in SETTINGS}
    assert "kfac, eva, foof" in texts["curvature"]
    assert "dirichlet" in texts["partition"]
    assert "https" not in "".join(texts.values())
