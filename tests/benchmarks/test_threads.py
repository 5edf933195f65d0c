"""The table of how long training takes by how its threads wait."""

import csv

from benchmarks.training.threads import table

# Seconds alone and of two at once, round by round; a third round was not finished.
TIMES = {
    "brief": ([10, 12], [22, 30]),
    "spinning": ([10, 10, 99], [40, 60]),
}


def test_medians_over_whole_rounds(tmp_path):
    rows = [
        {"device": "CPU", "threads": 2, "torch": "2", "commit": "c", "updates": 80,
         "round": number, "way": way, "runs": runs, "seconds": seconds}
        for way, both in TIMES.items()
        for runs, times in enumerate(both, start=1)
        for number, seconds in enumerate(times, start=1)
    ]  # fmt: skip
    with open(tmp_path / "threads.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    text = table(tmp_path / "threads.csv")
    assert "2 rounds of 80 updates" in text
    assert "| brief | 11.00 (10.50–11.50) | 1.10 | 1.18 (1.14–1.21) |" in text
    assert "| spinning | 10.00 (10.00–10.00) | 1.00 | 2.50 (2.25–2.75) |" in text
