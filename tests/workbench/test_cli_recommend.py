"""`workbench recommend`: lists for users, for histories and for nobody in particular."""

from __future__ import annotations

import json
from pathlib import Path

from tests.workbench.conftest import Cli, one_line_error


def test_recommend_for_users_histories_and_nobody(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    folder, data = str(tmp_path / "model"), ("--data", str(log_file))
    assert cli("train", "ease", *data, "--set", "l2=5", "--out", folder)[0] == 0
    code, out, _ = cli("recommend", folder, *data, "--popular", "--k", "3", "--json")
    first = json.loads(out)[0]["items"]
    assert (code, len(first)) == (0, 3)
    seen, banned = first[0]["id"], first[1]["id"]
    code, out, _ = cli("recommend", folder, *data, "--history", seen, "--popular", "--exclude", banned, "--k", "4", "--json")
    history, popular = json.loads(out)
    assert history["for"] == f"history {seen}"
    assert not {seen, banned} & {i["id"] for i in history["items"]}
    assert [i["id"] for i in popular["items"]][:2] == [seen, first[2]["id"]]
    code, out, _ = cli("recommend", folder, *data, "--history", seen, "--only", f"{seen},{banned}", "--k", "4")
    assert "3 fewer than asked" in out
    assert "For an empty history" in cli("recommend", folder, *data, "--history", "", "--k", "4")[1]

    for wrong, named in ((("--user", "nobody"), "nobody"), (("--history", "nothing"), "nothing"), ((), "--history")):
        code, _, err = cli("recommend", folder, *data, *wrong)
        assert code == 2
        assert named in one_line_error(err)
