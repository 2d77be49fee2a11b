"""Tokens and passwords stay out of records, messages and printed recipes."""

from __future__ import annotations

import json

import pytest

from scst.training.run_folder.run_record import write_run_record
from scst.training.secrets import HIDDEN, hide_secrets, without_secrets
from tests.support.adapter_folders import write_adapter
from tests.support.commands import call

SECRETS = {
    "hub_token": "plain",
    "rewards": [{"name": "judge", "kwargs": {"api_key": "s3cret", "OPENAI_API_KEY": "s3cret"}}],
    "url": "https://user:s3cret@host/data?x=1&access_token=s3cret&y=2",
    "text": "use hf_abcdefghijklmnop, please",
}
PLAIN = {
    "max_new_tokens": 3,
    "eos_token_id": 1,
    "prompt": "key: monkey",
    "url": "https://host/a?b=c",
    "n": None,
}


def test_secrets_are_replaced_and_nothing_else():
    shown = json.dumps(without_secrets(SECRETS))
    assert not [secret for secret in ("plain", "s3cret", "hf_abc") if secret in shown]
    assert shown.count(HIDDEN) == 6
    assert "x=1&" in shown
    assert "host/data" in shown
    assert without_secrets(PLAIN) == PLAIN


@pytest.mark.parametrize(
    "message",
    [
        "got {'api_key': 's3cret', 'n': 1} in it",
        "got api_key=s3cret",
        'got {"password": "s3cret"}',
        "cannot reach ftp://me:s3cret@host",
    ],
)
def test_messages_hide_them(message):
    assert "s3cret" not in hide_secrets(message)
    assert hide_secrets("lora_rank: expected int, got 'x'") == "lora_rank: expected int, got 'x'"


def test_records_and_dry_runs_hide_them(tmp_path, capsys):
    write_run_record(
        tmp_path, stage="sft", recipe=SECRETS, data_fingerprint="", started=0.0, results={"steps": 1}
    )
    assert "s3cret" not in (tmp_path / "run.json").read_text()
    rewards = "[{name: length, kwargs: {minimum: 3, api_key: s3cret}}]"
    flags = [
        "--config",
        "quickstart/scst",
        "--adapter",
        str(write_adapter(tmp_path / "adapter")),
        "--dry_run",
    ]
    assert call("scst", *flags, "--rewards", rewards) == 2, "length has no such setting"
    assert "s3cret" not in "".join(capsys.readouterr())
    assert call("sft", "--config", "quickstart/sft", "--hub_token", "s3cret", "--dry_run") == 2
    told = capsys.readouterr().err
    assert "HF_TOKEN" in told
    assert "s3cret" not in told
