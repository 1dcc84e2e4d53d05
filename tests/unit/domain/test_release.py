"""Releases: the same content is the same release; prices."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.release import Bundle, Endpoint, Prices, Retrieval
from tests.routes import make_deployment

ENDPOINT = Endpoint("openai", "http://127.0.0.1/v1", "m")
BUNDLE = Bundle((("main", ENDPOINT),), "Be brief.", {"temperature": 0.5, "stop": ["x"]}, ("stop",))


def test_the_same_content_has_the_same_hash() -> None:
    turned = Bundle((("main", ENDPOINT),), "Be brief.", {"stop": ["x"], "temperature": 0.5}, ("stop",))
    assert BUNDLE.content_hash() == turned.content_hash()
    assert len(BUNDLE.content_hash()) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Be brief"},
        {"prompt": None},
        {"parameters": {"temperature": 0.5}},
        {"parameters": {"temperature": 0.6, "stop": ["x"]}},
        {"client_may_override": ()},
        {"deployments": (("main", ENDPOINT), ("spare", ENDPOINT))},
        {"deployments": (("other", ENDPOINT),)},
        {"deployments": (("main", Endpoint("openai", "http://127.0.0.1/v1", "n")),)},
        {"deployments": (("main", Endpoint("azure_openai", "http://127.0.0.1/v1", "m", "v")),)},
        {"retrieval": Retrieval("handbook", 3)},
        {"retrieval": Retrieval("handbook", 3, on_failure="answer")},
        {"retrieval": Retrieval("handbook", 3, filter={"language": "en"})},
    ],
)
def test_whatever_can_change_an_answer_changes_the_hash(change: dict[str, object]) -> None:
    assert msgspec.structs.replace(BUNDLE, **change).content_hash() != BUNDLE.content_hash()


def test_a_hash_survives_storage() -> None:
    stored = msgspec.convert(msgspec.json.decode(msgspec.json.encode(BUNDLE)), Bundle)
    assert stored.content_hash() == BUNDLE.content_hash()


def test_a_release_of_an_earlier_headway_keeps_its_hash() -> None:
    assert BUNDLE.content_hash() == "2648ec4e749e4062c2602c971ce55d3d3a39c1368a413b1a5e479b1980857fbc"


def test_a_call_is_priced_by_its_tokens() -> None:
    prices = Prices(input=1.0, output=10.0, cached_input=0.1)
    assert prices.cost_usd(1_000_000, 0) == 1.0
    assert prices.cost_usd(1_000_000, 100_000, 500_000) == pytest.approx(0.5 + 0.05 + 1.0)
    assert Prices(input=1.0, output=10.0).cost_usd(1_000_000, 0, 500_000) == 1.0


counts = st.integers(0, 10**9)


@given(counts, counts, counts, st.floats(0, 100), st.floats(0, 100), st.none() | st.floats(0, 100))
def test_a_cost_is_never_negative(
    given_tokens: int, cached: int, made: int, price: float, output: float, cached_price: float | None
) -> None:
    assert Prices(price, output, cached_price).cost_usd(given_tokens, made, cached) >= 0


def test_deployments_are_equal_by_content() -> None:
    assert make_deployment(queue_size=3) == make_deployment(queue_size=3)
    assert hash(make_deployment(queue_size=3)) == hash(make_deployment(queue_size=3))
    assert make_deployment(queue_size=3) != make_deployment(queue_size=4)
