from pathlib import Path

import pytest

from agartha.core.errors import ConfigError
from agartha.ledger.rates import load_rate_card


def test_the_packaged_card_prices_an_ordinary_machine_and_says_where_from() -> None:
    card = load_rate_card()
    rate = card.rate("cpu")
    assert rate is not None and rate.dollars_per_hour == 0.10 and card.stated
    assert rate.watts is None  # no energy is assumed unless somebody states it


@pytest.mark.parametrize(
    ("device", "match"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("nvidia rtx 4090", "RTX 4090")],
)
def test_a_device_is_found_by_the_words_of_its_name(device: str, match: str) -> None:
    card = load_rate_card()
    assert card.rate(device) == next(rate for rate in card.device if rate.match == match)


def test_a_device_that_is_not_on_the_card_has_no_price() -> None:
    assert load_rate_card().rate("NVIDIA Tesla K80") is None


def test_the_longest_match_counts(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(
        'name = "mine"\n[machine]\ndollars_per_hour = 0\n'
        '[[device]]\nmatch = "A100"\ndollars_per_hour = 1\n[[device]]\nmatch = "A100 80GB"\ndollars_per_hour = 2\n'
    )
    rate = load_rate_card(path).rate("NVIDIA A100 80GB PCIe")
    assert rate is not None and rate.dollars_per_hour == 2


def test_a_card_with_a_negative_price_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text('name = "mine"\n[machine]\ndollars_per_hour = -1\n')
    with pytest.raises(ConfigError, match=r"machine\.dollars_per_hour is -1"):
        load_rate_card(path)
