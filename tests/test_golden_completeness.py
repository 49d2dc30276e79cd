"""No golden set and no expected array of one is passed over: each has a test that compares it."""

import re
from pathlib import Path

import pytest

from tests.goldens import GOLDEN_DIR, arrays, entry, sets
from tests.test_networks_golden import fused_sets

_LOD, _NUMBER = r"_lod[\d.]+", r"[\d.]+"

COMPARED: dict[str, tuple[str, ...]] = {
    # tests/test_networks_golden.py
    "A1": (
        r"out/(w|w2|dlatents_trunc)",
        rf"out/img{_LOD}_psi-?{_NUMBER}(_cut(\d+|all))?(_uint8_nhwc)?",
        r"out/img_(mix_c|noise_ge)\d+",
        rf"out/d_scores({_LOD}(_batch\d+)?|_lod0_perm)",
    ),
    "A3": (rf"out/(img|d_scores)_fused(True|False){_LOD}",),
    "A4": ("out/dlatents", rf"out/img{_LOD}"),
    "A5": (r"[^/]+/out/(w|img|d_scores)",),
    "A6": ("out/(w|img|d_scores|d_scores_zero_labels)",),
    "A7": ("out/w2?", rf"out/(img|dlatent_avg){_LOD}_(mix|nomix)"),
    "A8": ("out/w", rf"out/img{_LOD}(_(tl|br|ctr|box\d+))?", rf"out/d_scores{_LOD}"),
    # tests/test_trace_golden.py
    "A2": ("out/(img|d_scores)", r"trace/.+"),
    # tests/test_losses.py
    "B2": (rf"out/[GD]_\w+{_LOD}/(loss|loss_mean|grad/.+)", rf"out/(fake|real)_scores{_LOD}"),
    # tests/test_family_losses_golden.py
    "D2": (rf"out/[GD]_wgan(gp)?_acgan{_LOD}/(loss|loss_mean|grad/.+)",),
    "E4": (
        r"out/(G_logistic_ns|D_logistic|r1_reg|r1_gradient_penalty|pl_lengths)",
        r"out/(G_logistic_ns|D_logistic|r1|pathreg\d+)/grad/.+",
        r"out/pathreg\d+/(pl_mean_before_after|reg)",
    ),
    # tests/test_reals.py
    "F1": (r"out/dynamic_range_table", rf"out/lod{_NUMBER}(_mirror)?"),
    "F5": (rf"out/lod{_NUMBER}(_mirror)?",),
    # tests/test_optimizer.py
    "F4": (rf"out/(sg|b1_{_NUMBER}|Gs_beta_kimg{_NUMBER})",),
    # tests/test_step_golden.py
    "T1": (
        r"out/it\d+/(d_loss|g_loss|dlatent_avg_after_[dg])",
        r"out/it\d+/[GD]/.+",
        r"out/final/(G|D|Gs)/.+",
    ),
}
"""By first letters of a set: the expected arrays that its tests look for."""
REFUSING = {
    *("B1", "D1", "D4", "E1", "E2", "E3", "E5", "E6", "F2", "F3"),
    *("G1", "G2", "G3", "G4", "G5", "G6", "H1"),
}
"""Their tests take every array that there is and fail where they do not know it."""
TABLES = {"A9", "C1", "C2", "C3", "D3", "E7"}
"""Without arrays; their tests take every row."""
FAMILIES = COMPARED.keys() | REFUSING | TABLES
_GIVEN = re.compile(r"(in|init|G|D)/.+|[^/]+/in/.+")


@pytest.mark.parametrize("name", sets("*"))
def test_every_golden_set_and_array_has_a_comparison(name: str):
    family = name[:2]
    assert family in FAMILIES, f"no test compares {name}"
    is_table = not entry(name)["file"].endswith(".npz")
    assert is_table == (family in TABLES)
    if family in COMPARED:
        expected = [key for key in arrays(name) if not _GIVEN.fullmatch(key)]
        unknown = [k for k in expected if not any(re.fullmatch(p, k) for p in COMPARED[family])]
        assert not unknown, f"no test compares these of {name}: {unknown}"


def test_no_golden_test_of_this_repository_is_without_a_set():
    """Tests take their sets by pattern; one that none matches would be skipped."""
    if Path(__file__).parent / "golden" == GOLDEN_DIR:
        assert {name[:2] for name in sets("*")} == FAMILIES
        assert set(fused_sets()) == set(sets("A3_*"))
    else:
        assert sets("*"), f"{GOLDEN_DIR} holds no sets"
