import socket

from typer.testing import CliRunner

from coordinator.cli.commands import app


def serve(*arguments):
    return CliRunner().invoke(app, ["serve", "--session", "s", *arguments])


def test_impossible_options_are_named():
    for arguments, message in [
        (["--devices", "0"], "--devices: Input should be greater than or equal to 1"),
        (
            ["--codec", "zip"],
            "--codec: Input should be 'auto', 'fp32', 'bf16', 'fp16', 'int8', 'powersgd', 'topk', 'int4', ",
        ),
        (["--quorum", "9"], "quorum 9 is more than the session's 4 devices"),
        (["--step-deadline-s", "-1"], "--step-deadline-s: "),
        (["--model-fingerprint", "6d6d"], "--model-fingerprint: String should match pattern"),
        (["--on-demand", "--model-of", "a"], "--model-of is for the session that this command opens, and --on-demand"),
        (["--on-demand", "--trust-state-of", "a"], "--trust-state-of is for the session that this command opens"),
    ]:
        result = serve(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_plaintext_that_others_can_reach_must_be_asked_for():
    result = serve("--host", "0.0.0.0")
    assert result.exit_code == 2
    assert "add --insecure" in result.stderr


def test_certificates_that_cannot_be_served_with_are_named(tmp_path):
    for arguments, message in [
        (["--tls", str(tmp_path)], f"--tls: {tmp_path}/ca.pem cannot be read"),
        (["--tls", "a,b"], "--tls: 'a,b' is neither a folder with certificates nor three files"),
        (["--allow", "d0"], "--allow and --allow-label need --tls"),
        (["--max-messages-per-s", "0"], "--max-messages-per-s: "),
        (["--max-message-bytes", "4096"], "--max-message-bytes must be at least twice --frame-bytes"),
        (["--audit", f"{tmp_path}"], f"--audit: {tmp_path} cannot be written: Is a directory"),
    ]:
        result = serve(*arguments)
        assert result.exit_code in (1, 2)
        assert message in " ".join(result.stderr.split())


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serve("--port", str(port))
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_watching_nobody_is_said():
    result = CliRunner().invoke(app, ["watch", "127.0.0.1:9"])
    assert result.exit_code == 1
    assert "cannot watch 127.0.0.1:9" in result.stderr
