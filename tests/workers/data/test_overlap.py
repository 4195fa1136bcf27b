from workers.data.overlap import find_overlaps, words


class TestWords:
    def test_are_lower_case_without_punctuation(self) -> None:
        assert words("Don't shout, “Mary”!") == ["dont", "shout", "mary"]
        assert words("don’t") == words("don't")


class TestOverlaps:
    def test_are_found_by_a_run_of_eight_words(self) -> None:
        left = "Tell me how the old clock in the village tower was ever repaired by hand"
        right = "Who knows whether the old clock in the village tower was ever sold?"
        (found,) = find_overlaps([left], [right])
        assert (found.left, found.right) == (left, right)
        assert found.reason == "shares the words «the old clock in the village tower was»"
        seven = "Whose daughters saw the old clock in the village tower stopped?"
        assert find_overlaps([left], [seven]) == []

    def test_are_found_by_the_same_content_in_another_order(self) -> None:
        (found,) = find_overlaps(["How do I bake rye bread at home?"], ["At home: bake bread, rye"])
        assert found.reason == "content words are 4/4 alike"

    def test_are_not_found_in_phrases_that_every_request_has(self) -> None:
        assert (
            find_overlaps(["Write a tutorial on how to bake bread"], ["Write a tutorial on how to paint a door"]) == []
        )

    def test_of_texts_without_content_words_are_none(self) -> None:
        assert find_overlaps(["How do I do it?"], ["What is this?"]) == []
