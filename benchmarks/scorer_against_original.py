"""Caption metrics of `deltavlm eval` against those of the original scorer and of pycocoevalcap.

    python benchmarks/scorer_against_original.py FOLDER

FOLDER holds changechat_105k_test.json, predictions.jsonl, wordmap.json and expected.json (`paper` and
`strict`: all, changed and unchanged, and the counts of captions read as yes/no). Needs Java
and the extra `eval`. The captions of LEVIR-CC are for academic use and are not part of this repository.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deltavlm.data.read import read_dataset
from deltavlm.scoring.paper import read_word_map
from deltavlm.scoring.predictions import match, read_predictions
from deltavlm.scoring.score import Protocol, Setup, score

TOLERANCE = 1e-6
PROTOCOLS: tuple[Protocol, ...] = ("paper", "strict")


def main(folder: Path) -> int:
    data = read_dataset(folder / "changechat_105k_test.json")
    predictions = read_predictions(folder / "predictions.jsonl")
    pairs = match(data.examples, predictions.predictions).pairs
    words = read_word_map(folder / "wordmap.json")
    expected = json.loads((folder / "expected.json").read_text())
    problems = len(data.problems) + len(predictions.problems)
    print(f"{len(data.examples)} examples, {len(pairs)} answered, {problems} problems")
    largest = 0.0
    for protocol in PROTOCOLS:
        setup = Setup(protocol, words if protocol == "paper" else None, bootstrap_rounds=0)
        scores = score(pairs, ("caption", "change"), setup)
        values = {(metric.task, metric.group, metric.metric): metric.value for metric in scores.metrics}
        references = {
            ("caption", group, metric): value
            for group in ("all", "changed", "unchanged")
            for metric, value in expected[protocol][group].items()
        }
        if protocol == "paper":
            counts = expected["paper"]["changed_from_caption_exact"]
            references |= {("change", "all", metric): value for metric, value in counts.items()}
        differences: dict[str, float] = {}
        for key, value in references.items():
            differences[key[2]] = max(differences.get(key[2], 0.0), abs(values[key] - value))
        for metric, difference in differences.items():
            print(f"{protocol:7s} {metric:8s} largest difference {difference:.1e}")
        largest = max(largest, *differences.values())
        for note in scores.notes:
            print(note, file=sys.stderr)
    print(f"largest difference of all {largest:.1e}, allowed {TOLERANCE:.0e}")
    return int(largest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
