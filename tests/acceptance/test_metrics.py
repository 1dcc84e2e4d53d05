"""Figures for Prometheus: summed over the workers, those who were turned away included."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.harness import wait_for
from tests.acceptance.stand import Stand, call, unique

Sample = tuple[str, tuple[tuple[str, str], ...]]


def scrape(stand: Stand, key: str) -> dict[Sample, float]:
    answer = call(f"{stand.headway.admin_url}/metrics", key=key)
    assert answer.status == 200, answer.body
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def total(figures: dict[Sample, float], name: str, **labels: str) -> float:
    """Add up the samples of a name that carry these labels."""
    return sum(
        value for (sample, of), value in figures.items() if sample == name and labels.items() <= dict(of).items()
    )


def test_requests_and_rejections_are_counted_over_all_workers(stand: Stand) -> None:
    key = stand.headway.create_key("prometheus", "--scope", "view")
    before = scrape(stand, key)
    for number in range(20):
        assert stand.chat("support", unique(f"metrics {number}")).status == 200
        assert stand.chat("nobody", unique("metrics")).status == 404

    def counted() -> bool:
        now = scrape(stand, key)
        asked = {"application": "support", "operation": "chat", "status": "2xx"}
        return (
            total(now, "headway_requests_total", **asked) - total(before, "headway_requests_total", **asked) >= 20
            and total(now, "headway_requests_rejected_total", code="model_not_found")
            - total(before, "headway_requests_rejected_total", code="model_not_found")
            >= 20
        )

    wait_for("both counters", counted)
    now = scrape(stand, key)
    assert total(now, "headway_latency_seconds_count", application="support") >= 20
    assert total(now, "headway_overhead_seconds_count") >= 20
    assert total(now, "headway_tokens_total", application="support") > 0
    assert total(now, "headway_workers") == 2


def test_figures_are_for_those_who_may_view(stand: Stand) -> None:
    key = stand.headway.create_key("no view", "--scope", "invoke")
    assert call(f"{stand.headway.admin_url}/metrics", key=key).status == 403
    assert call(f"{stand.headway.admin_url}/metrics").status == 401
