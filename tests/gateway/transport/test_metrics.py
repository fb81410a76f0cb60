"""The gateway's own histogram is read as prometheus_client's own."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from farebox.metrics import QuickHistogram


def test_a_quick_histogram_is_read_as_any_other() -> None:
    bounds, values = (0.001, 0.5, 2), (0.0, 0.0005, 0.001, 0.0011, 0.5, 1.5, 2, 2.5, 100)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    quick = QuickHistogram("seconds", "Of something", bounds, ours)
    other = Histogram("seconds", "Of something", buckets=bounds, registry=theirs)
    assert [family.name for family in ours.collect()] == ["seconds"]
    for value in values:
        quick.observe(value)
        other.observe(value)
    expected = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == expected
