"""The update against golden numbers: of the reference implementation, and of a slow one of our own."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import golden_check
from tests.golden_check import check_file, check_returns, main
from tests.shared import SHARED, shared_path
from tests.slow_update import UPDATES, make_golden

GOLDEN_FILES = sorted(path.name for path in (SHARED / "golden").glob("*.npz")) or ["a_calql_is.npz"]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_reference_goldens(name: str, precision: str) -> None:
    outcome = check_file(shared_path(f"golden/{name}"), precision)
    assert outcome.status == ("SKIP" if name.startswith("x_independent") else "PASS"), outcome.line
    assert outcome.line.startswith(name)


def test_reference_returns() -> None:
    outcomes = check_returns(shared_path("golden/mc_and_pipeline.json"))
    assert len(outcomes) == 9
    assert {outcome.status for outcome in outcomes} == {"PASS"}, "\n".join(o.line for o in outcomes)


def unknown_returns(batch: dict[str, np.ndarray]) -> None:
    batch["mc_returns"][:, 0] = -np.inf


CASES: dict[str, dict[str, Any]] = {
    "calql": {},
    "cql": {"enable_calql": False},
    "sac": {"use_cql": False},
    "sac_of_a_lagrange_run": {"use_cql": False, "cql_lagrange": True, "cql_max_target_backup": False},
    "entropy_backup": {"backup_entropy": True, "alpha_multiplier": 0.7},
    "entropy_backup_one_action": {"backup_entropy": True, "cql_max_target_backup": False},
    "one_target_action": {"cql_max_target_backup": False},
    "no_importance_sampling": {"cql_importance_sample": False},
    "no_importance_sampling_cql": {"cql_importance_sample": False, "enable_calql": False, "cql_temp": 0.5},
    "temperature": {"cql_temp": 2.5},
    "clipped_above": {"cql_clip_diff_max": 3.7},
    "clipped_both": {"cql_clip_diff_min": 3.4, "cql_clip_diff_max": 3.8},
    "fixed_alpha": {"use_automatic_entropy_tuning": False, "alpha_multiplier": 0.3, "backup_entropy": True},
    "default_target_entropy": {"target_entropy": 0.0},
    "lagrange": {"cql_lagrange": True},
    "lagrange_clipped": {"cql_lagrange": True, "cql_clip_diff_max": 3.6, "cql_target_action_gap": -1.0},
    "batch_of_one": {"batch_size": 1, "cql_lagrange": True},
    "unknown_returns": {"change": unknown_returns},
    "strided_half_precision_storage": {"stride": 7, "dtype": np.float16},
}


@pytest.mark.parametrize("case", CASES)
def test_slow_implementation(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A parameter moves by about 1e-3: an error of 1e-6 in the change is one of 1e-9 in the parameter.
    monkeypatch.setitem(golden_check.LIMITS, "float64", (1e-9, 1e-9, 1e-6))
    path = make_golden(tmp_path / f"{case}.npz", seed=sum(map(ord, case)), **CASES[case])
    with np.load(path) as arrays:  # the case exercises what it is named after
        assert arrays["vec/row_clipped"].any() == ("clipped" in case)
        assert "clipped" not in case or not arrays["vec/row_clipped"].all()
        assert CASES[case].get("use_cql", True) == ("scalar/cql_qf1_diff" in arrays)
        if case == "calql":
            rates = [arrays[key][0] for key in arrays if key.startswith("scalar/bound_rate")]
            assert len(rates) == 4
            assert 0.0 < min(rates) <= max(rates) < 1.0
    outcome = check_file(path, "float64")
    assert outcome.status == "PASS", outcome.line
    assert "not computed" not in outcome.line


# ---- the checker itself


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["golden_check.py", *arguments])
    return main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden")
    make_golden(path / "small.npz", cql_lagrange=True)
    return path


def doctored(folder: Path, target: Path, key: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / "small.npz") as file:
        arrays = dict(file.items())
    arrays[key] = change(arrays[key]) if key in arrays else change(np.zeros(UPDATES))
    np.savez(target / "doctored.npz", **arrays)


def test_main_passes_and_prints_a_line_per_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, str(folder)) == 0
    line, summary = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["small.npz", "PASS"]
    assert all(word in line for word in ("scalars", "gradients", "changes"))
    assert summary == "1 passed, 0 failed, 0 skipped"
    assert run_main(monkeypatch, str(folder), "--float32") == 0


@pytest.mark.parametrize(
    ("key", "culprit"),
    [
        ("scalar/policy_loss", "scalars 1"),
        ("grad/qf2/1.kernel", "(qf2/1.kernel)"),
        ("grad/log_alpha_prime", "(log_alpha_prime)"),
        ("after1/policy/log_std_offset", "(policy/log_std_offset after 1)"),
        ("after2/target_qf1/0.bias", "(target_qf1/0.bias after 2)"),
    ],
)
def test_main_fails_on_one_wrong_array(
    folder: Path,
    tmp_path: Path,
    key: str,
    culprit: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(folder / "small.npz", tmp_path)
    doctored(folder, tmp_path, key, lambda array: array * (1.0 + 1e-4))
    assert run_main(monkeypatch, str(tmp_path)) == 1
    bad, good, summary = capsys.readouterr().out.splitlines()
    assert bad.split()[:2] == ["doctored.npz", "FAIL"]
    assert culprit in bad or key.startswith("scalar")
    assert good.split()[:2] == ["small.npz", "PASS"]
    assert summary == "1 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_wrong_losses_and_gradients_fail(folder: Path, tmp_path: Path, precision: str) -> None:
    for key, factor in (("scalar/qf1_loss", 1.001), ("grad/policy/0.bias", 1.01)):
        doctored(folder, tmp_path, key, lambda array, factor=factor: array * factor)  # type: ignore[misc]
        assert check_file(tmp_path / "doctored.npz", precision).status == "FAIL"


def test_nan_and_scalars_nobody_computes_fail(folder: Path, tmp_path: Path) -> None:
    doctored(folder, tmp_path, "grad/qf1/0.bias", lambda array: array * np.nan)
    assert check_file(tmp_path / "doctored.npz", "float64").status == "FAIL"
    doctored(folder, tmp_path, "scalar/unheard_of", lambda array: array + 1.0)
    outcome = check_file(tmp_path / "doctored.npz", "float64")
    assert outcome.status == "FAIL"
    assert outcome.line.endswith("not computed: unheard_of")


def test_wrong_return_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = {
        "name": "two_steps",
        "kind": "sparse01",
        "sparse": True,
        "scaled_rewards": [-5.0, 5.0],
        "terminals": [0, 1],
        "gamma": 0.9,
        "reward_scale": 10.0,
        "reward_bias": -5.0,
        "mc_returns_float32": [-0.5, 5.0],  # -5 + 0.9 * 5
    }
    file = tmp_path / "mc_and_pipeline.json"
    file.write_text(json.dumps({"return_to_go": [case]}))
    assert run_main(monkeypatch, str(tmp_path)) == 0
    file.write_text(json.dumps({"return_to_go": [case | {"mc_returns_float32": [-0.51, 5.0]}]}))
    assert run_main(monkeypatch, str(tmp_path)) == 1
    assert "mc_and_pipeline.json:two_steps" in capsys.readouterr().out


def test_main_refuses_folders_without_goldens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, str(tmp_path)) == 1
    assert capsys.readouterr().out.strip() == "0 passed, 0 failed, 0 skipped"
    assert run_main(monkeypatch, str(tmp_path / "absent")) == 2
    assert "is not a folder" in capsys.readouterr().out


def test_files_with_a_draw_per_loss_are_skipped_with_the_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = json.dumps({"heads": ["policy", "qf1"]})
    doctored(folder, tmp_path, "meta", lambda _: np.array(heads))
    assert run_main(monkeypatch, str(tmp_path)) == 1  # nothing was checked
    line, summary = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["doctored.npz", "SKIP"]
    assert "one draw per loss" in line
    assert summary == "0 passed, 0 failed, 1 skipped"
    shutil.copy(folder / "small.npz", tmp_path)
    assert run_main(monkeypatch, str(tmp_path)) == 0


def test_it_is_a_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["golden_check.py", str(folder)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(Path(golden_check.__file__)), run_name="__main__")
