"""Architecture: packages import from below only, no import cycles, short modules, cheap imports, no old names."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PACKAGE = CHECKOUT / "rga_reid"
MAX_LINES = 600

#: From top to bottom. A package or module imports only from the lines below its own.
LAYERS = (
    {"retrieval"},
    {"commands", "serving"},
    {"experiments"},
    {"reports"},
    {"training"},
    {"gallery"},
    {"inference"},
    {"models"},
    {"evaluation", "data", "attention"},
    {"devices", "resources", "runtime"},
    {"inputs"},
    {"files"},
    {"process"},
    {"_deprecated"},
    {"errors"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def name_of(file: Path) -> str:
    return ".".join(("rga_reid", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def iter_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Iterate over all nodes except those that only type checkers see."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        yield from iter_nodes(child)


TREES = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in MODULES.items()}


def find_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, including those imported in functions."""
    names = set()
    for node in iter_nodes(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES.keys() or {node.module}
    return {name for name in names if name in MODULES}


IMPORTS = {module: find_imports(module) for module in MODULES}


def top(module: str) -> str:
    """Return the package or module directly below ``rga_reid``."""
    return [*module.split("."), ""][1]


def test_every_package_has_a_layer() -> None:
    assert {top(module) for module in MODULES} - set(LAYER) == {""}


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_below(module: str) -> None:
    if module == "rga_reid":
        return  # its names load lazily
    upward = {other for other in IMPORTS[module] if top(other) != top(module) and top(other)}
    upward = {other for other in upward if LAYER[top(other)] <= LAYER[top(module)]}
    assert not upward


def test_no_import_cycles() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()


def test_modules_are_short() -> None:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.js")]
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


HEAVY = ("torch", "pandas", "numpy", "faiss", "matplotlib", "pytorch_lightning", "PIL")


@pytest.mark.parametrize(
    "statement", ["import rga_reid", "from rga_reid.commands import main; main(['--help'])"]
)
def test_importing_and_help_load_nothing_heavy(statement: str) -> None:
    script = f"{statement}\nimport sys\nprint({{*{HEAVY}}} & {{*sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "set()"


def test_public_names_exist() -> None:
    import rga_reid

    for name in rga_reid.__all__:
        assert getattr(rga_reid, name) is not None
    with pytest.raises(AttributeError):
        _ = rga_reid.no_such_name


def split_words(text: str) -> list[str]:
    return text.split()


#: Names of version 1 that must not appear anywhere any more: classes, functions, constants, arguments, options.
OLD_NAMES = split_words("""
MilvusPlace place_of persons_and_files require_some require_held no_numbers no_camera_known unit_rows are_unit
unit_matrix UnitRows fitting_rows IndexPlan nearest_rows rescored rescored_together _OURS
ModelRecord model_with checked_state from_released Mirrored in_evaluation mechanism_name
Erasure GroundTruth OwnItems entries_reaching match_positions MatchPositions Highest raise_floor refuse_rows
float32_rows NoCameras full_precision leading_matches telling_queries Telling multiplies_bfloat16
MECHANISMS neutral_start held_out input_sizes whole_number parsed_json parsed_yaml opened_bytes opened_text
refuse_halves undisturbed stoppable freed_memory_kept moving_bar survey_csv survey_folder survey_data survey_cuhk03
is_litter pixels_of numbers_in blocks_of seconds_of runs_of why_failed as_read_again conditions_of with_measured
kept_plan MOST_SEED MOST_TEXT MOST_YAML MOST_ROWS MOST_TABLE MOST_VALUES MOST_PROBLEMS MOST_LABELS
MOST_IDENTITIES MOST_STRIPES MOST_PASSES MOST_UNPACKED LONGEST_LINE LONGEST_NUMBER LONGEST_CURVE LEAST_COSINE
DEEPEST
""")

#: Names of version 1 that are common words: only functions and classes of modules are checked.
OLD_DEFINITIONS = split_words("""
added removed compacted packed logged sealed leftovers clean understood chosen suits measured team gathered share
collected in_blocks differences printable quoted shortened tracked exit_code interleaved give_back locked reduced
positive pooled related published_figures lists leading truth Contents Put Removal Leaves Team Survey Beginning
counting resizing Hits FEW one_of words_of
""")

OLD_MODULES = split_words("""
places refusals contents truth highest nearest counting histograms lists stacked ranges scores precision
reranking reciprocal expansion single_shot pairs score_counts extraction team npy_files verification model_record
modes pixels mirrored state_files published released stages costs transforms averaging beginning finite fit
indexes exact vectors gallery_folder folder_gallery builder milvus_gallery milvus_builder milvus_server
milvus_state milvus_filters pages notation figure_files feature_space calibration_plot explorer_page packing
relation_figures flow_figure mechanism_words ablation_numbers ablation_figures ablation_report query_changes
testing ranking_page ablation_run trial collecting measuring footprint explaining parsing sources labelled
thresholds signals checks locks program progress memory bounded_yaml survey mat_files csv_files layouts
tables threads squeeze_excitation nonlocal_block dual_attention gathering
""")

COMPATIBILITY = {
    CHECKOUT / name
    for name in (
        "rga_reid/_deprecated.py",
        "rga_reid/retrieval.py",
        "CHANGELOG.md",
        "tests/test_architecture.py",
        "tests/training/test_old_names.py",
    )
}


TEXTS = {".py", ".md", ".rst", ".yaml", ".cfg", ".html", ".js"}


def iter_texts() -> Iterator[Path]:
    """Iterate over the source and text files of the repository outside of compatibility code."""
    folders = ("rga_reid", "tests", "benchmarks", "docs", "configs", "datasets")
    files = [file for folder in folders for file in (CHECKOUT / folder).rglob("*")]
    for file in sorted([*files, *CHECKOUT.glob("*")]):
        if file.suffix in TEXTS and file not in COMPATIBILITY and "fixtures" not in file.parts:
            yield file


def test_old_names_are_gone() -> None:
    pattern = re.compile(rf"\b({'|'.join(OLD_NAMES)})\b")
    found = {
        f"{file.relative_to(CHECKOUT)}: {name}"
        for file in iter_texts()
        for name in pattern.findall(file.read_text(encoding="utf-8"))
    }
    assert sorted(found) == []


def test_old_definitions_and_modules_are_gone() -> None:
    defined = {
        f"{module}.{node.name}"
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in OLD_DEFINITIONS
    }
    modules = {module for module in MODULES if module.rpartition(".")[2] in OLD_MODULES}
    assert sorted(defined) + sorted(modules) == []
