"""What progress says about the end of a job."""

from app.contracts.job_progress import JobProgress


def first(after_training_seconds: float | None = None) -> JobProgress:
    return JobProgress(
        step=10, total_steps=50, at=1000.0, since_step=10, since=1000.0, after_training_seconds=after_training_seconds
    )


class TestEstimatedFinish:
    def test_is_unknown_at_the_first_report(self) -> None:
        assert first(60.0).estimated_finish is None

    def test_goes_on_at_the_pace_of_this_attempt(self) -> None:
        # 20 steps in 40 seconds; 20 more remain.
        assert first().next(30, 1040.0).estimated_finish == 1080.0

    def test_counts_what_came_after_training_in_other_jobs(self) -> None:
        assert first(60.0).next(30, 1040.0).estimated_finish == 1140.0

    def test_of_reports_that_arrive_together_none_counts_as_infinitely_fast(self) -> None:
        together = first().next(12, 1000.0)
        assert together.estimated_finish is None
        # 8 steps in 8 seconds since the last of those.
        assert together.next(20, 1008.0).estimated_finish == 1038.0

    def test_after_training_is_known_by_earlier_jobs_alone(self) -> None:
        assert first(60.0).next(50, 1080.0).trained(1100.0).estimated_finish == 1160.0
        assert first().next(50, 1080.0).trained(1100.0).estimated_finish is None

    def test_training_has_ended_when_it_was_said_first(self) -> None:
        assert first(60.0).trained(1100.0).trained(1200.0).trained_at == 1100.0
