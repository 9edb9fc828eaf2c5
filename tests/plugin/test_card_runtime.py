"""What a fake runtime of the card finds in the environment of a rank."""

import pytest

from spyre_bench.engine.parallel import Rank
from spyre_bench.plugin.card_runtime import prepare

CARDS = {f"AIU_WORLD_RANK_{rank}": f"0000:{rank:02x}:00.0" for rank in range(3)}


class FakeRuntime:
    """Finds its card as IBM's does: its own rank's address among those of the world."""

    def __init__(self, environment: dict[str, str]):
        self.world = int(environment["AIU_WORLD_SIZE"])
        self.card = environment.get(f"AIU_WORLD_RANK_{environment['RANK']}")
        self.threads = int(environment["DT_PARALLEL_THREADS"])


def test_every_rank_finds_its_own_card_and_its_share_of_threads():
    found = []
    for rank in range(3):
        environment = dict(CARDS)
        prepare(Rank(rank, 3), 5, environment)
        assert environment["WORLD_SIZE"] == "3"
        assert environment["LOCAL_RANK"] == str(rank)
        found.append(FakeRuntime(environment))
    assert [one.card for one in found] == list(CARDS.values())
    assert {(one.world, one.threads) for one in found} == {(3, 5)}


def test_a_rank_without_a_card_is_refused_before_anything_is_loaded():
    cards = {name: address for name, address in CARDS.items() if not name.endswith("1")}
    with pytest.raises(ValueError, match=r"card for rank 1, and AIU_WORLD_RANK_1 is not set: set"):
        prepare(Rank(0, 3), 1, cards)


@pytest.mark.parametrize("environment", [{"FLEX_COMPUTE": "NULL"}, {"FLEX_COMPUTE": "SENULATOR"}])
def test_a_runtime_without_cards_needs_no_addresses(environment):
    prepare(Rank(1, 2), 1, environment)
    assert FakeRuntime(environment).world == 2


def test_one_rank_needs_no_address_and_threads_that_somebody_chose_stay():
    environment = {"DT_PARALLEL_THREADS": "9"}
    prepare(Rank(0, 1), 1, environment)
    assert FakeRuntime(environment).threads == 9
