"""benchmarks/accelerator.py, rehearsed on the CPU at tiny sizes."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("accelerator", ROOT / "benchmarks/accelerator.py")
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


def rehearsed(part: str, capfd) -> dict:
    """Return the result of a part, as it is printed."""
    results = sorted(benchmark.RESULTS.glob("*"))
    benchmark.main(["--rehearse", part])
    assert sorted(benchmark.RESULTS.glob("*")) == results, "a rehearsal writes nothing"
    output = capfd.readouterr().out
    return json.loads(output[output.index("\n{") : output.rindex("}") + 1])


def errors(result: dict) -> list[str]:
    return [str(value["error"]) for value in result.values() if "error" in value]


def test_ceilings(capfd):
    result = rehearsed("ceilings", capfd)
    assert len(result) > 8
    assert min(result.values()) > 0


def test_tests_are_collected(capfd):
    assert rehearsed("tests", capfd)["exit_code"] == 0


def test_scores(capfd):
    artifacts = rehearsed("scores", capfd)["artifacts"]
    assert {row["stage"] for row in artifacts} >= {"train", "sample", "featurize", "score"}
    for row in artifacts:
        assert row.get("relative difference of scores.npy", 0.0) == 0.0
        assert "error" not in row


def test_training(capfd):
    result = rehearsed("training", capfd)
    assert not errors(result["variants"])
    assert result["variants"]["ours bf16"]["images/s"] > 0


def test_features(capfd):
    result = rehearsed("features", capfd)
    assert not errors(result)
    assert result["trak.TRAKer"]["noise samples/s"] > 0


def test_digits(capfd):
    result = rehearsed("digits", capfd)
    assert result["exit_code"] == 0, result
    assert [claim["claim"].split(",")[0] for claim in result["claims"]] == [
        "journey − trak",
        "ekfac − journey",
        "pixel − journey",
        "trak − journey",
    ]
    assert result["claims"][0]["committed verdict"] == "supported"


def test_unet(capfd):
    result = rehearsed("unet", capfd)
    assert result["exit_code"] == 0, result
    assert result["stages"]["train"]["count"] == 1


def test_an_unknown_part_and_a_missing_device_are_refused(capfd):
    with pytest.raises(SystemExit):
        benchmark.main(["--rehearse", "celings"])
    assert "there is no part celings" in capfd.readouterr().err
    with pytest.raises(benchmark.network.ConfigError, match="--device=cuda"):
        benchmark.main(["--device", "cuda:99"])
