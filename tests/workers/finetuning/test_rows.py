import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.conversations import row
from tests.workers.tiny import tiny_tokenizer
from workers.finetuning.errors import DatasetRefused
from workers.finetuning.rows import (
    StepTotals,
    TokenRow,
    batch_indices,
    dropout_seed,
    encode_dataset,
    memory_indices,
    micro_batches,
    steps_per_epoch,
    token_row,
    totals,
    units,
)
from workers.modeling.chat import ChatCodec, EncodedRow

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**31 - 1)


def of_length(length: int, memory_index: int | None = None) -> TokenRow:
    return TokenRow(tuple(range(length)), (0,), (1,), memory_index)


class TestTokenRow:
    def test_predicts_each_trained_token_from_the_position_before_it(self) -> None:
        encoded = EncodedRow((7, 8, 9, 10, 11), (False, False, True, False, True), is_cut=False)
        assert token_row(encoded) == TokenRow((7, 8, 9, 10, 11), positions=(1, 3), targets=(9, 11))


class TestEncodeDataset:
    codec = ChatCodec(tiny_tokenizer())

    def test_counts_rows_that_were_cut(self) -> None:
        rows = [row("Hi", "yes"), row("Hi", "yes, and a good deal more than that")]
        dataset = encode_dataset(self.codec, rows, max_tokens=20)
        assert (len(dataset.rows), dataset.num_cut) == (2, 1)
        assert max(len(r.ids) for r in dataset.rows) == 20

    def test_names_the_row_that_cannot_be_trained(self) -> None:
        with pytest.raises(DatasetRefused, match="Row 3: no token of the answer is left within 30 tokens"):
            encode_dataset(self.codec, [row("a", "b"), row("a", "b"), row("x" * 60, "b")], max_tokens=30)

    def test_refuses_no_rows(self) -> None:
        with pytest.raises(DatasetRefused, match="has no rows"):
            encode_dataset(self.codec, [], max_tokens=30)


class TestBatches:
    @given(num_rows=sizes, batch_size=sizes, seed=seeds, epoch=st.integers(0, 3))
    def test_have_every_row_once_an_epoch(self, num_rows: int, batch_size: int, seed: int, epoch: int) -> None:
        per_epoch = steps_per_epoch(num_rows, batch_size)
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        batches = [batch_indices(num_rows, batch_size, step, seed) for step in steps]
        assert sorted(i for batch in batches for i in batch) == list(range(num_rows))
        assert all(1 <= len(batch) <= batch_size for batch in batches)

    def test_come_in_another_order_each_epoch_and_for_each_seed(self) -> None:
        orders = {tuple(batch_indices(20, 20, step, seed)) for step in range(3) for seed in range(3)}
        assert len(orders) == 9

    def test_depend_on_seed_and_step_alone(self) -> None:
        assert batch_indices(20, 6, 5, 1) == batch_indices(20, 6, 5, 1)
        assert dropout_seed(5, 1) == dropout_seed(5, 1)
        assert len({dropout_seed(step, seed) for step in range(50) for seed in range(50)}) == 2500


class TestMemoryDraws:
    @given(num_rows=sizes, rows_per_step=st.integers(1, 12), seed=seeds)
    def test_are_without_replacement_until_all_rows_were_seen(
        self, num_rows: int, rows_per_step: int, seed: int
    ) -> None:
        num_steps = -(-2 * num_rows // rows_per_step)
        drawn = [i for step in range(num_steps) for i in memory_indices(num_rows, rows_per_step, step, seed)]
        assert sorted(drawn[:num_rows]) == list(range(num_rows))
        assert sorted(drawn[num_rows : 2 * num_rows]) == list(range(num_rows))

    def test_are_independent_of_the_order_of_the_users_rows(self) -> None:
        assert memory_indices(20, 20, 0, 3) != batch_indices(20, 20, 0, 3)


class TestMicroBatches:
    @given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30), max_tokens=st.integers(8, 100))
    def test_keep_all_rows_and_the_limit(self, lengths: list[int], max_tokens: int) -> None:
        rows = [of_length(length, index) for index, length in enumerate(lengths)]
        cut = micro_batches(rows, max_tokens)
        assert sorted(r.memory_index or 0 for micro in cut for r in micro) == list(range(len(rows)))
        for micro in cut:
            assert len(micro) == 1 or sum(len(r.ids) for r in micro) <= max_tokens

    def test_fill_the_room_that_longer_rows_leave(self) -> None:
        cut = micro_batches([of_length(n) for n in (3, 9, 4, 6, 2)], 12)
        assert [[len(r.ids) for r in micro] for micro in cut] == [[9, 3], [6, 4, 2]]

    def test_put_a_row_over_the_limit_alone(self) -> None:
        cut = micro_batches([of_length(n) for n in (20, 5)], 12)
        assert [[len(r.ids) for r in micro] for micro in cut] == [[20], [5]]


class TestUnits:
    def test_are_pairs_and_rows_by_themselves_in_the_order_of_their_first_rows(self) -> None:
        a, b, c, d, e = (TokenRow((n, n), (0,), (n,), pair=pair) for n, pair in enumerate((7, None, 3, 7, 3)))
        assert units([a, b, c, d, e]) == [[a, d], [b], [c, e]]
        # An equal row that is no pair's is another one each time.
        assert units([b, b]) == [[b], [b]]

    def test_stay_in_one_forward_however_long_they_are(self) -> None:
        lengths = ((0, 5), (1, 9), (None, 4), (1, 3), (0, 2))
        rows = [TokenRow(tuple(range(n)), (0,), (1,), pair=pair) for pair, n in lengths]
        cut = micro_batches(rows, 11)
        assert [[(row.pair, len(row.ids)) for row in micro] for micro in cut] == [
            [(1, 9), (1, 3)],
            [(0, 5), (0, 2), (None, 4)],
        ]


def test_totals_count_pairs_by_their_answers_that_are_not_wanted() -> None:
    wanted = TokenRow((1, 2, 3), (0, 1), (2, 3), pair=4)
    other = TokenRow((1, 2), (0,), (2,), pair=4, is_rejected=True)
    replayed = TokenRow((1, 2), (0,), (2,), memory_index=0)
    assert totals([wanted, replayed, other]) == StepTotals(3, 1, 5, user_pairs=1)


def test_totals_tell_the_users_tokens_from_the_replayed() -> None:
    user = TokenRow((1, 2, 3), (0, 1), (2, 3))
    replayed = TokenRow((1, 2, 3, 4), (0, 1, 2), (2, 3, 4), memory_index=0)
    assert totals([user, replayed, user]) == StepTotals(user_tokens=4, replay_tokens=3, user_row_tokens=6)
