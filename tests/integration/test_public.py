"""The public demo: settings and texts that it refuses, and the default that it accepts."""

from collections.abc import Iterator
from typing import Any

import pytest
from app_server import serve
from gradio_client import Client
from gradio_client.exceptions import AppError


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("public")
    with serve(folder / "runs", PUBLIC_DEMO="1") as running:
        yield Client(running.url, verbose=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_name_or_path": "/etc"}, "not on this public demo's list"),
        ({"model_name_or_path": "someone/some-model"}, "not on this public demo's list"),
        ({"dataset_name": "/etc"}, "not on this public demo's list"),
        ({"max_train_samples": 100_000}, "at most 4,000"),
        ({"max_length": 512}, "at most 256"),
        ({"num_train_epochs": 50}, "at most 1,000"),
        ({"revision": "main"}, "accepts no revision"),
    ],
)
def test_settings_beyond_the_limits_are_refused(public: Client, settings: dict[str, Any], words: str) -> None:
    for endpoint in ("/train", "/count"):
        with pytest.raises(AppError) as refused:
            public.predict(settings, api_name=endpoint)
        assert words in str(refused.value)


def test_long_texts_are_refused(public: Client) -> None:
    with pytest.raises(AppError) as refused:
        public.predict("word " * 1000, "any-run", "adapter", api_name="/predict")
    assert "at most 2,000" in str(refused.value)


def test_default_settings_are_accepted(public: Client) -> None:
    assert public.predict({}, api_name="/count")["trainable"] == 74_498
