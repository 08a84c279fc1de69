"""No secret survives, wherever it stands; what is none stays as it is."""

from __future__ import annotations

import argparse
import copy
import json
import shlex
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import jsonargparse
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.data import AttributeDict

from itwinai.run_info.redaction import HIDDEN, without_secrets
from itwinai.run_info.secret_names import is_secret_name


def words_of(text: str) -> list[str]:
    return text.split()


TELLING = words_of("""
    token api_key apikey apiKey API-KEY APIKey access_token accessToken secret client_secret password passwd pwd
    db_password userPassword credential credentials private_key sshKey auth authorization Authorization X-Auth-Token
    connection_string WANDB_API_KEY MLFLOW_TRACKING_PASSWORD AWS_SECRET_ACCESS_KEY GITHUB_TOKEN hf_token HFToken
    token_2 passphrase SMTP_PASS logger.init_args.api_key --hub-token user_token refresh_tokens auth/password
    credentials.user jwt
""")

HARMLESS = words_of("""
    num_tokens max_tokens tokens tokenizer tokenizers.path token_dim token_mixer pad_token eos_token cls_token monkey
    keyboard author key keys key_size public_key_size private_key_path password_file secret_name auth_method auth.method
    authors authenticate passes forward_pass SSH_AUTH_SOCK TOKENIZERS_PARALLELISM token_embedding.type secretary compass
    lr
""")


@pytest.mark.parametrize("name", TELLING)
def test_name_tells_of_a_secret(name: str) -> None:
    assert is_secret_name(name)
    assert without_secrets({name: "abc"}) == {name: HIDDEN}
    assert without_secrets(f"{name}=abc") == f"{name}={HIDDEN}"


@pytest.mark.parametrize("name", HARMLESS)
def test_name_tells_of_no_secret(name: str) -> None:
    assert not is_secret_name(name)
    assert without_secrets({name: "abc"}) == {name: "abc"}
    assert without_secrets(f"{name}=abc {name}: abc") == f"{name}=abc {name}: abc"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("postgresql://me:s3cret@db:5432/runs", "postgresql://me:***@db:5432/runs"),
        ("postgresql://me:s3@cret@db/runs", "postgresql://me:***@db/runs"),
        ("redis://:s3cret@cache", "redis://:***@cache"),
        ("push to https://s3cret@github.com/a/b.git", "push to https://***@github.com/a/b.git"),
        ("https://git@github.com/a, ssh://me@host/b", "https://git@github.com/a, ssh://me@host/b"),
        ("https://host/api?token=s3cret&x=1", "https://host/api?token=***&x=1"),
        ("https://host/api?x=1&access_token=s3cret", "https://host/api?x=1&access_token=***"),
        ("https://blob/data?sv=2024&sig=s3cret%3D&se=1", "https://blob/data?sv=2024&sig=***&se=1"),
        ("https://s3/b?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret", "https://s3/b?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("Authorization: Bearer s3cret", "Authorization: ***"),
        ("curl -H 'Authorization: Basic s3cret' https://x", "curl -H 'Authorization: ***' https://x"),
        ('Authorization: Digest user="me", response="s3cret"', "Authorization: ***"),
        ("Cookie: a=s3cret; b=s3cret\nHost: x", "Cookie: ***\nHost: x"),
        ("x-api-key: s3cret", "x-api-key: ***"),
        ("it was sent with Bearer s3cret-s3cret", "it was sent with Bearer ***"),
        ("auth=Basic s3cret", "auth=***"),
        ("Server=db;Password=s3cret;Encrypt=yes", "Server=db;Password=***;Encrypt=yes"),
        ("train --api-key s3cret --lr 3", "train --api-key *** --lr 3"),
        ("train --hub.token=s3cret --lr 3", "train --hub.token=*** --lr 3"),
        ("train --token 's3cret and more' --lr 3", "train --token '***' --lr 3"),
        ("Config(token='s3cret', lr=3)", "Config(token='***', lr=3)"),
        ("{password: s3cret, lr: 3}", "{password: ***, lr: 3}"),
        ("outer: {api_key: s3cret}", "outer: {api_key: ***}"),
        (r'{"a": {"secret": "s3\"cret"}, "lr": 3}', '{"a": {"secret": "***"}, "lr": 3}'),
        (r'"{\"secret\": \"s3cret\", \"lr\": 3}"', r'"{\"secret\": \"***\", \"lr\": 3}"'),
        ("hf_" + "aB3" * 11, "***"),
        ("see ghp_" + "aB3" * 12 + ".", "see ***."),
        ("github_pat_" + "aB3_" * 10, "***"),
        ("glpat-" + "aB3-" * 5, "***"),
        ("sk-proj-" + "aB3_" * 8, "***"),
        ("xoxb-123456789012-" + "aB3" * 8, "***"),
        ("id AKIAIOSFODNN7EXAMPLE!", "id ***!"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.aB3-_", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\ns3cret\n-----END RSA PRIVATE KEY-----\n", "***\n"),
    ],
)  # fmt: skip
def test_secret_in_a_text(text: str, cleaned: str) -> None:
    assert without_secrets(text) == cleaned
    assert without_secrets({"a": [text]}) == {"a": [cleaned]}
    assert without_secrets({text: 1}) == {cleaned: 1}
    assert without_secrets(text.encode()) == cleaned.encode()


