import json
import logging
import re
from pathlib import Path

import pytest
from edgenewton.common.tls import TlsFiles
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.daemon.config import ConfigError, load_config
from edge_client.daemon.logs import JsonFormatter

UNIT = Path(__file__).parents[3] / "deploy" / "systemd"


def written(folder, text):
    path = folder / "daemon.toml"
    path.write_text(text)
    return path


def test_a_folder_is_all_that_must_be_said(tmp_path):
    config = load_config(written(tmp_path, 'state_dir = "/tmp/device"'))
    assert config.socket_path == Path("/tmp/device/daemon.sock")
    assert (config.server.host, config.server.grpc_port, config.server.rest_port) == ("127.0.0.1", 8001, 8000)
    assert config.training.nice == 19


def test_the_environment_overrides_the_file(tmp_path, monkeypatch):
    path = written(tmp_path, 'state_dir = "/tmp/device"\n[server]\nrest_port = 1\nmax_batch = 3')
    monkeypatch.setenv("EDGENEWTON_SERVER__REST_PORT", "9000")
    monkeypatch.setenv("EDGENEWTON_SOCKET", "/run/x.sock")
    config = load_config(path)
    assert (config.server.rest_port, config.server.max_batch, config.socket_path) == (9000, 3, Path("/run/x.sock"))


def test_what_sessions_must_give_is_a_list_or_words(tmp_path, monkeypatch):
    path = written(tmp_path, 'state_dir = "/tmp/device"\nrequire = ["secure-aggregation"]')
    assert load_config(path).require == ("secure-aggregation",)
    monkeypatch.setenv("EDGENEWTON_REQUIRE", "")
    assert load_config(path).require == ("secure-aggregation",)
    monkeypatch.setenv("EDGENEWTON_REQUIRE", "secure-aggregation secure-aggregation>=5")
    assert load_config(path).require == ("secure-aggregation", "secure-aggregation>=5")
    monkeypatch.setenv("EDGENEWTON_REQUIRE", "masks")
    with pytest.raises(ConfigError, match="require: 'masks' is nothing that can be required"):
        load_config(path)


def test_its_certificate_is_a_folder_or_three_files(tmp_path, monkeypatch):
    path = written(tmp_path, 'state_dir = "/tmp/device"\ntls = "/etc/tls"')
    assert load_config(path).tls_files == TlsFiles.in_folder("/etc/tls")
    monkeypatch.setenv("EDGENEWTON_TLS", "a,b,c")
    assert load_config(path).tls_files == TlsFiles(Path("a"), Path("b"), Path("c"))
    monkeypatch.delenv("EDGENEWTON_TLS")
    assert load_config(written(tmp_path, 'state_dir = "/tmp/device"')).tls_files is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('state_dir = "x"\ntls = "a,b"', "'a,b' is neither a folder with certificates nor three files"),
        ("", "state_dir is missing"),
        ('state_dir = "x"\nspeed = 3', "speed is unknown"),
        ('state_dir = "x"\n[server]\nport = 3', "server.port is unknown"),
        (
            'state_dir = "x"\n[server]\nrest_port = 70000',
            r"server.rest_port: .*65535 \(it is 70000\)",
        ),
        (
            'state_dir = "x"\n[model]\nengine = "tpu"',
            "model.engine: .*'torch', .*'onnx' or 'executorch'.*it is 'tpu'",
        ),
        ('state_dir = "x"\n[model]\nname = "a/b"', "model.name"),
        ('state_dir = "x"\n[server]\nhost = "0.0.0.0"', "server: host 0.0.0.0 can be reached from other machines"),
        ('state_dir = "x"\n[server]\nmax_waiting = 1', "server: max_waiting 1 is below max_batch 64"),
        ('state_dir = "x"\n[training]\nnice = -5', r"training.nice: .*\(it is -5\)"),
        ("state_dir =", "is not TOML"),
    ],
)
def test_wrong_entries_are_named(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}.*{message}"):
        load_config(path)
    result = CliRunner().invoke(app, ["daemon", "--check-config", "--config", str(path)])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_check_config_prints_what_holds(tmp_path):
    path = written(tmp_path, 'state_dir = "/tmp/device"')
    result = CliRunner().invoke(app, ["daemon", "--check-config", "--config", str(path)])
    assert result.exit_code == 0
    assert json.loads(result.output[result.output.index("{") :])["server"]["rest_port"] == 8000
    missing = CliRunner().invoke(app, ["daemon", "--check-config", "--config", str(tmp_path / "none.toml")])
    assert missing.exit_code == 2


def test_json_logs_carry_exceptions():
    try:
        raise ValueError("no")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "it %s", ("failed",), (ValueError, error, None))
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["level"], entry["message"], entry["logger"]) == ("error", "it failed", "a")
    assert "ValueError: no" in entry["exception"]


def test_the_configuration_beside_the_unit_is_right():
    assert load_config(UNIT / "daemon.toml").state_dir == Path("/var/lib/edgenewton")


def test_the_hardware_is_the_machines_and_is_checked_by_name(tmp_path):
    text = 'state_dir = "/tmp/device"\n[model]\ndevice = "{}"\n[training]\ndevice = "{}"'
    config = load_config(written(tmp_path, text.format("mps", "cuda:1")))
    assert (config.model.device, config.training.device) == ("mps", "cuda:1")
    with pytest.raises(ConfigError, match=r"training.device: device 'gpu' is unknown; known are auto, cpu, cuda, mps"):
        load_config(written(tmp_path, text.format("cpu", "gpu")))
