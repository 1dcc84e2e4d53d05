"""The examples in the docstrings of headway.stats run, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from headway import stats

MODULES = [importlib.import_module(f"headway.stats.{module.name}") for module in pkgutil.iter_modules(stats.__path__)]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "statistics.md"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", stats.__all__)
def test_every_public_function_says_what_it_guarantees_and_shows_how_it_is_used(name: str) -> None:
    value = getattr(stats, name)
    documented = inspect.getdoc(value) or ""
    if inspect.isfunction(value) and name != "log_histogram_bins":
        assert "Example:" in documented
        assert ">>>" in documented
    if inspect.isfunction(value) and "log_histogram" not in name:
        home = inspect.getdoc(inspect.getmodule(value)) or ""
        for heading in ("uarantee", "ssumption", "Source"):
            assert heading in documented + home or name in ("log_mean_exp", "information_to_decide")


def test_the_gateway_does_not_load_numpy() -> None:
    script = (
        "import sys; from headway.stats import log_histogram_bins; import headway.domain.evidence; "
        "assert not {'numpy', 'scipy'} & set(sys.modules); "
        "import headway.stats as s; assert set(s.__all__) <= set(dir(s)); s.ratio_variance; "
        "assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        getattr(stats, "no_such_name")  # noqa: B009 - a type checker would see it


def test_the_page_names_every_function_and_its_example_runs() -> None:
    text = PAGE.read_text()
    functions = {name for name in stats.__all__ if inspect.isfunction(getattr(stats, name))}
    shown_elsewhere = {
        "log_histogram_bins",  # of many values
        "normal_mixture_boundary",
        "reverse_information_projection",  # steps of others
        "stratified_confidence_sequence",
    }
    assert {name for name in functions if f"`{name}`" not in text} <= shown_elsewhere
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        exec(example, {})