@pytest.mark.parametrize(
    "text",
    [
        "A tokenizer with num_tokens=512: pad_token=<pad>, key=value.",
        "The secret of this token is patience; see https://host:8080/a@b?author=me",
        "git@github.com:a/b.git 0123456789abcdef0123456789abcdef01234567 task-123456789012345678901234567890",
        "token=null, password: None, --api-key '' secret=",
        "sk-learn-contrib-and-many-others hf_hub_download mask-learning-rate-of-a-long-name-1234567890",
    ],
)
def test_harmless_text(text: str) -> None:
    assert without_secrets(text) is text


def test_empty_values_and_numbers_stay() -> None:
    value = {
        "token": None,
        "password": "",
        "secret": 12345678,
        "auth": True,
        "api_key": b"",
        "credentials": [1.5, None],
    }
    assert without_secrets(value) == value


def test_everything_under_a_telling_name() -> None:
    value = {"credentials": {"user": "me", "scopes": ["a", b"b", 3], "path": Path("c")}}
    assert without_secrets(value) == {
        "credentials": {"user": HIDDEN, "scopes": [HIDDEN, HIDDEN.encode(), 3], "path": Path("c")}
    }


Point = namedtuple("Point", ["x", "token"])


def test_classes_of_containers_stay() -> None:
    class Names(list):  # type: ignore[type-arg]
        pass

    counts: dict[str, Any] = defaultdict(list, token="abc", other=Names(["--token=abc"]))
    cleaned = without_secrets(counts)
    assert (type(cleaned), cleaned) == (defaultdict, {"token": HIDDEN, "other": [f"--token={HIDDEN}"]})
    assert type(cleaned["other"]) is Names and cleaned["new"] == []
    for before, after in {
        OrderedDict: OrderedDict(token=HIDDEN),
        AttributeDict: AttributeDict(token=HIDDEN),
        jsonargparse.Namespace: jsonargparse.Namespace(token=HIDDEN),
        argparse.Namespace: argparse.Namespace(token=HIDDEN),
        SimpleNamespace: SimpleNamespace(token=HIDDEN),
    }.items():
        cleaned = without_secrets([before(token="abc")])[0]
        assert (type(cleaned), cleaned) == (before, after)
    cleaned = without_secrets(MappingProxyType({"token": "abc"}))
    assert type(cleaned) is MappingProxyType and cleaned == {"token": HIDDEN}
    assert without_secrets(Point("a", "b")) == Point("a", HIDDEN)
    assert without_secrets({("token=abc", 1)}) == {(f"token={HIDDEN}", 1)}
    assert without_secrets(frozenset({"token=abc"})) == frozenset({f"token={HIDDEN}"})


def test_nested_namespaces_of_a_command_line() -> None:
    config = jsonargparse.Namespace()
    config["trainer.logger"] = [jsonargparse.Namespace(init_args=jsonargparse.Namespace(api_key="abc", project="p"))]
    config["items"] = "--api-key=abc"
    before = copy.deepcopy(config)
    cleaned = without_secrets(config)
    assert cleaned["trainer.logger"][0].init_args == jsonargparse.Namespace(api_key=HIDDEN, project="p")
    assert cleaned["items"] == f"--api-key={HIDDEN}"
    assert config == before


def test_objects_stay() -> None:
    values = [Path("/token=abc"), object(), 3.5, is_secret_name]
    assert all(cleaned is value for cleaned, value in zip(without_secrets(values), values, strict=True))


def test_arguments_of_a_command_line() -> None:
    arguments = ["fit", "--token", "a b", "--lr", "0.1", "--password=c d'e", "--hub.api_key", "--verbose", "-x", "y"]
    expected = [
        "fit",
        "--token",
        HIDDEN,
        "--lr",
        "0.1",
        f"--password={HIDDEN}",
        "--hub.api_key",
        "--verbose",
        "-x",
        "y",
    ]
    assert without_secrets(arguments) == expected
    assert without_secrets(shlex.join(expected)) == shlex.join(expected)


