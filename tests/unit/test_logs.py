# SPDX-License-Identifier: Apache-2.0
from opendino.logs import JsonLines


def test_records_survive_a_cut_last_line_and_a_rewind(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        lines.write({"step": step, "loss": step / 8})
    with lines.path.open("a") as file:
        file.write('{"step": 4, "lo')  # a process killed in the middle of a line
    assert [record["step"] for record in lines.read()] == [1, 2, 3]
    lines.truncate("step", 2)
    lines.write({"step": 3, "loss": 9.0})
    assert lines.read() == [{"step": 1, "loss": 0.125}, {"step": 2, "loss": 0.25}, {"step": 3, "loss": 9.0}]