def test_values_of_this_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("SHORT_TOKEN", "test")
    monkeypatch.setenv("RUN_NAME", "digits-large")
    monkeypatch.setenv("PWD", "/home/me/project")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    text = (
        f"a correct horse in /home/me/project, {tmp_path}: 0123456789abcdef0123456789abcdef01234567! test digits-large"
    )
    assert without_secrets({"x": (text,)}) == {"x": (f"a *** in /home/me/project, {tmp_path}: ***! test digits-large",)}


def test_longer_secret_that_holds_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-rest")
    assert without_secrets("x abcdefgh-rest y") == "x *** y"


PLANTED = "Zq7"  # the beginning of every planted secret, which nothing else has

secrets = st.text("abcXYZ0189_-+/=!$%^*~", min_size=8, max_size=30).map(lambda text: PLANTED + text)
harmless_keys = st.sampled_from(HARMLESS) | st.integers(0, 9)
harmless = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(HARMLESS)


def _texts_with_a_secret(secret: str) -> st.SearchStrategy[str]:
    from urllib.parse import quote

    quoted = quote(secret, safe="")
    forms = [f"--{name}={secret}" for name in ("token", "hub.api_key")]
    forms += [f"postgresql://me:{quoted}@host/db", f"https://{quoted}@host", f"https://host?a=1&token={quoted}&b=2"]
    forms += [
        f"Authorization: Bearer {secret}",
        f"api_key: {secret}",
        f"PASSWORD={secret}",
        f"run --password {secret} -v",
    ]
    forms += [json.dumps({"a": [{"client_secret": secret}]}), repr({"private_key": secret, "a": 1})]
    forms += [yaml.safe_dump({"a": {"access_token": secret}}), json.dumps(json.dumps({"credential": secret}))]
    return st.sampled_from(forms)


def _holders(secret: str) -> st.SearchStrategy[Any]:
    """Return containers and texts with the secret in them, in any nesting."""
    under_a_name = st.sampled_from(TELLING).flatmap(
        lambda name: st.sampled_from(
            [
                {name: secret},
                {name: [secret, 1]},
                {name: {"a": secret}},
                {name: secret.encode()},
                [f"--{name.strip('-')}", secret],
            ]
        )
    )
    return st.recursive(
        under_a_name | _texts_with_a_secret(secret),
        lambda inner: st.one_of(
            st.tuples(harmless, inner).map(list),
            st.tuples(inner, harmless),
            st.dictionaries(harmless_keys, inner, min_size=1, max_size=2),
            inner.map(lambda value: OrderedDict(a=value)),
            inner.map(lambda value: jsonargparse.Namespace(a=value, b=1)),
            inner.map(lambda value: MappingProxyType({"a": value})),
        ),
        max_leaves=5,
    )


@settings(deadline=None)
@given(secrets.flatmap(_holders))
def test_no_planted_secret_survives(value: Any) -> None:
    before = repr(value)
    assert PLANTED in before
    cleaned = without_secrets(value)
    assert PLANTED not in repr(cleaned)
    assert repr(value) == before
    assert type(cleaned) is type(value)
    assert without_secrets(cleaned) == cleaned


@settings(deadline=None)
@given(st.recursive(harmless, lambda inner: st.lists(inner) | st.dictionaries(harmless_keys, inner), max_leaves=20))
def test_harmless_values_stay(value: Any) -> None:
    assert without_secrets(value) == value


@settings(deadline=None)
@given(st.lists(st.sampled_from([*(f" {word}" for word in HARMLESS), *" =:'\"\\&;,@{}()-?", "\n"])).map("".join))
def test_harmless_text_of_any_kind_stays(text: str) -> None:
    assert without_secrets(text) is text


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*TELLING, *" =:'\"\\&;,@{}-", "://", "abc", "\n"])).map("".join))
def test_a_text_comes_out_of_a_text(text: str) -> None:
    assert isinstance(without_secrets(text), str)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a.",
        "token",
        "--",
        "a=b ",
        "://",
        "http://:",
        "\\",
        'token="',
        "eyJ",
        "-sk",
        "=\"'",
        "token=)",
        "-a ",
        "'",
        ")",
        "secret.file.",
    ],
)
def test_long_texts_take_no_quadratic_time(unit: str) -> None:
    """Where it is quadratic, a text of this length takes minutes."""
    for start in ("", "token=", "authorization: "):
        without_secrets(start + unit * (200_000 // len(unit)) + "=x")


def test_mapping_that_cannot_be_rebuilt() -> None:
    class View(Mapping[str, str]):
        def __getitem__(self, key: str) -> str:
            return "abc"

        def __iter__(self) -> Any:
            return iter(["token"])

        def __len__(self) -> int:
            return 1

    assert without_secrets(View()) == {"token": HIDDEN}
